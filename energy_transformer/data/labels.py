"""The labels of a dataset: their column, their names, and the number of each."""

from collections.abc import Iterable
from typing import Any

import datasets
import torch
from accelerate.utils import tqdm

from ..utils.console import is_terminal
from ..utils.errors import UserError
from .columns import Split, list_columns

_TYPES = ("int", "uint", "string", "large_string", "bool", "float", "double")
_BATCH = 1000


class Labels:
    """The labels that training has, numbered from 0.

    The dataset stays as it is: a label's number is that of its name, which for text is the text, for a whole number its
    digits (so that the ids 1003 and 20755 are labels 0 and 1), and for a boolean `False` or `True`.

    Args:
        column: where the labels stand.
        names: in the order of their numbers.
    """

    def __init__(self, column: str, names: list[str]):
        self.column, self.names = column, names
        self._number_of = {name: number for number, name in enumerate(names)}

    def number(self, value: Any, feature: Any) -> int:
        """The number of a value in a column of that type.

        Raises:
            UserError: when it is no label, or one that training does not have.
        """
        if isinstance(feature, datasets.ClassLabel):
            if value is None or not 0 <= value < len(feature.names):
                raise UserError(f"column {self.column!r} holds {value}, which is no label in [0, {len(feature.names)})")
            name = feature.names[value]
        else:
            name = _name(value, self.column)
        if name not in self._number_of:
            raise UserError(f"column {self.column!r} holds {name!r}, which no training image has")
        return self._number_of[name]

    def numbers(self, split: datasets.Dataset) -> torch.Tensor:
        """Those of all rows of a split, (N,) int64.

        Raises:
            UserError: as [`number`] does.
        """
        feature = split.features[self.column]
        known: dict[Any, int] = {}
        return torch.tensor([_remembered(known, value, self, feature) for value in split[self.column][:]])


def _remembered(known: dict[Any, int], value: Any, labels: Labels, feature: Any) -> int:
    if value not in known:
        known[value] = labels.number(value, feature)
    return known[value]


def prepare_labels(splits: datasets.DatasetDict, label_column_name: str | None = None) -> Labels:
    """The labels of the split `train`, after a look at those of all splits.

    Args:
        splits: `train`, whose labels count, and others. Where a split is a stream, a column of `ClassLabel` tells its
            labels; one of another type is read through once.
        label_column_name: a column of `ClassLabel`, of text, numbers or booleans; the only `ClassLabel` when None.

    Raises:
        UserError: when there is no such column, fewer than two labels, a label that training does not have, or none.
    """
    column = _label_column(splits["train"], label_column_name)
    feature = splits["train"].features[column]
    if isinstance(feature, datasets.ClassLabel):
        names = list(feature.names)
    else:
        values = {(_checked(value, column), value) for value in _values(splits["train"], column)}
        names = [name for name, _ in sorted(values, key=lambda pair: (pair[1], pair[0]))]
    if len(names) < 2:
        raise UserError(f"classification needs at least 2 labels; column {column!r} has {', '.join(names)}")
    labels = Labels(column, names)
    for name, split in splits.items():
        _check(split, name, labels)
    return labels


def _label_column(split: Split, name: str | None) -> str:
    columns = list_columns(split)
    if name is not None:
        if name not in split.features:
            raise UserError(f"label_column_name: there is no column {name!r}; the columns are {columns}")
        feature = split.features[name]
        if _is_list(feature):
            raise UserError(
                f"label_column_name: the column {name!r} holds several labels of an image, and classification learns "
                "one: name a column with one label of each image, or add one to the dataset"
            )
        is_value = isinstance(feature, datasets.Value) and feature.dtype.startswith(_TYPES)
        if not is_value and not isinstance(feature, datasets.ClassLabel):
            raise UserError(f"label_column_name: the column {name!r} holds no labels; the columns are {columns}")
        return name
    found = [column for column, feature in split.features.items() if isinstance(feature, datasets.ClassLabel)]
    if len(found) != 1:
        what = "no column" if not found else "more than one column"
        raise UserError(f"{what} with labels; name one with label_column_name; the columns are {columns}")
    return found[0]


def _is_list(feature: Any) -> bool:
    return isinstance(feature, (list, datasets.Sequence, datasets.List, datasets.LargeList))


def _values(split: Split, column: str) -> Iterable[Any]:
    """The different values of a column of the training split."""
    if isinstance(split, datasets.Dataset):
        return split.unique(column)
    found: set[Any] = set()
    batches = split.select_columns(column).iter(_BATCH)
    for batch in tqdm(batches, desc="reading the labels of the stream", leave=False, disable=not is_terminal()):
        found.update(batch[column])
    return found


def _checked(value: Any, column: str) -> str:
    if value is None:
        raise UserError(f"label_column_name: column {column!r} of the split 'train' lacks the label of some images")
    if not isinstance(value, str) and value < 0:
        raise UserError(f"label_column_name: column {column!r} of the split 'train' holds {value}, below 0")
    return _name(value, column)


def _name(value: Any, column: str) -> str:
    if isinstance(value, float):
        if not value.is_integer():
            raise UserError(f"label_column_name: column {column!r} holds {value}, which is no whole number")
        value = int(value)
    return str(value)


def _check(split: Split, name: str, labels: Labels) -> None:
    """That every label of a split is one of training; those of a stream are looked at as it is read."""
    feature = split.features.get(labels.column)
    if feature is None or _is_list(feature):
        raise UserError(f"the split {name!r} has no column {labels.column!r} of labels")
    if isinstance(split, datasets.IterableDataset):
        return
    for value in split.unique(labels.column):
        try:
            labels.number(value, feature)
        except UserError as error:
            raise UserError(f"the split {name!r}: {error}") from error
