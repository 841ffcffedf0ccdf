"""Images that are held out of the training, drawn evenly from its labels."""

import datasets
import numpy as np

from ..utils.errors import UserError


def hold_out(
    train: datasets.Dataset, share: float, seed: int, label_column: str | None = None
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """The images to train on and those held out: a share of each label, as nearly as whole numbers allow.

    A label keeps at least one image to train on. Without labels the images are drawn from all alike.

    Args:
        label_column: the only column of type `ClassLabel` when None, or no column where there is none.

    Raises:
        UserError: when there are not enough images.
    """
    if len(train) < 2:
        raise UserError(f"train_val_split needs 2 training images, or pass validation_dir; got {len(train)}")
    count = int(np.ceil(share * len(train)))
    if count >= len(train):
        raise UserError(f"train_val_split {share} of {len(train)} images leaves none to train on")
    labels = _labels(train, label_column)
    if labels is None:
        parts = train.train_test_split(test_size=share, seed=seed)
        return parts["train"], parts["test"]
    chosen = np.sort(stratified(labels, count, seed))
    rest = np.setdiff1d(np.arange(len(train)), chosen, assume_unique=True)
    return train.select(rest), train.select(chosen)


def stratified(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The places of `count` labels, of each its share, or fewer where none would be left of one."""
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(labels))
    _, label, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    quota = sizes * (count / len(labels))
    numbers = np.floor(quota).astype(np.int64)
    order = np.argsort(-(quota - numbers) + 1e-9 * generator.random(len(sizes)), kind="stable")
    numbers[order[: count - numbers.sum()]] += 1
    numbers = np.minimum(numbers, sizes - 1)
    while (missing := count - numbers.sum()) and (room := np.flatnonzero(numbers < sizes - 1)).size:
        numbers[generator.permutation(room)[:missing]] += 1
    if not numbers.any():  # no label has two images
        return shuffled[:count]
    # the place of each image among the shuffled ones of its label: the first few are held out
    by_label = shuffled[np.argsort(label[shuffled], kind="stable")]
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return by_label[rank < numbers[label[by_label]]]


def _labels(train: datasets.Dataset, column: str | None) -> np.ndarray | None:
    """A number for each image, None where no column tells its label."""
    if column is None:
        found = [name for name, feature in train.features.items() if isinstance(feature, datasets.ClassLabel)]
        column = found[0] if len(found) == 1 else None
    feature = train.features.get(column)
    if not isinstance(feature, (datasets.ClassLabel, datasets.Value)):
        return None
    values = np.array([str(value) for value in train[column][:]])
    return np.unique(values, return_inverse=True)[1]
