"""The column of a dataset that holds the images."""

from pathlib import Path
from typing import TypeAlias

import datasets
import pyarrow

from ..utils.errors import UserError

Split: TypeAlias = "datasets.Dataset | datasets.IterableDataset"


def as_image_column(split: Split, name: str | None, location: str) -> tuple[Split, str]:
    """The split with its images in a column of type `Image`, and the name of that column.

    Args:
        name: the column; the only one of type `Image` when None. One that holds paths, bytes, or both of each image is
            made one of images.
        location: where the dataset lies, to which paths are relative that are not found otherwise.

    Raises:
        UserError: when there is no such column, or it can hold no images; lists the columns.
    """
    if split.features is None:
        raise UserError("streaming: the dataset does not tell its columns")
    available = list_columns(split)
    if name is None:
        found = [column for column, feature in split.features.items() if isinstance(feature, datasets.Image)]
        if len(found) != 1:
            what = "no column" if not found else "more than one column"
            raise UserError(f"{what} with images; name one with image_column_name; the columns are {available}")
        return split, found[0]
    if name not in split.features:
        raise UserError(f"image_column_name: there is no column {name!r}; the columns are {available}")
    feature = split.features[name]
    if isinstance(feature, datasets.Image):
        return split, name
    if not _may_hold_images(feature):
        raise UserError(
            f"image_column_name: the column {name!r} holds no images, nor paths or bytes of them; the columns are "
            f"{available}"
        )
    return _cast(split, name, location), name


def list_columns(split: Split) -> str:
    """The columns and their types, for a message."""
    kinds = {
        name: feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__
        for name, feature in split.features.items()
    }
    return ", ".join(f"{name} ({kind})" for name, kind in kinds.items())


def _may_hold_images(feature) -> bool:
    if isinstance(feature, datasets.Value):
        return feature.dtype in ("string", "large_string", "binary", "large_binary")
    return isinstance(feature, dict) and bool(feature.keys() & {"bytes", "path"})


def _cast(split: Split, name: str, location: str) -> Split:
    """Paths, bytes and structs of both (as pandas writes a column of dictionaries) as images."""
    base = Path(location).expanduser()
    base = base if base.is_dir() else base.parent

    def rewrite(table: pyarrow.Table) -> pyarrow.Table:
        sources = [_source(value, base) for value in table[name].to_pylist()]
        column = pyarrow.array(sources, datasets.Image.pa_type)
        return table.set_column(table.schema.get_field_index(name), name, column)

    feature = split.features[name]
    if isinstance(feature, datasets.Value) and feature.dtype.endswith("binary"):
        return split.cast_column(name, datasets.Image())
    features = datasets.Features({**split.features, name: datasets.Image(decode=False)})
    split = split.with_format("arrow").map(rewrite, batched=True, batch_size=100, features=features)
    return split.with_format(None).cast_column(name, datasets.Image())


def _source(value: str | bytes | dict | None, base: Path) -> dict | None:
    if value is None:
        return None
    source = value if isinstance(value, dict) else {"bytes" if isinstance(value, bytes) else "path": value}
    path = source.get("path")
    if source.get("bytes") is None and path and "://" not in path and not Path(path).exists():
        path = str(base / path)
    return {"bytes": source.get("bytes"), "path": path}
