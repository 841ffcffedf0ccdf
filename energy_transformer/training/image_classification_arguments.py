"""The options of image classification."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from ..utils.errors import UserError
from .arguments import option
from .image_arguments import ImageArguments
from .option_rules import check

_labels = partial(option, group="labels")


@dataclass
class ImageClassificationArguments(ImageArguments):
    """Options of `scripts/train_image_classification.py`.

    Raises:
        UserError: when an option's value is not allowed.
    """

    task: ClassVar[str] = "image_classification"

    output_dir: str = option(
        "outputs/image_classification", "The folder for the model, the pictures and the results.", "run"
    )
    label_column_name: str | None = _labels(None, "The column with the labels. It is found by its type when not given.")
    freeze_backbone: bool = _labels(False, "Train the classifier alone, as a linear probe of a pretrained model.")
    label_smoothing: float | None = _labels(
        None, "Smooth the labels by this share. It is that of the model when not given."
    )
    mixup_alpha: float = _labels(0.0, "Blend pairs of images and of their labels by Beta(alpha, alpha). 0 blends none.")
    cutmix_alpha: float = _labels(0.0, "Paste a box of another image, Beta(alpha, alpha) of its area. 0 pastes none.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            self,
            [
                (("label_smoothing",), lambda value: 0 <= value < 1, "lie in [0, 1)"),
                (("mixup_alpha", "cutmix_alpha"), lambda value: value >= 0, "not be negative"),
            ],
        )
        if (self.mixup_alpha or self.cutmix_alpha) and self.per_device_train_batch_size % 2:
            raise UserError(
                "mixup_alpha and cutmix_alpha mix pairs of images and need an even per_device_train_batch_size, "
                f"got {self.per_device_train_batch_size}"
            )
        if self.freeze_backbone and not self.model_name_or_path:
            raise UserError("freeze_backbone needs model_name_or_path: a backbone to read from")
