"""The options that all tasks on images share."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from ..data.pixels import MAX_IMAGE_PIXELS
from .arguments import CommonArguments, option
from .option_rules import IMAGE_RULES, check

_data = partial(option, group="data")
_augmentation = partial(option, group="augmentation")


@dataclass
class ImageArguments(CommonArguments):
    """The options that all tasks on images share.

    Raises:
        UserError: when an option's value is not allowed.
    """

    dataset_config_name: str | None = _data(None, "The configuration of the dataset, where it has several.")
    image_column_name: str | None = _data(None, "The column with the images. It is found by its type when not given.")
    validation_dir: str | None = _data(None, "A local folder of images or parquet files to evaluate on.")
    dataloader_num_workers: int = _data(0, "The processes that decode images, where they are not decoded once.")
    max_cached_bytes: int = _data(
        2**32, "Images are decoded once where they fit into so much of the datasets cache, beside those of other runs."
    )
    max_image_pixels: int = _data(MAX_IMAGE_PIXELS, "An image of more pixels counts as broken, and is not decoded.")
    on_broken_image: Literal["skip", "error"] = _data("skip", "Skip broken images and count them, or stop.")
    streaming: bool = _data(
        False, "Read the training images in order, for what does not fit on the disk. It needs max_train_steps."
    )
    shuffle_buffer_size: int = _data(1000, "The images that each worker shuffles at a time when streaming.")
    image_size: list[int] | None = option(
        None, "The size of the images in pixels: one number, or height and width.", "model"
    )
    patch_size: list[int] | None = option(
        None, "The size of the patches in pixels: one number, or height and width.", "model"
    )
    horizontal_flip: bool = _augmentation(True, "Flip half of the training images from left to right.")
    random_resized_crop: list[float] | None = option(
        None, "Train on crops whose share of the image lies between these two numbers.", "augmentation"
    )
    color_jitter: float = _augmentation(0.0, "Change brightness, contrast and saturation by up to this share.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, IMAGE_RULES)
