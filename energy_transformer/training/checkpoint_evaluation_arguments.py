"""The options of evaluation; those that training has as well are declared there."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ..masking import MASK_TYPES
from ..utils.errors import UserError
from ..utils.option_parser import OptionParser
from .arguments import SYNONYMS, option
from .image_arguments import ImageArguments

_measure = partial(option, group="what is measured")

_SHARED = (
    "seed",
    "dataset_name",
    "dataset_config_name",
    "image_column_name",
    "train_dir",
    "validation_dir",
    "train_val_split",
    "max_eval_samples",
    "dataloader_num_workers",
    "max_image_pixels",
    "per_device_eval_batch_size",
    "cpu",
)
_SharedArguments: Any = make_dataclass(
    "_SharedArguments",
    [
        (each.name, each.type, field(default=each.default, metadata=dict(each.metadata)))
        for each in fields(ImageArguments)
        if each.name in _SHARED
    ],
)


@dataclass
class EvaluationArguments(_SharedArguments):
    """Options of `scripts/evaluate_masked_image_modeling.py`.

    Raises:
        UserError: when an option's value is not allowed.
    """

    split: Literal["validation", "train"] = _measure("validation", "Take the held-out images, or those of training.")
    mask_types: list[str] = field(
        default_factory=lambda: ["scatter", "block"],
        metadata={"help": f"The kinds of masks, of {', '.join(MASK_TYPES)}.", "group": "what is measured"},
    )
    mask_ratios: list[float] = field(
        default_factory=lambda: [0.25, 0.5, 0.75],
        metadata={"help": "The shares of the patches to hide.", "group": "what is measured"},
    )
    num_steps: int | None = _measure(None, "The descent steps of each block. They are the model's when not given.")
    confidence_level: float = _measure(0.95, "The level of the intervals for the means over images.")
    features: bool = _measure(
        False, "Also measure how well nearest neighbors and a linear probe read labels from the tokens."
    )
    label_column_name: str | None = _measure(
        None, "The column with the labels, for features. It is found by its type when not given."
    )
    output: str | None = _measure(None, "A JSON file to write the figures to.")

    def __post_init__(self) -> None:
        for kind in self.mask_types:
            if kind not in MASK_TYPES:
                raise UserError(f"mask_types must be of {', '.join(MASK_TYPES)}, got {kind!r}")
        for name, values in (
            ("mask_ratios", self.mask_ratios),
            ("confidence_level", [self.confidence_level]),
            ("train_val_split", [self.train_val_split]),
        ):
            if not all(0 < value < 1 for value in values):
                raise UserError(f"{name} must lie between 0 and 1, both excluded, got {getattr(self, name)}")
        if self.label_column_name is not None and not self.features:
            raise UserError("label_column_name needs features")
        if self.num_steps is not None and self.num_steps < 0:
            raise UserError(f"num_steps must not be negative, got {self.num_steps}")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed must lie in [0, 2**32), got {self.seed}")
        if self.per_device_eval_batch_size < 1:
            raise UserError(f"per_device_eval_batch_size must be at least 1, got {self.per_device_eval_batch_size}")
        if self.output is not None and (Path(self.output).is_dir() or not Path(self.output).absolute().parent.is_dir()):
            raise UserError(f"output must be a file in a folder that exists, got {self.output}")


def parse_evaluation_arguments(argv: Sequence[str], description: str | None) -> tuple[str, EvaluationArguments]:
    """The checkpoint and the options.

    Raises:
        UserError: for a value that is not allowed.
        SystemExit: with code 2 and one line for an unknown option or a value of the wrong type.
    """
    parser = OptionParser(EvaluationArguments, description, SYNONYMS, usage="%(prog)s CHECKPOINT [--option value ...]")
    parser.add_argument(
        "checkpoint", help="The folder or the Hub repository of a masked-image model, such as outputs/demo."
    )
    values = vars(parser.parse_args(list(argv)))
    return values.pop("checkpoint"), EvaluationArguments(**values)
