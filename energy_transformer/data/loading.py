"""From the name of a dataset or a local folder to a training and a held-out split."""

import os
import sys
from pathlib import Path

import datasets
import torch
from datasets.data_files import DataFilesList
from huggingface_hub import DatasetCard

from ..utils.errors import UserError, first_line
from .columns import Split, as_image_column
from .demo import load_demo_dataset
from .holding_out import hold_out
from .local_files import LocalFiles, find_local_files
from .mnist5k import load_mnist5k
from .pixels import with_bytes

_HELD_OUT = ("validation", "test", "valid", "val")
_SUFFIXES = {".parquet": "parquet", ".tar": "webdataset"}
# datasets that come with installed packages
EMBEDDED = {"demo": load_demo_dataset, "mnist5k": load_mnist5k}


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
    label_column_name: str | None = None,
) -> tuple[datasets.DatasetDict, str]:
    """Splits `train` and `validation`, and the name of the column that holds the images.

    Args:
        dataset_name: one of `EMBEDDED`, a dataset of the Hub, or a local folder or file.
        dataset_config_name: configuration of the dataset.
        image_column_name: found by its type when None. A column of paths, of bytes or of both is one of images when it
            is named here.
        train_dir: a local folder or file in place of `dataset_name`; see [`local_files`] for what is read.
        validation_dir: the same for the held-out images: those of its held-out split, where it has splits.
        train_val_split: share of the training images held out where there is no other split.
        max_train_samples, max_eval_samples: use only so many, drawn with the seed.
        seed: decides which images are held out or left out.
        streaming: `train` is a `datasets.IterableDataset`, and `validation` the first `max_eval_samples` images of
            the held-out split, read into memory.
        label_column_name: held-out images are drawn evenly from its labels; the only column of labels when None.

    Raises:
        UserError: when nothing can be loaded, or there is no such column; the message says what to do.
    """
    splits = _open_splits(dataset_name, dataset_config_name, image_column_name, train_dir, streaming)
    if "train" not in splits:
        given = f"train_dir {train_dir}" if train_dir is not None else f"dataset_name {dataset_name!r}"
        raise UserError(f"{given} has no split 'train', only {', '.join(splits)}")
    train = splits["train"]
    held_out_name = next((name for name in _HELD_OUT if name in splits), None)
    held_out = None if held_out_name is None else splits[held_out_name]
    if validation_dir is not None:
        own = _open_local("validation_dir", validation_dir, streaming, image_column_name)
        held_out = own[next((name for name in (*_HELD_OUT, "train") if name in own), next(iter(own)))]
    train, column = as_image_column(train, image_column_name, train_dir or dataset_name)
    if held_out is not None:
        held_out, _ = as_image_column(held_out, column, validation_dir or train_dir or dataset_name)
    if streaming:
        train, held_out = _limit_streams(train, held_out, column, max_train_samples, max_eval_samples)
    else:
        if held_out is None:
            train, held_out = hold_out(train, train_val_split, seed, label_column_name)
        train = _some(train, max_train_samples, "max_train_samples", seed)
        held_out = _some(held_out, max_eval_samples, "max_eval_samples", seed)
    return datasets.DatasetDict({"train": train, "validation": held_out}), column


def _open_splits(
    name: str, config_name: str | None, image_column: str | None, train_dir: str | None, streaming: bool
) -> dict[str, Split]:
    if train_dir is not None:
        return _open_local("train_dir", train_dir, streaming, image_column)
    if name in EMBEDDED:
        splits = EMBEDDED[name]()
        if streaming:
            return {split: rows.to_iterable_dataset(num_shards=8) for split, rows in splits.items()}
        return dict(splits)
    if Path(name).expanduser().exists() or name.startswith((".", "/", "~")):
        return _open_local("dataset_name", name, streaming, image_column, config_name)
    return _open_named(name, config_name, streaming)


def _limit_streams(
    train: datasets.IterableDataset,
    held_out: datasets.IterableDataset | None,
    column: str,
    max_train_samples: int | None,
    max_eval_samples: int | None,
) -> tuple[datasets.IterableDataset, datasets.Dataset]:
    """The training stream, and the held-out images in memory."""
    if held_out is None:
        raise UserError("streaming needs a split 'train', and a held-out one or validation_dir; got train")
    if max_eval_samples is None or max_eval_samples < 1:
        raise UserError(
            f"streaming needs max_eval_samples of at least 1, to keep them in memory; got {max_eval_samples}"
        )
    if max_train_samples is not None:
        if max_train_samples < 1:
            raise UserError(f"max_train_samples must be at least 1, got {max_train_samples}")
        train = train.take(max_train_samples)  # the first of each shard
    held_out = held_out.cast_column(column, datasets.Image(decode=False)).take(max_eval_samples)
    rows = [{**row, column: with_bytes(row[column])} for row in held_out]
    kept = datasets.Dataset.from_list(rows, features=held_out.features).cast_column(column, datasets.Image())
    return train, kept


def _some(split: datasets.Dataset, count: int | None, name: str, seed: int) -> datasets.Dataset:
    if count is None:
        return split
    if count < 1:
        raise UserError(f"{name} must be at least 1, got {count}")
    return split if count >= len(split) else split.shuffle(seed=seed).select(range(count))


def _open_local(
    option: str, location: str, streaming: bool, image_column: str | None, config_name: str | None = None
) -> dict[str, Split]:
    """The splits of a folder or file; tells in one line which files are read and which are left."""
    path = Path(location).expanduser().absolute()
    if not path.exists():
        raise UserError(f"{option}: there is no file or folder {location}")
    try:
        if path.is_file():
            if path.suffix not in _SUFFIXES:
                raise UserError(f"{option}: {location} is neither a folder nor a parquet or tar file")
            return _load_files(LocalFiles(_SUFFIXES[path.suffix], {"train": [path]}, ""), streaming)
        if _declares_files(path):
            if any(character in str(path) for character in "*?["):
                raise ValueError("its README.md declares data files, but a name with *, ? or [ would be a pattern")
            _tell(f"{option} {path}: the files that its README.md declares")
            return dict(datasets.load_dataset(str(path), config_name, streaming=streaming))
        if config_name is not None:
            raise UserError(
                f"{option}: {location} declares no configurations, and dataset_config_name is {config_name}"
            )
        found = find_local_files(path, image_column)
        _tell(f"{option} {found.told}")
        return _load_files(found, streaming)
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        if isinstance(error, UserError) and str(error).startswith(option):
            raise
        raise UserError(
            f"{option}: no images could be read from {location}: {first_line(error.__cause__ or error)}"
        ) from error


def _declares_files(folder: Path) -> bool:
    """Whether a card says which files are data, as in a copy of a dataset repository of the Hub."""
    try:
        configs = DatasetCard.load(folder / "README.md").data.to_dict().get("configs") or []
        return any("data_files" in config for config in configs)
    except (OSError, ValueError, TypeError):
        return False


def _load_files(found: LocalFiles, streaming: bool) -> dict[str, Split]:
    """Read them without taking a name for a pattern. Of images the names alone are kept, whatever their content is."""
    is_folder = found.builder == "imagefolder"
    files = {}
    for split, paths in found.files.items():
        states = [os.stat(path) for path in paths if not is_folder]
        versions = [(f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}",) for state in states]
        files[split] = DataFilesList(list(map(str, paths)), versions)
    return dict(datasets.load_dataset(found.builder, data_files=files, streaming=streaming, **found.options))


def _tell(line: str) -> None:
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        print(line, file=sys.stderr, flush=True)


def _open_named(name: str, config_name: str | None, streaming: bool) -> dict[str, Split]:
    """A dataset of the Hub."""
    try:
        return dict(datasets.load_dataset(name, config_name, streaming=streaming))
    except (datasets.exceptions.DatasetsError, RuntimeError, ValueError) as error:
        raise UserError(f"dataset_name {name!r}: {first_line(error.__cause__ or error)}") from error
    except OSError as error:  # as are ConnectionError and the Hub's own errors
        raise UserError(
            f"the Hub cannot be reached for the dataset {name!r}: pass a local copy with --train_dir FOLDER "
            "(images or parquet files), or --dataset_name demo for the embedded photographs"
        ) from error
