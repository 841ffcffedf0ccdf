"""Masked-image training from options to a finished output folder.

Images stay uint8 until they are on the device; flips, masks and normalisation happen there, for a whole batch.
"""

import json
import math
import os
import platform
import re
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import transformers
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import DataLoaderConfiguration, set_seed, tqdm
from torch.utils.data import DataLoader
from transformers import AutoConfig

from ..configuration_energy_transformer import EnergyTransformerConfig
from ..data import ImageTensors, load_image_datasets, normalize
from ..errors import UserError
from ..hub import load_pretrained
from ..image_processing import build_image_processor
from ..masking import draw_masks, noise_units
from ..modeling_energy_transformer import EnergyTransformerForMaskedImageModeling
from .arguments import MaskedImageModelingArguments
from .checkpoints import check_output_dir, find_state, load_state, prepare_output_dir, save_state
from .evaluation import evaluate, save_pictures
from .optimization import build_optimizer, build_schedule

logger = get_logger(__name__)
_ADVICE = "try a smaller learning_rate, a smaller max_grad_norm or mixed_precision no"


def build_config(args: MaskedImageModelingArguments) -> EnergyTransformerConfig:
    """The model's configuration: that of `model_name_or_path` or the default one, with the overrides.

    Raises:
        UserError: for an unknown field or an impossible combination.
    """
    config = EnergyTransformerConfig()
    if args.model_name_or_path:
        config = load_pretrained(AutoConfig, args.model_name_or_path)
        if not isinstance(config, EnergyTransformerConfig):
            raise UserError(
                f"model_name_or_path {args.model_name_or_path} is no Energy Transformer: {config.model_type}"
            )
    overrides = _parse_overrides(args.config_overrides, config)
    for name in ("image_size", "patch_size", "mask_ratio", "mask_replace_probability"):
        value = getattr(args, name)
        if value is not None:
            overrides[name] = value[0] if isinstance(value, list) and len(value) == 1 else value
    fields = {**config.to_dict(), **overrides}
    for computed in ("model_type", "transformers_version", "auto_map", "architectures", "dtype"):
        fields.pop(computed, None)
    try:
        config = EnergyTransformerConfig(**fields)
    except Exception as error:  # the validator of strict dataclasses has its own exceptions
        raise UserError(f"model configuration: {str(error.__cause__ or error).splitlines()[-1].strip()}") from error
    if config.norm_pix_loss:
        raise UserError("norm_pix_loss=True is not supported by this script: its errors and pictures are of pixels")
    return config


def _parse_overrides(text: str | None, config: EnergyTransformerConfig) -> dict:
    overrides = {}
    for pair in filter(None, re.split(r",(?![^\[]*\])", text or "")):  # not at the commas of a list
        name, separator, value = pair.partition("=")
        if not separator or name not in config.to_dict():
            raise UserError(f"config_overrides: {pair!r} is not 'field=value' with a field of EnergyTransformerConfig")
        try:
            overrides[name] = json.loads(value.lower())
        except json.JSONDecodeError:
            overrides[name] = value
    return overrides


def build_model(args: MaskedImageModelingArguments, config: EnergyTransformerConfig):
    """A new model, or the weights of `model_name_or_path` under `config`."""
    if not args.model_name_or_path:
        return EnergyTransformerForMaskedImageModeling(config)
    return load_pretrained(EnergyTransformerForMaskedImageModeling, args.model_name_or_path, config=config)


def build_loaders(args: MaskedImageModelingArguments, config: EnergyTransformerConfig, processor):
    """Loaders of the training and the held-out images; batches are {"image": uint8 (B, C, H, W), "index": (B,)}."""
    splits, column = load_image_datasets(
        dataset_name=args.dataset_name,
        dataset_config_name=args.dataset_config_name,
        image_column_name=args.image_column_name,
        train_dir=args.train_dir,
        validation_dir=args.validation_dir,
        train_val_split=args.train_val_split,
        max_train_samples=args.max_train_samples,
        max_eval_samples=args.max_eval_samples,
        seed=args.seed,
    )
    loaders = []
    for name, batch_size in (
        ("train", args.per_device_train_batch_size),
        ("validation", args.per_device_eval_batch_size),
    ):
        images = ImageTensors(splits[name], column, processor)
        training = name == "train"
        loaders.append(
            DataLoader(
                images,
                batch_size=batch_size,
                shuffle=training,
                drop_last=training,
                num_workers=0 if images.is_decoded else args.dataloader_num_workers,
                collate_fn=images.collate,
            )
        )
    return loaders


def batch_generator(seed: int, batch: int, process: int, device: torch.device) -> torch.Generator:
    """The randomness of one batch on one process: a function of these numbers alone, so that a run can be resumed."""
    state = np.random.SeedSequence((seed, batch, process)).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0] >> np.uint64(1)))


def flip_half(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror each image (B, C, H, W) with probability one half."""
    chosen = torch.rand(len(images), generator=generator, device=images.device) < 0.5
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)


def _several_processes_were_asked_for() -> bool:
    """Whether `accelerate launch --cpu --num_processes N` with N > 1 started this one process."""
    return os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in os.environ


class Training:
    """One run. [`run`] trains, evaluates and writes the output folder."""

    def __init__(self, args: MaskedImageModelingArguments):
        self.args = args
        config = build_config(args)
        self.units = self._mask_units(config)
        state = find_state(args)
        check_output_dir(args)
        self.accelerator = Accelerator(
            cpu=args.cpu,
            mixed_precision=args.mixed_precision,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
        )
        self._check_precision()
        if self.accelerator.num_processes == 1 and _several_processes_were_asked_for():
            logger.warning(
                "`accelerate launch --cpu` starts one process, however many are asked for: "
                "for more, see configuration/accelerate/multi_cpu.yaml"
            )
        set_seed(args.seed)
        self.processor = build_image_processor(config.image_height_width, config.num_channels)
        with self.accelerator.main_process_first():
            train_loader, eval_loader = build_loaders(args, config, self.processor)
        model = build_model(args, config)
        optimizer = build_optimizer(model, args)
        self.model, self.optimizer, self.train_loader, self.eval_loader = self.accelerator.prepare(
            model, optimizer, train_loader, eval_loader
        )
        if len(self.train_loader) == 0:
            raise UserError(
                f"per_device_train_batch_size is {args.per_device_train_batch_size}, but there are only "
                f"{len(train_loader.dataset)} training images for {self.accelerator.num_processes} process(es)"
            )
        self.config = config
        self.steps_per_epoch = math.ceil(len(self.train_loader) / args.gradient_accumulation_steps)
        self.total_steps = args.max_train_steps or math.ceil(args.num_train_epochs * self.steps_per_epoch)
        self.schedule = build_schedule(self.optimizer, args, self.total_steps)
        self.accelerator.register_for_checkpointing(self.schedule)
        self.step = load_state(self.accelerator, args, state) if state else 0
        self.last_loss: float | None = None
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            prepare_output_dir(args)
        self.accelerator.wait_for_everyone()

    def _check_precision(self) -> None:
        if self.accelerator.device.type == "cpu" and self.accelerator.mixed_precision == "fp16":
            raise UserError("mixed_precision fp16 needs a GPU: on the CPU, use bf16 or no")

    def _mask_units(self, config: EnergyTransformerConfig) -> int:
        try:
            return noise_units(config.grid_size, config.patch_height_width, self.args.mask_patch_size)
        except ValueError as error:
            raise UserError(str(error)) from error

    def run(self) -> dict:
        """Train, evaluate, save. Returns what stands in `all_results.json`."""
        first_step, seconds = self.step, self._train()
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self._save_model()
        results = {
            **self._evaluate(),
            "train_loss": self.last_loss,
            "train_steps": self.step,
            "train_seconds": seconds,
            "train_samples_per_second": self._images_per_step * (self.step - first_step) / max(seconds, 1e-9),
        }
        if self.accelerator.is_main_process:
            self._save_results(results)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        return results

    def _evaluate(self) -> dict[str, float]:
        results = evaluate(self.accelerator, self.model, self.eval_loader, self.processor, self.units, self.args.seed)
        if not math.isfinite(results["eval_masked_mse"]):
            raise UserError(f"the held-out error is not finite at step {self.step}: {_ADVICE}")
        return results

    @property
    def _images_per_step(self) -> int:
        args = self.args
        return args.per_device_train_batch_size * self.accelerator.num_processes * args.gradient_accumulation_steps

    def _train(self) -> float:
        started, first_step = time.perf_counter(), self.step
        progress = tqdm(total=self.total_steps, initial=self.step, desc="training", unit="step")
        while self.step < self.total_steps:
            for loss in self._epoch():
                progress.update()
                if self.step % 20 == 0 or self.step == self.total_steps:
                    self._report(progress, loss, (self.step - first_step) / (time.perf_counter() - started))
                if self._is_due(self.args.checkpointing_steps):
                    self._check_loss(loss)
                    save_state(self.accelerator, self.args, self.step)
                if self.step == self.total_steps:
                    break
                if self._is_due(self.args.eval_steps):
                    ratio = self._evaluate()["eval_ratio_to_mean_color"]
                    if self.accelerator.is_main_process:
                        progress.write(f"step {self.step}: held-out error {ratio:.3f} of the mean colour's")
        progress.close()
        return time.perf_counter() - started

    def _epoch(self):
        """Yields the loss of each optimizer step, from where the run stands to the end of the epoch."""
        epoch, step_in_epoch = divmod(self.step, self.steps_per_epoch)
        loader = self.train_loader
        self.train_loader.set_epoch(epoch)
        first_batch = step_in_epoch * self.args.gradient_accumulation_steps
        if first_batch:
            loader = self.accelerator.skip_first_batches(self.train_loader, first_batch)
            loader.set_epoch(epoch)
        for number, batch in enumerate(loader, start=epoch * len(self.train_loader) + first_batch):
            loss = self._train_on(batch["image"], number)
            if self.accelerator.sync_gradients:
                self.step += 1
                yield loss

    def _train_on(self, images: torch.Tensor, number: int) -> torch.Tensor:
        args, config = self.args, self.config
        device = self.accelerator.device
        self.model.train()
        generator = batch_generator(args.seed, number, self.accelerator.process_index, device)
        if args.horizontal_flip:
            images = flip_half(images, generator)
        noise = torch.rand(len(images), self.units, generator=generator, device=device)
        masked, corrupted = draw_masks(
            config.mask_type, noise, config.grid_size, config.mask_ratio, config.mask_replace_probability
        )
        with self.accelerator.accumulate(self.model):
            pixel_values = normalize(images, self.processor)
            loss = self.model(pixel_values, bool_masked_pos=masked, bool_corrupted_pos=corrupted).loss
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.model.parameters(), args.max_grad_norm)
            self.optimizer.step()
            if self.accelerator.sync_gradients and not self.accelerator.optimizer_step_was_skipped:
                self.schedule.step()
            self.optimizer.zero_grad()
        return loss.detach()

    def _check_loss(self, loss: torch.Tensor) -> float:
        value = self.accelerator.reduce(loss, "mean").item()
        if not math.isfinite(value):
            raise UserError(f"the loss is {value} at step {self.step}: {_ADVICE}")
        return value

    def _report(self, progress, loss: torch.Tensor, steps_per_second: float) -> None:
        self.last_loss = self._check_loss(loss)
        progress.set_postfix(
            {"loss": f"{self.last_loss:.4f}", "images/s": f"{steps_per_second * self._images_per_step:.0f}"}
        )

    def _is_due(self, every: str | None) -> bool:
        interval = self.steps_per_epoch if every == "epoch" else int(every or 0)
        return bool(interval) and self.step % interval == 0

    def _save_model(self) -> None:
        """Model and processor, written beside the folder's files and moved into their places when complete."""
        folder = Path(self.args.output_dir)
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as temporary:
            self.accelerator.unwrap_model(self.model).save_pretrained(temporary)
            self.processor.save_pretrained(temporary)
            for path in Path(temporary).iterdir():
                path.replace(folder / path.name)

    def _save_results(self, results: dict) -> None:
        folder = Path(self.args.output_dir)
        model, images = self.accelerator.unwrap_model(self.model), self.eval_loader.dataset
        save_pictures(model, images, self.processor, self.units, self.args, folder / "samples")
        record = {
            **results,
            "num_parameters": model.num_parameters(),
            "num_processes": self.accelerator.num_processes,
            "device": self.accelerator.device.type,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
            "arguments": asdict(self.args),
        }
        temporary = folder / ".all_results.json"
        temporary.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")
        temporary.replace(folder / "all_results.json")
