"""From the name of a dataset or a local folder to a training and a held-out split."""

from pathlib import Path

import datasets

from ..utils.errors import UserError
from .demo import load_demo_dataset
from .pixels import with_bytes

_HELD_OUT = ("validation", "test", "valid", "val")


def load_image_datasets(
    dataset_name: str = "demo",
    dataset_config_name: str | None = None,
    image_column_name: str | None = None,
    train_dir: str | None = None,
    validation_dir: str | None = None,
    train_val_split: float = 0.15,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
    seed: int = 0,
    streaming: bool = False,
) -> tuple[datasets.DatasetDict, str]:
    """Splits `train` and `validation`, and the name of the column that holds the images.

    Args:
        dataset_name: `"demo"`, a dataset of the Hub, or a local folder or file.
        dataset_config_name: configuration of the dataset.
        image_column_name: found by its type when None.
        train_dir: a folder of images, a parquet file or a folder of parquet files, in place of `dataset_name`.
        validation_dir: the same for the held-out images.
        train_val_split: share of the training images held out where there is no other split.
        max_train_samples, max_eval_samples: use only so many, drawn with the seed.
        seed: decides which images are held out or left out.
        streaming: `train` is a `datasets.IterableDataset`, and `validation` the first `max_eval_samples` images of
            the held-out split, read into memory.

    Raises:
        UserError: when nothing can be loaded, or there is no such column; the message says what to do.
    """
    if streaming:
        return _load_streams(
            dataset_name,
            dataset_config_name,
            image_column_name,
            train_dir,
            validation_dir,
            max_train_samples,
            max_eval_samples,
        )
    if train_dir is not None:
        splits = datasets.DatasetDict({"train": _load_local("train_dir", train_dir)})
    elif dataset_name == "demo":
        splits = load_demo_dataset()
    elif Path(dataset_name).is_file():
        splits = datasets.DatasetDict({"train": _load_local("dataset_name", dataset_name)})
    elif dataset_name.startswith((".", "/", "~")) and not Path(dataset_name).exists():
        raise UserError(f"dataset_name: there is no file or folder {dataset_name}")
    else:
        splits = _load_named(dataset_name, dataset_config_name)
    if "train" not in splits:
        raise UserError(f"dataset_name {dataset_name!r} has no split 'train', only {', '.join(splits)}")
    train = splits["train"]
    held_out_name = next((name for name in _HELD_OUT if name in splits), None)
    if validation_dir is not None:
        held_out = _load_local("validation_dir", validation_dir)
    elif held_out_name is not None:
        held_out = splits[held_out_name]
    else:
        if len(train) < 2:
            raise UserError(f"train_val_split needs 2 training images, or pass validation_dir; got {len(train)}")
        try:
            parts = train.train_test_split(test_size=train_val_split, seed=seed)
        except ValueError as error:
            raise UserError(
                f"train_val_split {train_val_split} of {len(train)} images leaves none to train on"
            ) from error
        train, held_out = parts["train"], parts["test"]
    column = _image_column(train, image_column_name)
    _image_column(held_out, column)
    train = _some(train, max_train_samples, "max_train_samples", seed)
    held_out = _some(held_out, max_eval_samples, "max_eval_samples", seed)
    return datasets.DatasetDict({"train": train, "validation": held_out}), column


def _load_streams(
    dataset_name: str,
    dataset_config_name: str | None,
    image_column_name: str | None,
    train_dir: str | None,
    validation_dir: str | None,
    max_train_samples: int | None,
    max_eval_samples: int | None,
) -> tuple[datasets.DatasetDict, str]:
    splits: dict[str, datasets.IterableDataset]
    if train_dir is not None:
        splits = {"train": _load_local("train_dir", train_dir, streaming=True)}
    elif dataset_name == "demo":
        splits = {name: split.to_iterable_dataset(num_shards=8) for name, split in load_demo_dataset().items()}
    elif Path(dataset_name).is_file():
        splits = {"train": _load_local("dataset_name", dataset_name, streaming=True)}
    else:
        splits = _load_named(dataset_name, dataset_config_name, streaming=True)
    if validation_dir is not None:
        splits["validation"] = _load_local("validation_dir", validation_dir, streaming=True)
    held_out_name = next((name for name in _HELD_OUT if name in splits), None)
    if "train" not in splits or held_out_name is None:
        raise UserError(
            f"streaming needs a split 'train', and a held-out one or validation_dir; got {', '.join(splits)}"
        )
    if max_eval_samples is None or max_eval_samples < 1:
        raise UserError(
            f"streaming needs max_eval_samples of at least 1, to keep them in memory; got {max_eval_samples}"
        )
    train = splits["train"]
    if max_train_samples is not None:
        if max_train_samples < 1:
            raise UserError(f"max_train_samples must be at least 1, got {max_train_samples}")
        train = train.take(max_train_samples)  # the first of each shard
    column = _image_column(train, image_column_name)
    held_out = splits[held_out_name]
    _image_column(held_out, column)
    held_out = held_out.cast_column(column, datasets.Image(decode=False)).take(max_eval_samples)
    rows = [{**row, column: with_bytes(row[column])} for row in held_out]
    validation = datasets.Dataset.from_list(rows, features=held_out.features).cast_column(column, datasets.Image())
    return datasets.DatasetDict({"train": train, "validation": validation}), column


def _some(split: datasets.Dataset, count: int | None, name: str, seed: int) -> datasets.Dataset:
    if count is None:
        return split
    if count < 1:
        raise UserError(f"{name} must be at least 1, got {count}")
    return split if count >= len(split) else split.shuffle(seed=seed).select(range(count))


def _load_local(option: str, location: str, streaming: bool = False):
    """All images below a folder, or all rows of a parquet file, or of the parquet files or WebDataset's tar files below
    a folder; a `datasets.IterableDataset` when streaming."""
    path = Path(location)
    if not path.exists():
        raise UserError(f"{option}: there is no file or folder {location}")
    builder, found = "imagefolder", [str(path / "**")]
    for suffix, name in ((".parquet", "parquet"), (".tar", "webdataset")):
        shards = [path] if path.suffix == suffix else sorted(path.rglob(f"*{suffix}"))
        if shards:
            builder, found = name, [str(shard) for shard in shards]
            break
    if builder == "imagefolder" and not path.is_dir():
        raise UserError(f"{option}: {location} is neither a folder nor a parquet or tar file")
    try:
        return datasets.load_dataset(builder, data_files={"train": found}, split="train", streaming=streaming)
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        raise UserError(f"{option}: no images could be read from {location}: {_reason(error)}") from error


def _load_named(name: str, config_name: str | None, streaming: bool = False):
    """A dataset of the Hub, or a local folder with its splits laid out as `datasets` knows them."""
    try:
        return datasets.load_dataset(name, config_name, streaming=streaming)
    except (datasets.exceptions.DatasetsError, RuntimeError, ValueError) as error:
        raise UserError(f"dataset_name {name!r}: {_reason(error)}") from error
    except OSError as error:  # as are ConnectionError and the Hub's own errors
        if Path(name).exists():
            raise UserError(f"dataset_name {name!r}: {_reason(error)}") from error
        raise UserError(
            f"the Hub cannot be reached for the dataset {name!r}: pass a local copy with --train_dir FOLDER "
            "(images or parquet files), or --dataset_name demo for the embedded photographs"
        ) from error


def _reason(error: Exception) -> str:
    return (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]


def _image_column(split: datasets.Dataset | datasets.IterableDataset, name: str | None) -> str:
    if split.features is None:
        raise UserError("streaming: the dataset does not tell its columns")
    available = ", ".join(f"{column} ({type(feature).__name__})" for column, feature in split.features.items())
    if name is not None:
        if name not in split.features:
            raise UserError(f"image_column_name: there is no column {name!r}; the columns are {available}")
        if not isinstance(split.features[name], datasets.Image):
            raise UserError(f"image_column_name: the column {name!r} holds no images; the columns are {available}")
        return name
    found = [column for column, feature in split.features.items() if isinstance(feature, datasets.Image)]
    if len(found) != 1:
        what = "no column" if not found else "more than one column"
        raise UserError(f"{what} with images; name one with image_column_name; the columns are {available}")
    return found[0]
