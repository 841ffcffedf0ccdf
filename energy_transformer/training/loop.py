"""The training loop that all tasks share, from options to a finished output folder.

The result does not depend on how a step's images are divided over processes and accumulated batches: their order is
that of `data.StepSampler`, and the random numbers of a step are drawn for all its images at once, from a generator
that the seed and the step determine; each batch takes its slice of both.
"""

import copy
import math
import os
import platform
import signal
import tempfile
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import torch
import transformers
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import DistributedType, InitProcessGroupKwargs, set_seed, tqdm
from safetensors import SafetensorError
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..configuration_energy_transformer import EnergyTransformerConfig
from ..data import Augmentation, batch_slice, broken_images_report, load_image_datasets
from ..data.image_processing import build_image_processor
from ..hub.cards import write_card
from ..utils.errors import UserError
from .arguments import CommonArguments
from .checkpoints import Checkpoints, find_state, newest_state, ranked_states, write_json
from .hardware import device_name
from .interruption import Interruption
from .loaders import Batch, build_eval_loader, build_train_loader, image_tensors
from .monitoring import StepTimer, TrainingLog, start_tracker, tracker_name
from .optimization import build_optimizer, build_schedule
from .output_folder import check_output_dir, continues_in, prepare_output_dir
from .publishing import Publisher, take_token
from .sharding import is_sharded, scalars_to_vectors, shard_on_cpu, vectors_to_scalars

logger = get_logger(__name__)
_ADVICE = "try a smaller learning_rate, a smaller max_grad_norm or mixed_precision no"


def step_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The randomness of an optimizer step: a function of these numbers alone, the same on every process."""
    state = np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0] >> np.uint64(1)))


def _several_processes_were_asked_for() -> bool:
    """Whether `accelerate launch --cpu --num_processes N` with N > 1 started this one process."""
    return os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in os.environ


class Training(ABC):
    """One run of a task; [`run`] trains, evaluates and writes the output folder.

    A task implements the hooks `build_config`, `build_model`, `forward`, `evaluate`, `describe` and `save_pictures`,
    and may extend `load_datasets`, `draw` and `loss_weights`.
    """

    pictures: ClassVar[tuple[str, ...]]  # the files of `save_pictures`
    metric: ClassVar[str]  # the figure of `evaluate` that tells the best of the saved states
    minimize: ClassVar[bool] = True  # whether it is the least

    def __init__(self, args: CommonArguments):
        take_token(args)
        self.args = args
        self.augment = Augmentation(args.random_resized_crop, args.horizontal_flip, args.color_jitter)
        self.config = self.build_config()
        self.folder = Path(args.output_dir)
        self.accelerator = Accelerator(
            cpu=args.cpu,
            mixed_precision=args.mixed_precision,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            log_with=tracker_name(args),
            project_dir=self.folder / "runs",
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=args.ddp_timeout))],
        )
        shard_on_cpu(self.accelerator)
        state = find_state(self.folder, args.resume_from_checkpoint)
        check_output_dir(args, state)
        self._check_launch()
        self.publisher: Publisher | None = None
        if args.push_to_hub and self.accelerator.is_main_process:
            self.publisher = Publisher(args)
        self._build_data()
        self.total_steps = self._count_steps()
        self._check_best_is_measured()
        set_seed(args.seed)  # after the data, which draws numbers only where it is decoded for the first time
        self._build_model()
        self.timer, self.grad_norm = StepTimer(), None
        self.last_loss: float | None = None
        self.checkpoints = Checkpoints(
            self.accelerator,
            self.folder,
            self.train_loader,
            run={
                "seed": args.seed,
                "dataset_name": args.dataset_name,
                "dataset_config_name": args.dataset_config_name,
                "train_dir": args.train_dir,
                "train_val_split": args.train_val_split,
                "max_train_samples": args.max_train_samples,
                "images_per_step": self.images_per_step,
                "shuffle_buffer_size": args.shuffle_buffer_size if args.streaming else None,
            },
            run_id=state.run_id if state else uuid.uuid4().hex[:8],
            limit=args.checkpoints_total_limit,
            minimize=self.minimize,
        )
        self.step = self.checkpoints.load(state) if state else 0
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            prepare_output_dir(self.folder, continues_in(self.folder, state), self.pictures)
        self.accelerator.wait_for_everyone()
        start_tracker(self.accelerator, args, self.checkpoints.run_id, self.step)
        self.log = TrainingLog(self.accelerator, self.folder, self.step)

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
            streaming=args.streaming,
        )
        return splits, image_column, None

    @abstractmethod
    def build_model(self) -> PreTrainedModel:
        """A model of `config`, new or from `model_name_or_path`; parameters to be trained have `requires_grad`."""

    def draw(self, num_images: int, generator: torch.Generator) -> Batch:
        """The random numbers of a step, for all its images: tensors whose first dimension is `num_images`.

        Extend it with a task's own, drawn from the same generator (which lives on the device).
        """
        size = (num_images, Augmentation.num_uniform)
        return {"augmentation": torch.rand(size, generator=generator, device=generator.device)}

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
        """Train, evaluate, save. Returns what stands in `all_results.json`.

        Raises:
            UserError: when a loss or a figure is not finite, or the model cannot be written.
            SystemExit: 143 after SIGTERM and 130 after SIGINT, when the step is done and its state saved.
        """
        first_step = self.step
        with Interruption(self.accelerator) as interruption:
            self._train(interruption)
        self.accelerator.wait_for_everyone()
        broken_images = self._report_broken_images()  # before an earlier state tells of fewer
        if self.args.load_best_model_at_end:
            self._load_best()
        seconds = self.timer.seconds
        with self._evaluated_weights():
            results: dict[str, float | None] = {
                **self._evaluate(),
                "train_loss": self.last_loss,
                "train_steps": self.step,
                "train_first_step": first_step,  # seconds and images a second are those since then
                "train_seconds": seconds,
                "train_samples_per_second": self.images_per_step * (self.step - first_step) / max(seconds, 1e-9),
                "train_data_wait_share": self.timer.data_share,
                "train_broken_images": broken_images,
                "eval_broken_images": self.eval_images.broken_images()[0],
            }
            model = self._whole_model()
            if self.accelerator.is_main_process:
                self._save(model, results)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        if self.publisher:
            print(f"on the Hub: {self.publisher.finish(newest_state(self.folder))}")
        return results

    def _load_best(self) -> None:
        """The best of the saved states that are whole; the model stays as it is where none is."""
        for state in ranked_states(self.folder, self.minimize):
            try:
                state.verify()
            except UserError as error:
                logger.warning(f"load_best_model_at_end: passed over: {error}")
            else:
                logger.info(f"the best state is {state.folder.name}")
                self.checkpoints.load(state)
                return
        logger.warning("load_best_model_at_end: there is no saved state with a held-out figure, the last is kept")

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

        if self.args.tf32 and accelerator.device.type != "cuda":
            raise UserError("tf32 needs an NVIDIA GPU")
        if is_sharded(self.accelerator) and (self.args.ema_decay or self.args.sample_steps):
            raise UserError(
                "ema_decay and sample_steps need the whole model on each process: not with FSDP or DeepSpeed"
            )
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.args.tf32
        if accelerator.distributed_type == DistributedType.DEEPSPEED:  # it does not see our loader
            config = accelerator.state.deepspeed_plugin.deepspeed_config
            config["train_micro_batch_size_per_gpu"] = self.args.per_device_train_batch_size

    def _build_model(self) -> None:
        args, model = self.args, self.build_model()
        self.average = None
        if args.ema_decay is not None:
            average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(args.ema_decay))
            self.average = average.to(self.accelerator.device).requires_grad_(False)
            self.accelerator.register_for_checkpointing(self.average)
        if args.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        if args.compile:
            model.compile()
        self.model_class = type(model)
        sharded = self.accelerator.distributed_type == DistributedType.FSDP
        self.vectors = scalars_to_vectors(model) if sharded else set()
        self.model, self.optimizer = self.accelerator.prepare(model, build_optimizer(model, args))
        self.schedule = build_schedule(self.optimizer, args, self.total_steps)
        self.accelerator.register_for_checkpointing(self.schedule)

    def _build_data(self) -> None:
        self.processor = build_image_processor(self.config.image_height_width, self.config.num_channels)
        with self.accelerator.main_process_first():
            splits, image_column, label_column = self.load_datasets()
            train_images, self.eval_images = image_tensors(
                splits, image_column, label_column, self.processor, self.args
            )
        if train_images.is_cropped:
            self.augment = replace(self.augment, random_resized_crop=None)
        self.train_samples = None if self.args.streaming else len(train_images)
        self.known_broken_images = train_images.broken_images()[0]
        self.train_loader = build_train_loader(train_images, self.args, self.accelerator)
        self.eval_loader = self.accelerator.prepare(build_eval_loader(self.eval_images, self.args))

    def _report_broken_images(self) -> int:
        """Of training, on all processes; tells those that were found as images were read."""
        self.train_loader.gather_broken_images()
        count, reasons = self.train_loader.images.broken_images()
        if count > self.known_broken_images:
            logger.warning(f"training {broken_images_report(count, reasons)}")
        return count

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

    def _check_best_is_measured(self) -> None:
        """See that a state is saved where it is evaluated, without which none can be the best."""
        args = self.args
        if not args.load_best_model_at_end:
            return
        first = math.lcm(self._interval(args.eval_steps), self._interval(args.checkpointing_steps))
        if first > self.total_steps:
            raise UserError(
                f"load_best_model_at_end: eval_steps {args.eval_steps} and checkpointing_steps "
                f"{args.checkpointing_steps} meet at step {first} for the first time, after the last of "
                f"{self.total_steps}: let one be a multiple of the other"
            )

    def _train(self, interruption: Interruption) -> None:
        args = self.args
        progress = tqdm(total=self.total_steps, initial=self.step, desc="training", unit="step")
        batches = iter(self.train_loader)
        reported = copy.copy(self.timer)
        while self.step < self.total_steps:
            is_last = self.step + 1 == self.total_steps
            with_energies = is_last or (self.step + 1) % args.logging_steps == 0
            with self.timer.step():
                loss, energies = self._optimizer_step(batches, with_energies)
                if with_energies or self.accelerator.num_processes > 1:  # where the device is waited for next
                    self._wait_for_device()
            self.step += 1
            progress.update()
            if with_energies:
                self._report(progress, loss, energies, self.timer.figures(reported, self.images_per_step))
                reported = copy.copy(self.timer)
            metric = None
            if self._is_due(args.eval_steps) and (not is_last or args.load_best_model_at_end):
                metric = self._evaluate_midway(progress)
            if args.sample_steps and self.step % args.sample_steps == 0:
                self._save_samples()
            signal_number = interruption.agreed()
            if self._is_due(args.checkpointing_steps) or signal_number:
                self._check_finite(loss)
                saved = self.checkpoints.save(self.step, metric)
                if saved:
                    self._publish_progress()
            if signal_number:
                self._leave(progress, signal_number, saved)
        progress.close()

    def _wait_for_device(self) -> None:
        """Let a step's time be that of its work, not of handing it to the device."""
        if self.accelerator.device.type != "cpu":
            torch.accelerator.synchronize()

    def _evaluate_midway(self, progress) -> float:
        with self._evaluated_weights():
            results = self._evaluate()
        self.log.write(self.step, results)
        if self.accelerator.is_main_process:
            progress.write(f"step {self.step}: {self.describe(results)}")
        return results[self.metric]

    def _leave(self, progress, number: signal.Signals, saved: bool) -> None:
        progress.close()
        state = "its state is saved" if saved else "its state could not be saved"
        if self.accelerator.is_main_process:
            print(
                f"{number.name}: stopped after step {self.step}, {state}: --resume_from_checkpoint latest", flush=True
            )
        self.accelerator.end_training()
        raise SystemExit(128 + number)

    def _optimizer_step(self, batches: Iterator[Batch], with_energies: bool):
        """Returns this process's share of the loss (the mean over all processes is the loss of the step), and the
        energies of a batch, before and after the descent, where they are asked for."""
        self.model.train()
        generator = step_generator(self.args.seed, self.step, self.accelerator.device)
        draws = self.draw(self.images_per_step, generator)
        total = torch.zeros((), device=self.accelerator.device)
        energies = None
        for number in range(self.args.gradient_accumulation_steps):
            with self.timer.data():
                batch = next(batches)
            loss, energies = self._accumulate(batch, draws, number, with_energies)
            total += loss
        if self.average is not None:
            self.average.update_parameters(self.accelerator.unwrap_model(self.model))
        return total / self.args.gradient_accumulation_steps, energies

    def _accumulate(self, batch: Batch, draws: Batch, number: int, with_energies: bool):
        part = batch_slice(
            number,
            self.args.per_device_train_batch_size,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        own = {name: values[part] for name, values in draws.items()}
        batch["image"] = self.augment(batch["image"], own["augmentation"])
        with self.accelerator.accumulate(self.model):
            outputs = self.forward(batch, own, **({"output_energies": True} if with_energies else {}))
            loss = outputs.loss
            weights = self.loss_weights(draws)
            if weights is not None:  # relative to the mean over the batches, which is how they are averaged
                loss = loss * (weights[part].mean() / weights.mean())
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.grad_norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)
            self.optimizer.step()
            if self.accelerator.sync_gradients and not self.accelerator.optimizer_step_was_skipped:
                self.schedule.step()
            self.optimizer.zero_grad()
        energies = outputs.energies.detach().float().mean(0)[[0, -1]] if with_energies else None
        return loss.detach(), energies

    @contextmanager
    def _evaluated_weights(self) -> Iterator[None]:
        """`model` is the moving average meanwhile, where there is one."""
        trained = self.model
        if self.average is not None:
            self.model = self.average.module
        try:
            yield
        finally:
            self.model = trained

    def _evaluate(self) -> dict[str, float]:
        self.model.eval()
        results = self.evaluate()
        if not all(map(math.isfinite, results.values())):
            raise UserError(f"the held-out error is not finite at step {self.step}: {_ADVICE}")
        return results

    def _check_finite(self, loss: torch.Tensor) -> float:
        """The loss over all processes. The gradient's norm is looked at too, as it has gone into the weights."""
        value = self.accelerator.reduce(loss, "mean").item()
        if not math.isfinite(value):
            raise UserError(f"the loss is {value} at step {self.step}: {_ADVICE}")
        norm = self._norm()
        if not math.isfinite(norm) and self.accelerator.scaler is None:
            raise UserError(f"the gradient's norm is {norm} at step {self.step}: {_ADVICE}")
        return value

    def _norm(self) -> float:
        """That of the last gradient; 0 where it is not told, as by DeepSpeed."""
        norm = self.grad_norm.full_tensor() if hasattr(self.grad_norm, "full_tensor") else self.grad_norm
        return 0.0 if norm is None else float(norm)

    def _report(self, progress, loss: torch.Tensor, energies: torch.Tensor, figures: dict[str, float]) -> None:
        self.last_loss = value = self._check_finite(loss)
        before, after = self.accelerator.reduce(energies, "mean").tolist()
        self.log.write(
            self.step,
            {
                "loss": value,
                "learning_rate": max(self.schedule.get_last_lr()),
                "grad_norm": self._norm(),
                "energy_before": before,
                "energy_after": after,
                **figures,
            },
        )
        progress.set_postfix({"loss": f"{value:.4f}", "images/s": f"{figures['images_per_second']:.0f}"})

    def _save_samples(self) -> None:
        with self._evaluated_weights():
            model = self._whole_model()
            if self.accelerator.is_main_process:
                try:
                    self.save_pictures(model.eval(), self.folder / "samples" / f"step-{self.step}")
                except OSError as error:
                    logger.warning(f"step {self.step}: the pictures could not be written: {error.strerror or error}")
        self.accelerator.wait_for_everyone()

    def _interval(self, every: str | None) -> int:
        """In steps; 0 for never."""
        return (self.train_loader.steps_per_epoch or 0) if every == "epoch" else int(every or 0)

    def _is_due(self, every: str | None) -> bool:
        interval = self._interval(every)
        return bool(interval) and self.step % interval == 0

    def _whole_model(self) -> PreTrainedModel:
        """The model on this process; where it is sharded, a copy with all weights on the main process alone."""
        if not is_sharded(self.accelerator):
            return self.accelerator.unwrap_model(self.model)
        weights = self.accelerator.get_state_dict(self.model)
        model = self.model_class(self.config)
        if self.accelerator.is_main_process:
            model.load_state_dict(vectors_to_scalars(weights, self.vectors))
        return model.to(self.accelerator.device)

    def _save(self, model: PreTrainedModel, results: dict[str, float | None]) -> None:
        try:
            self._save_model(model)
            self._save_results(model, results)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise UserError(f"output_dir {self.folder}: the model could not be written: {reason}") from error

    def _save_model(self, model: PreTrainedModel) -> None:
        """Model and processor, written beside the folder's files and moved into their places when complete."""
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=self.folder) as temporary:
            model.save_pretrained(temporary)
            self.processor.save_pretrained(temporary)
            for path in Path(temporary).iterdir():
                path.replace(self.folder / path.name)

    def _publish_progress(self) -> None:
        """Begin to push the model as it is now; called by all processes, which gather it together."""
        if not self.args.push_to_hub or self.args.hub_strategy == "end":
            return
        with self._evaluated_weights():
            model = self._whole_model()
            if not self.publisher:
                return
            try:
                self._save_model(model)
                self.publisher.push(f"Training in progress, step {self.step}", newest_state(self.folder))
            except (OSError, SafetensorError) as error:
                logger.warning(f"step {self.step}: nothing is pushed, as the model could not be written: {error}")

    def _save_results(self, model: PreTrainedModel, results: dict[str, float | None]) -> None:
        self.save_pictures(model.eval(), self.folder / "samples")
        record: dict[str, Any] = {
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
        write_json(self.folder / "all_results.json", record)
        write_card(self.folder, self.publisher and self.publisher.repo_id, self.args.license)
