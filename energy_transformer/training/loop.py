"""The training loop that all tasks share, from options to a finished output folder.

The result does not depend on how a step's images are divided over processes and accumulated batches: their order is
that of `data.StepSampler`, and the random numbers of a step are drawn for all its images at once, from a generator
that the seed and the step determine; each batch takes its slice of both.
"""

import json
import math
import os
import platform
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import torch
import transformers
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import set_seed, tqdm
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..configuration_energy_transformer import EnergyTransformerConfig
from ..data import batch_slice, load_image_datasets
from ..errors import UserError
from ..hub.cards import write_card
from ..image_processing import build_image_processor
from .arguments import CommonArguments
from .checkpoints import check_output_dir, find_state, load_state, prepare_output_dir, save_state, saved_states
from .hardware import device_name
from .loaders import Batch, build_eval_loader, build_train_loader, image_tensors
from .optimization import build_optimizer, build_schedule
from .publishing import Publisher, take_token

logger = get_logger(__name__)
_ADVICE = "try a smaller learning_rate, a smaller max_grad_norm or mixed_precision no"


def step_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The randomness of an optimizer step: a function of these numbers alone, the same on every process."""
    state = np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0] >> np.uint64(1)))


def flip(images: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Mirror the images (B, C, H, W) whose number in [0, 1), (B,), lies below one half."""
    return torch.where((uniform < 0.5)[:, None, None, None], images.flip(-1), images)


def _several_processes_were_asked_for() -> bool:
    """Whether `accelerate launch --cpu --num_processes N` with N > 1 started this one process."""
    return os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in os.environ


class Training(ABC):
    """One run of a task; [`run`] trains, evaluates and writes the output folder.

    A task implements the hooks `build_config`, `build_model`, `forward`, `evaluate`, `describe` and `save_pictures`,
    and may extend `load_datasets`, `draw` and `loss_weights`.
    """

    pictures: ClassVar[tuple[str, ...]]  # the files of `save_pictures`

    def __init__(self, args: CommonArguments):
        take_token(args)
        self.args = args
        self.config = self.build_config()
        state = find_state(args)
        check_output_dir(args)
        self.accelerator = Accelerator(
            cpu=args.cpu,
            mixed_precision=args.mixed_precision,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
        )
        self._check_launch()
        set_seed(args.seed)
        self._build_data()
        model = self.build_model()
        self.model, self.optimizer = self.accelerator.prepare(model, build_optimizer(model, args))
        self.total_steps = self._count_steps()
        self.schedule = build_schedule(self.optimizer, args, self.total_steps)
        self.accelerator.register_for_checkpointing(self.schedule)
        self.step = 0
        if state:
            self.step = load_state(self.accelerator, args, state, self.images_per_step, self.train_loader)
        self.last_loss: float | None = None
        self.accelerator.wait_for_everyone()
        self.publisher: Publisher | None = None
        if self.accelerator.is_main_process:
            if args.push_to_hub:
                self.publisher = Publisher(args)
            prepare_output_dir(args, self.pictures)
        self.accelerator.wait_for_everyone()

    # What a task adds

    @abstractmethod
    def build_config(self) -> EnergyTransformerConfig:
        """The model's configuration, and every check of the options that needs no data."""

    def load_datasets(self) -> tuple[datasets.DatasetDict, str, str | None]:
        """Splits `train` and `validation`, the column of images, and that of labels or None; may complete `config`."""
        args = self.args
        splits, image_column = load_image_datasets(
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
        return splits, image_column, None

    @abstractmethod
    def build_model(self) -> PreTrainedModel:
        """A model of `config`, new or from `model_name_or_path`; parameters to be trained have `requires_grad`."""

    def draw(self, num_images: int, generator: torch.Generator) -> Batch:
        """The random numbers of a step, for all its images: tensors whose first dimension is `num_images`.

        Extend it with a task's own, drawn from the same generator (which lives on the device).
        """
        return {"flip": torch.rand(num_images, generator=generator, device=generator.device)}

    def loss_weights(self, draws: Batch) -> torch.Tensor | None:
        """How much each image of a step counts in the mean that is the loss, (num_images,); None: all the same."""
        return None

    @abstractmethod
    def forward(self, batch: Batch, draws: Batch, **options) -> ModelOutput:
        """Apply `model` (through which `options` go) to a batch of augmented uint8 images and its slice of `draws`;
        `loss` is the mean over the batch, weighted by `loss_weights`."""

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Held-out figures, named `eval_…`, the same on every process."""

    @abstractmethod
    def describe(self, results: dict[str, float]) -> str:
        """What `evaluate` found, in a few words for the log."""

    @abstractmethod
    def save_pictures(self, model: Any, folder: Path) -> None:
        """Write `pictures` of the trained model, which `build_model` made; called by the main process."""

    # The run

    def run(self) -> dict[str, float | None]:
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
            "train_samples_per_second": self.images_per_step * (self.step - first_step) / max(seconds, 1e-9),
        }
        if self.accelerator.is_main_process:
            self._save_results(results)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        if self.publisher:
            print(f"on the Hub: {self.publisher.finish(self._newest_state())}")
        return results

    @property
    def images_per_step(self) -> int:
        args = self.args
        return args.per_device_train_batch_size * self.accelerator.num_processes * args.gradient_accumulation_steps

    def _check_launch(self) -> None:
        accelerator = self.accelerator
        if accelerator.device.type == "cpu" and accelerator.mixed_precision == "fp16":
            raise UserError("mixed_precision fp16 needs a GPU: on the CPU, use bf16 or no")
        if accelerator.num_processes == 1 and _several_processes_were_asked_for():
            logger.warning(
                "`accelerate launch --cpu` starts one process, however many are asked for: "
                "for more, see configuration/accelerate/multi_cpu.yaml"
            )

    def _build_data(self) -> None:
        self.processor = build_image_processor(self.config.image_height_width, self.config.num_channels)
        with self.accelerator.main_process_first():
            splits, image_column, label_column = self.load_datasets()
            train_images, self.eval_images = image_tensors(splits, image_column, label_column, self.processor)
        self.train_samples = len(train_images)
        self.train_loader = build_train_loader(train_images, self.args, self.accelerator)
        self.eval_loader = self.accelerator.prepare(build_eval_loader(self.eval_images, self.args))

    def _count_steps(self) -> int:
        args, steps_per_epoch = self.args, self.train_loader.steps_per_epoch
        if steps_per_epoch is None:
            if args.max_train_steps is None:
                raise UserError("max_train_steps is needed where the number of training images is not known")
            for name in ("eval_steps", "checkpointing_steps"):
                if getattr(args, name) == "epoch":
                    raise UserError(f"{name} must be a number where the number of training images is not known")
            return args.max_train_steps
        return args.max_train_steps or math.ceil(args.num_train_epochs * steps_per_epoch)

    def _train(self) -> float:
        started, first_step = time.perf_counter(), self.step
        progress = tqdm(total=self.total_steps, initial=self.step, desc="training", unit="step")
        batches = iter(self.train_loader)
        while self.step < self.total_steps:
            loss = self._optimizer_step(batches)
            self.step += 1
            progress.update()
            if self.step % 20 == 0 or self.step == self.total_steps:
                self._report(progress, loss, (self.step - first_step) / (time.perf_counter() - started))
            if self._is_due(self.args.checkpointing_steps):
                self._check_loss(loss)
                save_state(self.accelerator, self.args, self.step, self.images_per_step, self.train_loader)
                self._publish_progress()
            if self._is_due(self.args.eval_steps) and self.step < self.total_steps:
                results = self._evaluate()
                if self.accelerator.is_main_process:
                    progress.write(f"step {self.step}: {self.describe(results)}")
        progress.close()
        return time.perf_counter() - started

    def _optimizer_step(self, batches: Iterator[Batch]) -> torch.Tensor:
        """Returns this process's share of the loss: the mean over all processes is the loss of the step."""
        self.model.train()
        generator = step_generator(self.args.seed, self.step, self.accelerator.device)
        draws = self.draw(self.images_per_step, generator)
        loss = torch.zeros((), device=self.accelerator.device)
        for number in range(self.args.gradient_accumulation_steps):
            loss += self._accumulate(next(batches), draws, number)
        return loss / self.args.gradient_accumulation_steps

    def _accumulate(self, batch: Batch, draws: Batch, number: int) -> torch.Tensor:
        part = batch_slice(
            number,
            self.args.per_device_train_batch_size,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        own = {name: values[part] for name, values in draws.items()}
        if self.args.horizontal_flip:
            batch["image"] = flip(batch["image"], own["flip"])
        with self.accelerator.accumulate(self.model):
            loss = self.forward(batch, own).loss
            weights = self.loss_weights(draws)
            if weights is not None:  # relative to the mean over the batches, which is how they are averaged
                loss = loss * (weights[part].mean() / weights.mean())
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)
            self.optimizer.step()
            if self.accelerator.sync_gradients and not self.accelerator.optimizer_step_was_skipped:
                self.schedule.step()
            self.optimizer.zero_grad()
        return loss.detach()

    def _evaluate(self) -> dict[str, float]:
        self.model.eval()
        results = self.evaluate()
        if not all(map(math.isfinite, results.values())):
            raise UserError(f"the held-out error is not finite at step {self.step}: {_ADVICE}")
        return results

    def _check_loss(self, loss: torch.Tensor) -> float:
        value = self.accelerator.reduce(loss, "mean").item()
        if not math.isfinite(value):
            raise UserError(f"the loss is {value} at step {self.step}: {_ADVICE}")
        return value

    def _report(self, progress, loss: torch.Tensor, steps_per_second: float) -> None:
        self.last_loss = self._check_loss(loss)
        progress.set_postfix(
            {"loss": f"{self.last_loss:.4f}", "images/s": f"{steps_per_second * self.images_per_step:.0f}"}
        )

    def _is_due(self, every: str | None) -> bool:
        interval = self.train_loader.steps_per_epoch if every == "epoch" else int(every or 0)
        return bool(interval) and self.step % interval == 0

    def _save_model(self) -> None:
        """Model and processor, written beside the folder's files and moved into their places when complete."""
        folder = Path(self.args.output_dir)
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as temporary:
            self.accelerator.unwrap_model(self.model).save_pretrained(temporary)
            self.processor.save_pretrained(temporary)
            for path in Path(temporary).iterdir():
                path.replace(folder / path.name)

    def _publish_progress(self) -> None:
        if self.publisher and self.publisher.during_training:
            self._save_model()
            self.publisher.push(f"Training in progress, step {self.step}", self._newest_state())

    def _newest_state(self) -> Path | None:
        return next(reversed(saved_states(Path(self.args.output_dir))), None)

    def _save_results(self, results: dict) -> None:
        folder = Path(self.args.output_dir)
        model = self.accelerator.unwrap_model(self.model)
        self.save_pictures(model, folder / "samples")
        record = {
            **results,
            "train_samples": self.train_samples,
            "num_parameters": model.num_parameters(),
            "num_processes": self.accelerator.num_processes,
            "device": self.accelerator.device.type,
            "device_name": device_name(self.accelerator.device),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
            "arguments": asdict(self.args),
        }
        temporary = folder / ".all_results.json"
        temporary.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")
        temporary.replace(folder / "all_results.json")
        repo_id = self.publisher.repo_id if self.publisher else None
        write_card(folder, repo_id, self.args.license)
