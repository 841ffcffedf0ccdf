"""From the name of a dataset or a local folder to a training and a held-out split."""

from pathlib import Path

import datasets
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from ..errors import UserError
from .demo import load_demo_dataset

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
) -> tuple[datasets.DatasetDict, str]:
    """Splits `train` and `validation`, and the name of the column that holds the images.

    Args:
        dataset_name: `"demo"`, a dataset of the Hub, or a local folder or file.
        dataset_config_name: configuration of the dataset.
        image_column_name: found by its type when None.
        train_dir: a folder of images, a parquet file or a folder of parquet files, in place of `dataset_name`.
        validation_dir: the same for the held-out images.
        train_val_split: share of the training images held out where there is no other split.
        max_train_samples, max_eval_samples: use only so many.
        seed: decides which images are held out.

    Raises:
        UserError: when nothing can be loaded, or there is no such column; the message says what to do.
    """
    if train_dir is not None:
        splits = _load_local("train_dir", train_dir)
    elif dataset_name == "demo":
        splits = load_demo_dataset()
    elif Path(dataset_name).exists():
        splits = _load_local("dataset_name", dataset_name)
    else:
        splits = _load_from_hub(dataset_name, dataset_config_name)
    if "train" not in splits:
        raise UserError(f"the dataset has no split 'train', only {', '.join(splits)}")
    train = splits["train"]
    if validation_dir is not None:
        held_out = _load_local("validation_dir", validation_dir)["train"]
    else:
        name = next((name for name in _HELD_OUT if name in splits), None)
        if name is None:
            parts = train.train_test_split(test_size=train_val_split, seed=seed)
            train, held_out = parts["train"], parts["test"]
        else:
            held_out = splits[name]
    column = _image_column(train, image_column_name)
    _image_column(held_out, column)
    train = _first(train, max_train_samples, "max_train_samples")
    held_out = _first(held_out, max_eval_samples, "max_eval_samples")
    return datasets.DatasetDict({"train": train, "validation": held_out}), column


def _first(split: datasets.Dataset, count: int | None, name: str) -> datasets.Dataset:
    if count is None:
        return split
    if count < 1:
        raise UserError(f"{name} must be at least 1, got {count}")
    return split.select(range(min(count, len(split))))


def _load_local(option: str, location: str) -> datasets.DatasetDict:
    path = Path(location)
    if not path.exists():
        raise UserError(f"{option}: there is no file or folder {location}")
    files = [str(path)] if path.suffix == ".parquet" else sorted(str(file) for file in path.rglob("*.parquet"))
    try:
        if files:
            return datasets.load_dataset("parquet", data_files=files)
        if path.is_dir():
            return datasets.load_dataset("imagefolder", data_dir=str(path))
    except (datasets.exceptions.DatasetGenerationError, OSError, ValueError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UserError(f"{option}: no images could be read from {location}: {reason}") from error
    raise UserError(f"{option}: {location} is neither a folder of images nor a parquet file")


def _load_from_hub(name: str, config_name: str | None) -> datasets.DatasetDict:
    try:
        return datasets.load_dataset(name, config_name)
    except DatasetNotFoundError as error:
        raise UserError(
            f"dataset_name: there is no dataset {name!r}, neither on the Hub nor as a local path"
        ) from error
    except ValueError as error:
        raise UserError(f"dataset_name {name!r}: {str(error).splitlines()[0]}") from error
    except (ConnectionError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        raise UserError(
            f"the Hub cannot be reached for the dataset {name!r}: pass a local copy with --train_dir FOLDER "
            "(images or parquet files), or --dataset_name demo for the embedded photographs"
        ) from error


def _image_column(split: datasets.Dataset, name: str | None) -> str:
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
