"""What all tasks on images share: how they are read, augmented, and passed over where they are broken."""

from dataclasses import replace
from typing import Any

import datasets
import torch
from accelerate.logging import get_logger
from torch.utils.data import DataLoader

from ..data import Augmentation, ImageStream, ImageTensors, broken_images_report
from ..data.image_processing import build_image_processor
from ..data.labels import Labels
from .agreement import fingerprint, images_fingerprint
from .finish import Training
from .image_arguments import ImageArguments
from .loaders import Batch, ImageTrainLoader, build_eval_loader, build_train_loader, image_tensors, load_splits

logger = get_logger(__name__)


class ImageTraining(Training):
    """One run of a task on images. Batches are {"image": uint8 (B, C, H, W)}, and "label" (B,) where there are labels.

    A task may extend `load_datasets`, and `draw` with its own numbers from the same generator.
    """

    args: ImageArguments
    label_column_name: str | None = None  # of which each label is held out in its share; set by `build_config`

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

    def load_data(self) -> tuple[ImageTensors | ImageStream, ImageTensors]:
        args = self.args
        self.augment = Augmentation(args.random_resized_crop, args.horizontal_flip, args.color_jitter)
        self.processor = build_image_processor(self.config.image_height_width, self.config.num_channels)
        splits, self.image_column, self.labels = self.load_datasets()
        train, self.eval_images = image_tensors(splits, self.image_column, self.labels, self.processor, args)
        if train.is_cropped:
            self.augment = replace(self.augment, random_resized_crop=None)
        self.train_samples = None if args.streaming else len(train)
        self.known_broken_images = train.broken_images()[0]
        self.known_broken_held_out = self.eval_images.broken_images()[0]
        return train, self.eval_images

    def build_loaders(
        self, train: ImageTensors | ImageStream, held_out: ImageTensors
    ) -> tuple[ImageTrainLoader, DataLoader]:
        return build_train_loader(train, self.args, self.accelerator), build_eval_loader(held_out, self.args)

    def fingerprint(self, samples: ImageTensors | ImageStream) -> str:
        return images_fingerprint(samples)

    def agreed(self) -> dict[str, Any]:
        labels = self.labels
        return {
            "columns": (self.image_column, labels and labels.column),
            "labels": labels and fingerprint(labels.names),
        }

    def draw(self, num_samples: int, generator: torch.Generator) -> Batch:
        size = (num_samples, Augmentation.num_uniform)
        return {"augmentation": torch.rand(size, generator=generator, device=generator.device)}

    def augmented(self, batch: Batch, draws: Batch) -> Batch:
        return {**batch, "image": self.augment(batch["image"], draws["augmentation"])}

    def training_data_figures(self) -> dict[str, float | None]:
        """The broken images that all processes have found; tells those that were found as images were read."""
        self.train_loader.gather_broken_images()
        count, reasons = self.train_loader.images.broken_images()
        if count > self.known_broken_images:
            logger.warning(f"training {broken_images_report(count, reasons)}")
        return {"train_broken_images": count}

    def held_out_data_figures(self) -> dict[str, float | None]:
        count, reasons = self.eval_images.broken_images()
        if count > self.known_broken_held_out:
            self.known_broken_held_out = count
            logger.warning(f"evaluation {broken_images_report(count, reasons)}")
        return {"eval_broken_images": count}
