"""The options of masked image modeling."""

from dataclasses import dataclass

from .arguments import IS_SHARE, CommonArguments, check, option


@dataclass
class MaskedImageModelingArguments(CommonArguments):
    """Options of `scripts/train_masked_image_modeling.py`.

    Raises:
        UserError: when an option's value is not allowed.
    """

    output_dir: str = option("outputs/masked_image_modeling", "Folder for the model, the pictures and the results.")
    mask_ratio: float | None = option(None, "Share of the patches in the loss; that of the model when not given.")
    mask_replace_probability: float | None = option(None, "Share of those that is replaced by the mask token.")
    mask_patch_size: int | None = option(None, "Side of the squares hidden as a whole, in pixels; one patch if None.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, [(("mask_ratio",), *IS_SHARE)])
