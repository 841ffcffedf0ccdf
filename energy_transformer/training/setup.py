"""From options to a run that is ready to train: devices, data, model, saved state and output folder."""

import json
import math
from abc import ABC, abstractmethod
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs, set_seed
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from ..data.sampling import divide_step
from ..utils.errors import UserError
from .agreement import fingerprint, main_decides, require_agreement, require_shared_folder
from .arguments import CommonArguments
from .checkpoints import Checkpoints
from .launch import check_launch, shard_on_cpu
from .loaders import Batch, TrainLoader
from .monitoring import LOG, StepTimer, start_trackers, trackers
from .optimization import build_optimizer, build_schedule
from .output_folder import RunLock, check_output_dir, continues_in, prepare_output_dir
from .publishing import Publisher, take_token
from .resumption import check_options, command_of, finished_results, keep_paths, last_loss, options_of, record_of
from .saved_states import SavedState, choose_state
from .state_files import StateFiles


class TrainingSetup(ABC):
    """A run before its first step. [`finish.Training`] is the whole of it.

    A task implements the hooks `build_config`, `load_data`, `build_loaders`, `fingerprint`, `build_model`, `draw`,
    `forward`, `evaluate`, `describe` and `save_pictures`, and may extend the others. [`image_training.ImageTraining`]
    brings what tasks on images share.
    """

    unit: ClassVar[str] = "images"  # what a batch consists of, in words
    pictures: ClassVar[tuple[str, ...]]  # the files of `save_pictures`
    metric: ClassVar[str]  # the figure of `evaluate` that tells the best of the saved states
    minimize: ClassVar[bool] = True  # whether it is the least
    batch_multiple: int = 1  # of which the samples of a batch must be a multiple
    processor: Any = None  # what is saved beside the model and makes its inputs, with a `save_pretrained`
    train_samples: int | None = None  # where their number is known; set by `load_data`

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
    def build_config(self) -> PreTrainedConfig:
        """The model's configuration, and every check of the options that needs no data."""

    @abstractmethod
    def load_data(self) -> tuple[Any, Any]:
        """The training and the held-out samples; completes `config` by what only the data tell."""

    @abstractmethod
    def build_loaders(self, train: Any, held_out: Any) -> tuple[TrainLoader, DataLoader]:
        """What yields this process's batches of training, and what an `Accelerator` divides in evaluation."""

    @abstractmethod
    def fingerprint(self, samples: Any) -> str:
        """The number of samples of `load_data`, and a digest that tells them from others."""

    def agreed(self) -> dict[str, Any]:
        """What else of the data all processes must have found alike, by name."""
        return {}

    @abstractmethod
    def build_model(self) -> PreTrainedModel:
        """A model of `config`, new or from `model_name_or_path`; parameters to be trained have `requires_grad`."""

    @abstractmethod
    def draw(self, num_samples: int, generator: torch.Generator) -> Batch:
        """The random numbers of a step, for all its samples: tensors whose first dimension is `num_samples`, drawn
        from the generator (which lives on the device)."""

    def augmented(self, batch: Any, draws: Batch) -> Any:
        """A batch of training changed at random, by its slice of `draws`."""
        return batch

    def loss_weights(self, draws: Batch) -> torch.Tensor | None:
        """How much each sample of a step counts in the mean that is the loss, (num_samples,); None: all the same."""
        return None

    @abstractmethod
    def forward(self, batch: Any, draws: Batch, **options) -> ModelOutput:
        """Apply `model` (through which `options` go) to an augmented batch and its slice of `draws`; `loss` is the
        mean over the batch, weighted by `loss_weights`."""

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Held-out figures, named `eval_…`, the same on every process."""

    @abstractmethod
    def describe(self, results: dict[str, float]) -> str:
        """What `evaluate` found, in a few words for the log."""

    @abstractmethod
    def save_pictures(self, model: Any, folder: Path) -> None:
        """Write `pictures` of the trained model, which `build_model` made; called by the main process."""

    def training_data_figures(self) -> dict[str, float | None]:
        """What the results tell of the training data after the last step; called by all processes."""
        return {}

    def held_out_data_figures(self) -> dict[str, float | None]:
        """The same of the held-out data, after each evaluation."""
        return {}

    # The set-up

    @property
    def samples_per_step(self) -> int:
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
        """Let the samples of a step be those of `global_batch_size`, whatever the number of processes."""
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
        with self.accelerator.main_process_first():
            train, held_out = self.load_data()
        self.training_data, held_out_data = self.fingerprint(train), self.fingerprint(held_out)
        self.held_out = f"{held_out_data}, measured by a model of {fingerprint(self.config.to_dict())}"
        require_agreement(
            self.accelerator,
            {
                f"training {self.unit}": self.training_data,
                f"held-out {self.unit}": held_out_data,
                **self.agreed(),
                "configuration of the model": json.loads(self.config.to_json_string()),
            },
        )
        self.train_loader, eval_loader = self.build_loaders(train, held_out)
        self.eval_loader = self.accelerator.prepare(eval_loader)

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
            run={f"{self.unit}_per_step": self.samples_per_step, f"training {self.unit}": self.training_data},
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
                raise UserError(f"max_train_steps is needed where the number of training {self.unit} is not known")
            for name in ("eval_steps", "checkpointing_steps"):
                if getattr(args, name) == "epoch":
                    raise UserError(f"{name} must be a number where the number of training {self.unit} is not known")
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
