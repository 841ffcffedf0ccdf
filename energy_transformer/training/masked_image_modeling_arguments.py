"""The options of masked image modeling."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from .arguments import option
from .image_arguments import ImageArguments
from .option_rules import IS_SHARE, check

_mask = partial(option, group="masks")


@dataclass
class MaskedImageModelingArguments(ImageArguments):
    """Options of `scripts/train_masked_image_modeling.py`.

    Raises:
        UserError: when an option's value is not allowed.
    """

    task: ClassVar[str] = "masked_image_modeling"

    output_dir: str = option(
        "outputs/masked_image_modeling", "The folder for the model, the pictures and the results.", "run"
    )
    mask_ratio: float | None = _mask(
        None, "The share of the patches that is predicted. It is that of the model when not given."
    )
    mask_replace_probability: float | None = _mask(
        None, "The share of the predicted patches whose tokens are replaced by the mask token."
    )
    mask_patch_size: int | None = _mask(
        None, "Hide squares of this side in pixels as a whole. It is one patch when not given."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, [(("mask_ratio",), *IS_SHARE)])
