"""The options of image classification."""

from dataclasses import dataclass

from ..utils.errors import UserError
from .arguments import CommonArguments, check, option


@dataclass
class ImageClassificationArguments(CommonArguments):
    """Options of `scripts/train_image_classification.py`.

    Raises:
        UserError: when an option's value is not allowed.
    """

    output_dir: str = option("outputs/image_classification", "Folder for the model, the pictures and the results.")
    label_column_name: str | None = option(None, "Column with the labels; found by its type when not given.")
    freeze_backbone: bool = option(False, "Train the classifier alone: a linear probe of a pretrained model.")
    label_smoothing: float | None = option(None, "Of the cross entropy; that of the model when not given.")
    mixup_alpha: float = option(0.0, "Blend pairs of images and labels by Beta(alpha, alpha); 0 for no mixup.")
    cutmix_alpha: float = option(0.0, "Paste a box of another image, Beta(alpha, alpha) of its area; 0 for no cutmix.")

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
