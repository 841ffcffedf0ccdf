"""From options to a run that is ready to train: devices, data, model, saved state and output folder."""

import json
import math
from abc import ABC, abstractmethod
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs, set_seed
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..configuration_energy_transformer import EnergyTransformerConfig
from ..data import Augmentation
from ..data.image_processing import build_image_processor
from ..data.labels import Labels
from ..data.sampling import divide_step
from ..utils.errors import UserError
from .agreement import fingerprint, images_fingerprint, main_decides, require_agreement, require_shared_folder
from .arguments import CommonArguments
from .checkpoints import Checkpoints
from .launch import check_launch, shard_on_cpu
from .loaders import Batch, build_eval_loader, build_train_loader, image_tensors, load_splits
from .monitoring import LOG, StepTimer, start_trackers, trackers
from .optimization import build_optimizer, build_schedule
from .output_folder import RunLock, check_output_dir, continues_in, prepare_output_dir
from .publishing import Publisher, take_token
from .resumption import check_options, command_of, finished_results, keep_paths, last_loss, options_of, record_of
from .saved_states import SavedState, choose_state
from .state_files import StateFiles


class TrainingSetup(ABC):
    """A run before its first step. [`finish.Training`] is the whole of it.

    A task implements the hooks `build_config`, `build_model`, `forward`, `evaluate`, `describe` and `save_pictures`,
    and may extend `load_datasets`, `draw` and `loss_weights`.
    """

    pictures: ClassVar[tuple[str, ...]]  # the files of `save_pictures`
    metric: ClassVar[str]  # the figure of `evaluate` that tells the best of the saved states
    minimize: ClassVar[bool] = True  # whether it is the least
    label_column_name: str | None = None  # of which each label is held out in its share; set by `build_config`
    batch_multiple: int = 1  # of which the images of a batch must be a multiple

    def __init__(self, args: CommonArguments):
        self.lock = RunLock()
        try:
            self._set_up(args)
        except BaseException:
            self.lock.give_up()
            raise

    def _set_up(self, args: CommonArguments) -> None:
        take_token(args)
        self.args = args
        self.folder = Path(args.output_dir)
        self.augment = Augmentation(args.random_resized_crop, args.horizontal_flip, args.color_jitter)
        self.config = self.build_config()
        self._start_processes()
        state = self._choose_state()
        self.publisher = Publisher(args) if args.push_to_hub and self.accelerator.is_main_process else None
        self._build_data()
        self.total_steps = self._count_steps()
        self.finished: dict[str, Any] | None = None  # the results of a run that had ended before
        if state:
            self.finished = main_decides(self.accelerator, lambda: finished_results(args, state, self.total_steps))
        if self.finished:
            return
        self._check_best_is_measured()
        set_seed(args.seed)  # after the data, which draws numbers only where it is decoded for the first time
        self._build_model()
        self._build_checkpoints(state)
        self.step = self._take_up(state) if state else 0
        self.last_loss = last_loss(self.folder / LOG, self.step)
        self.timer, self.grad_norm = StepTimer(self.accelerator.device), None
        self._prepare_folder(state)
        start_trackers(self.accelerator, args, self.checkpoints.run_id, self.step)

    # What a task adds

    @abstractmethod
    def build_config(self) -> EnergyTransformerConfig:
        """The model's configuration, and every check of the options that needs no data."""

    def load_datasets(self) -> tuple[datasets.DatasetDict, str, Labels | None]:
        """Splits `train` and `validation`, the column of images, and the labels or None; may complete `config`."""
        args = self.args
        splits, image_column = load_splits(
            args,
            max_train_samples=args.max_train_samples,
            max_eval_samples=args.max_eval_samples,
            streaming=args.streaming,
            label_column_name=self.label_column_name,
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

    # The set-up

    @property
    def images_per_step(self) -> int:
        args = self.args
        return args.per_device_train_batch_size * self.accelerator.num_processes * args.gradient_accumulation_steps

    def _start_processes(self) -> None:
        """The accelerator; see that all processes are given the same, and that nobody else uses their folder."""
        args = self.args
        self.accelerator = Accelerator(
            cpu=args.cpu,
            mixed_precision=args.mixed_precision,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            log_with=trackers(args),
            project_dir=self.folder / "runs",
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=args.ddp_timeout))],
        )
        shard_on_cpu(self.accelerator)
        self._divide_step()
        check_launch(self.accelerator, args)
        apart = ("dataloader_num_workers", "max_cached_bytes")  # what a machine may need for itself
        values = {f"value of {name}": value for name, value in asdict(args).items() if name not in apart}
        require_agreement(self.accelerator, values)
        main_decides(self.accelerator, lambda: self.lock.acquire(self.folder))
        require_shared_folder(self.accelerator, self.folder)

    def _choose_state(self) -> SavedState | None:
        """The state that the run goes on from, if any; `record` is what its own states will tell of its options."""
        args, accelerator = self.args, self.accelerator
        state = choose_state(accelerator, self.folder, args.resume_from_checkpoint, args.trust_state)
        main_decides(accelerator, lambda: check_output_dir(args, state))
        saved = options_of(state) if state else None
        if state and saved:
            main_decides(accelerator, lambda: check_options(args, self.config, state.folder, saved))
        self.record = record_of(args, self.config, saved, state.step if state else 0)
        return state

    def _divide_step(self) -> None:
        """Let the images of a step be those of `global_batch_size`, whatever the number of processes."""
        args, accelerator = self.args, self.accelerator
        if args.global_batch_size:
            args.per_device_train_batch_size, args.gradient_accumulation_steps = divide_step(
                args.global_batch_size,
                accelerator.num_processes,
                args.per_device_train_batch_size,
                self.batch_multiple,
            )
            accelerator.gradient_accumulation_steps = args.gradient_accumulation_steps

    def _build_data(self) -> None:
        self.processor = build_image_processor(self.config.image_height_width, self.config.num_channels)
        with self.accelerator.main_process_first():
            splits, image_column, labels = self.load_datasets()
            train_images, self.eval_images = image_tensors(splits, image_column, labels, self.processor, self.args)
        if train_images.is_cropped:
            self.augment = replace(self.augment, random_resized_crop=None)
        self.train_samples = None if self.args.streaming else len(train_images)
        self.known_broken_images = train_images.broken_images()[0]
        self.known_broken_held_out = self.eval_images.broken_images()[0]
        self.training_images, held_out = images_fingerprint(train_images), images_fingerprint(self.eval_images)
        self.held_out = f"{held_out}, measured by a model of {fingerprint(self.config.to_dict())}"
        require_agreement(
            self.accelerator,
            {
                "training images": self.training_images,
                "held-out images": held_out,
                "columns": (image_column, labels and labels.column),
                "labels": labels and fingerprint(labels.names),
                "configuration of the model": json.loads(self.config.to_json_string()),
            },
        )
        self.train_loader = build_train_loader(train_images, self.args, self.accelerator)
        self.eval_loader = self.accelerator.prepare(build_eval_loader(self.eval_images, self.args))

    def _build_model(self) -> None:
        args, model = self.args, self.build_model()
        self.average = None
        if args.ema_decay is not None:
            average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(args.ema_decay))
            self.average = average.to(self.accelerator.device).requires_grad_(False)
        if args.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        if args.compile:
            model.compile()
        self.model_class = type(model)
        if self.accelerator.distributed_type == DistributedType.FSDP:
            model.scalars_to_vectors()
        self.model, self.optimizer = self.accelerator.prepare(model, build_optimizer(model, args))
        self.schedule = build_schedule(self.optimizer, args, self.total_steps)

    def _build_checkpoints(self, state: SavedState | None) -> None:
        trained = (self.model, self.optimizer, self.schedule, self.average)
        self.checkpoints = Checkpoints(
            self.accelerator,
            self.folder,
            StateFiles(self.accelerator, *trained, self.train_loader, self.record),
            run={"images_per_step": self.images_per_step, "training images": self.training_images},
            held_out=self.held_out,
            resumed=state,
            limit=self.args.checkpoints_total_limit,
            minimize=self.minimize,
        )

    def _take_up(self, state: SavedState) -> int:
        """Go on from a state, with the decays and betas of this run, which a sharded state replaces; its step."""
        own = [{name: group[name] for name in ("weight_decay", "betas")} for group in self.optimizer.param_groups]
        step = self.checkpoints.load(state)
        for group, options in zip(self.optimizer.param_groups, own, strict=True):
            group.update(options)
        return step

    def _prepare_folder(self, state: SavedState | None) -> None:
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            prepare_output_dir(self.folder, continues_in(self.folder, state), self.pictures)
            keep_paths(self.args)
            if state:
                print(f"resumed at step {self.step} of {self.total_steps}: {command_of(self.args)}", flush=True)
        self.accelerator.wait_for_everyone()

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

    def _interval(self, every: str | None) -> int:
        """In steps; 0 for never."""
        return (self.train_loader.steps_per_epoch or 0) if every == "epoch" else int(every or 0)
