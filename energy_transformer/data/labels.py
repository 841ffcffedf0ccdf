"""The labels of a dataset: their column and their names."""

import datasets

from ..utils.errors import UserError


def prepare_labels(
    splits: datasets.DatasetDict, label_column_name: str | None = None
) -> tuple[datasets.DatasetDict, str, list[str]]:
    """The splits with labels in [0, number of names) in a `ClassLabel` column, its name, and the names of the labels.

    Args:
        splits: `train`, whose labels count, and others.
        label_column_name: a column of `ClassLabel`, of text, or of integers from 0; the only `ClassLabel` when None.

    Raises:
        UserError: when there is no such column, fewer than two labels, a label that training does not have, or none.
    """
    column = _label_column(splits["train"], label_column_name)
    feature = splits["train"].features[column]
    if not isinstance(feature, datasets.ClassLabel):
        feature = _class_label(splits["train"], column)
        splits = datasets.DatasetDict({name: _cast(split, name, column, feature) for name, split in splits.items()})
    splits = datasets.DatasetDict({name: _align(split, name, column, feature) for name, split in splits.items()})
    if len(feature.names) < 2:
        raise UserError(f"classification needs at least 2 labels; column {column!r} has {', '.join(feature.names)}")
    return splits, column, list(feature.names)


def _label_column(split: datasets.Dataset, name: str | None) -> str:
    columns = ", ".join(f"{column} ({type(feature).__name__})" for column, feature in split.features.items())
    if name is not None:
        if name not in split.features:
            raise UserError(f"label_column_name: there is no column {name!r}; the columns are {columns}")
        feature = split.features[name]
        is_value = isinstance(feature, datasets.Value) and feature.dtype.startswith(
            ("int", "uint", "string", "large_string")
        )
        if not is_value and not isinstance(feature, datasets.ClassLabel):
            raise UserError(f"label_column_name: the column {name!r} holds no labels; the columns are {columns}")
        return name
    found = [column for column, feature in split.features.items() if isinstance(feature, datasets.ClassLabel)]
    if len(found) != 1:
        what = "no column" if not found else "more than one column"
        raise UserError(f"{what} with labels; name one with label_column_name; the columns are {columns}")
    return found[0]


def _class_label(train: datasets.Dataset, column: str) -> datasets.ClassLabel:
    values = train.unique(column)
    if None in values:
        raise UserError(f"label_column_name: column {column!r} of the split 'train' lacks the label of some images")
    if isinstance(values[0], str):
        return datasets.ClassLabel(names=sorted(values))
    if min(values) < 0:
        raise UserError(f"label_column_name: column {column!r} of the split 'train' holds {min(values)}, below 0")
    return datasets.ClassLabel(num_classes=max(values) + 1)


def _cast(split: datasets.Dataset, name: str, column: str, feature: datasets.ClassLabel) -> datasets.Dataset:
    unknown = [v for v in split.unique(column) if isinstance(v, str) and v not in feature.names]
    if unknown:
        raise UserError(f"column {column!r} of the split {name!r} holds {unknown[0]!r}, which no training image has")
    try:
        return split.cast_column(column, feature)
    except ValueError as error:
        raise UserError(f"column {column!r} of the split {name!r}: {str(error).splitlines()[0]}") from error


def _align(split: datasets.Dataset, name: str, column: str, feature: datasets.ClassLabel) -> datasets.Dataset:
    """The split with the numbers of `feature`, checked."""
    own = split.features.get(column)
    if not isinstance(own, datasets.ClassLabel):
        raise UserError(f"the split {name!r} has no column {column!r} of labels")
    wrong = [label for label in split.unique(column) if label is None or not 0 <= label < len(own.names)]
    if wrong:
        raise UserError(
            f"column {column!r} of the split {name!r} holds {wrong[0]}, which is no label in [0, {len(own.names)})"
        )
    if own.names != feature.names:
        unknown = [label for label in own.names if label not in feature.names]
        if unknown:
            raise UserError(f"column {column!r} of the split {name!r} has the label {unknown[0]!r}, training has not")
        numbers = [feature.str2int(label) for label in own.names]
        labels = [numbers[label] for label in split[column]]
        split = split.remove_columns(column).add_column(column, labels).cast_column(column, feature)
    return split
