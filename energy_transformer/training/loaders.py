"""Where a run's batches come from. Images are uint8 until they are on the device."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import datasets
import torch
from accelerate import Accelerator, PartialState
from accelerate.logging import get_logger
from accelerate.utils import gather_object, send_to_device
from torch.utils.data import DataLoader
from transformers.image_processing_backends import PilBackend

from ..data import ImageStream, ImageTensors, StepSampler, StreamLoader, broken_images_report, load_image_datasets
from ..data.labels import Labels
from ..utils.errors import UserError
from ..utils.interruption import leave_signals_to_parent
from .arguments import CommonArguments
from .checkpoint_evaluation_arguments import EvaluationArguments
from .image_arguments import ImageArguments

logger = get_logger(__name__)
Batch = dict[str, torch.Tensor]


class TrainLoader(Protocol):
    """What the loop asks of a source of training batches.

    Iterating yields this process's batches on its device, epoch after epoch without an end, from the position that
    `state_dict` tells and `load_state_dict` sets. All processes and accumulated batches of a step together form its
    effective batch.
    """

    @property
    def steps_per_epoch(self) -> int | None:
        """None when it is not known, as in a stream."""

    def __iter__(self) -> Iterator[Any]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        """Go on from the position of all processes that saved, however many there are now."""


class ImageTrainLoader(TrainLoader, Protocol):
    """One of images: {"image": uint8 (B, C, H, W)} and "label" (B,) where there are labels."""

    @property
    def images(self) -> ImageTensors | ImageStream: ...

    def gather_broken_images(self) -> None:
        """Let `images.broken_images()` tell what all processes have found; called by all of them."""


class MapTrainLoader:
    """Batches of a dataset with random access, as its `collate` makes them, in the order of a [`StepSampler`]. Its
    position is a step alone, so that it can be taken up by another number of processes."""

    def __init__(self, images: Any, sampler: StepSampler, num_workers: int, device: torch.device):
        self.images, self.sampler, self.device = images, sampler, device
        self.steps_per_epoch = sampler.steps_per_epoch
        self._loader = DataLoader(
            images,
            batch_sampler=sampler,
            num_workers=num_workers,
            collate_fn=images.collate,
            worker_init_fn=leave_signals_to_parent,
            pin_memory=device.type == "cuda",
        )
        self._batches = 0  # yielded so far; a loader with workers reads ahead of it

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            self._batches += 1
            yield send_to_device(batch, self.device, non_blocking=True)

    def gather_broken_images(self) -> None:
        share_broken_images(self.images)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._batches // self.sampler.batches_per_step}

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        self.sampler.step = states[0]["step"]
        self._batches = self.sampler.step * self.sampler.batches_per_step


def share_broken_images(images: ImageTensors) -> None:
    """Let `images.broken_images()` tell what all processes have found as they read; called by all of them."""
    images.mark_broken(torch.tensor(gather_object(images.broken_rows())))


def build_train_loader(
    images: ImageTensors | ImageStream, args: ImageArguments, accelerator: Accelerator
) -> ImageTrainLoader:
    """Raises:
    UserError: when there are too few images for a step.
    """
    if isinstance(images, ImageStream):
        return StreamLoader(images, args.dataloader_num_workers, accelerator.device)
    sampler = build_sampler(len(images), "images", args, accelerator)
    return MapTrainLoader(images, sampler, _workers(images, args), accelerator.device)


def build_sampler(count: int, unit: str, args: CommonArguments, accelerator: Accelerator) -> StepSampler:
    """The order of `count` samples, of which `unit` is the name.

    Raises:
        UserError: when there are too few for a step.
    """
    sampler = StepSampler(
        count,
        args.per_device_train_batch_size,
        args.gradient_accumulation_steps,
        args.seed,
        accelerator.process_index,
        accelerator.num_processes,
    )
    if not sampler.steps_per_epoch:
        raise UserError(
            f"per_device_train_batch_size is {sampler.batch_size}, which makes {sampler.images_per_step} {unit} a step "
            f"with {sampler.num_processes} process(es) and gradient_accumulation_steps={sampler.batches_per_step}, but "
            f"there are only {count} training {unit}"
        )
    return sampler


def build_eval_loader(images: ImageTensors, args: ImageArguments) -> DataLoader:
    """To be prepared by an `Accelerator`, which divides it."""
    return DataLoader(
        images,
        batch_size=args.per_device_eval_batch_size,
        num_workers=_workers(images, args),
        collate_fn=images.collate,
        worker_init_fn=leave_signals_to_parent,
    )


def _workers(images: ImageTensors, args: ImageArguments) -> int:
    return 0 if images.is_decoded else args.dataloader_num_workers


def load_splits(args: ImageArguments | EvaluationArguments, **options) -> tuple[datasets.DatasetDict, str]:
    """Splits `train` and `validation`, and the column of images; `options` of [`load_image_datasets`] are those that
    training and evaluation do not share."""
    return load_image_datasets(
        dataset_name=args.dataset_name,
        dataset_config_name=args.dataset_config_name,
        image_column_name=args.image_column_name,
        train_dir=args.train_dir,
        validation_dir=args.validation_dir,
        train_val_split=args.train_val_split,
        seed=args.seed,
        **options,
    )


def image_tensors(
    splits: datasets.DatasetDict,
    image_column: str,
    labels: Labels | None,
    processor: PilBackend,
    args: ImageArguments,
) -> tuple[ImageTensors | ImageStream, ImageTensors]:
    """The training and the held-out images; reports those found broken.

    Where they are not decoded once, they are found as they are read; all of them beforehand if they are not allowed.
    """
    options: dict[str, Any] = {
        "label_column": labels,
        "on_broken_image": args.on_broken_image,
        "max_image_pixels": args.max_image_pixels,
    }
    crop = None if args.random_resized_crop is None else tuple(args.random_resized_crop)
    training: dict[str, Any] = {"crop": crop, "draft": True, "seed": args.seed}
    decoding = {"max_cached_bytes": args.max_cached_bytes, "num_workers": args.dataloader_num_workers}
    check = args.on_broken_image == "error"
    held_out = ImageTensors(splits["validation"], image_column, processor, check=check, **decoding, **options)
    train: ImageTensors | ImageStream
    if isinstance(splits["train"], datasets.IterableDataset):
        state = PartialState()
        train = ImageStream(
            splits["train"],
            image_column,
            processor,
            args.per_device_train_batch_size,
            buffer_size=args.shuffle_buffer_size,
            process=state.process_index,
            num_processes=state.num_processes,
            by_group=args.max_train_samples is None,  # which are the first of each file
            **training,
            **options,
        )
    else:
        train = ImageTensors(splits["train"], image_column, processor, **training, **decoding, **options)
    for name, images in (("training", train), ("evaluation", held_out)):
        count, reasons = images.broken_images()
        if count:
            logger.warning(f"{name} {broken_images_report(count, reasons)}")
    return train, held_out
