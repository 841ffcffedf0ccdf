"""How well simple classifiers read labels from the tokens of a model that was trained without any."""

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch.nn import functional as F

from ..data import ImageTensors
from ..data.labels import prepare_labels
from ..inspection.features import extract_features, knn_accuracy, linear_probe_accuracy
from ..inspection.pictures import even_sample
from ..utils.errors import UserError
from .checkpoint_evaluation_arguments import EvaluationArguments
from .image_classification_evaluation import pixel_probe_accuracy
from .loaders import load_splits

_IMAGES = 5000  # of a split
_BATCH = 250
_NEIGHBORS = 5
_SIDE = 16  # of the pixels that are compared


def evaluate_features(model, processor, args: EvaluationArguments) -> dict:
    """Accuracies on the held-out images of nearest neighbors and of a linear probe, from the tokens and from the pixels
    averaged to 16×16, and that of the most frequent label; the same on every process, found by the first.

    Of each split an even selection of at most 5000 images is used.

    Raises:
        UserError: when there is no column of labels, or there are fewer training images than neighbors.
    """
    found: list[dict | None] = [None]
    if PartialState().is_main_process:
        found = [_evaluate(model, processor, args)]
    return broadcast_object_list(found)[0]


def _evaluate(model, processor, args: EvaluationArguments) -> dict:
    options = {"max_eval_samples": args.max_eval_samples, "label_column_name": args.label_column_name}
    splits, column = load_splits(args, **options)
    labels = prepare_labels(splits, args.label_column_name)
    images = [
        ImageTensors(
            splits[name],
            column,
            processor,
            labels,
            num_workers=args.dataloader_num_workers,
            max_image_pixels=args.max_image_pixels,
        )
        for name in ("train", "validation")
    ]
    (train, train_labels, train_pixels), (test, test_labels, test_pixels) = (
        _features(model, processor, each, args.num_steps) for each in images
    )
    if len(train) < _NEIGHBORS:
        raise UserError(f"features needs at least {_NEIGHBORS} training images, got {len(train)}")
    majority = np.bincount(train_labels).argmax()
    return {
        "train_samples": len(train),
        "samples": len(test),
        "labels": len(labels.names),
        "neighbors": _NEIGHBORS,
        "knn_accuracy": knn_accuracy(train, train_labels, test, test_labels, _NEIGHBORS),
        "linear_probe_accuracy": linear_probe_accuracy(train, train_labels, test, test_labels),
        "pixel_knn_accuracy": knn_accuracy(train_pixels, train_labels, test_pixels, test_labels, _NEIGHBORS),
        "pixel_linear_probe_accuracy": pixel_probe_accuracy(images[0], images[1], len(labels.names)),
        "majority_accuracy": float((test_labels == majority).mean()),
    }


def _features(model, processor, images: ImageTensors, num_steps: int | None):
    """Features, labels and pixels of the images, without broken ones."""
    rows = even_sample(len(images), _IMAGES)
    batches = [images.__getitems__(rows[first : first + _BATCH]) for first in range(0, len(rows), _BATCH)]
    own = [batch["is_own"] for batch in batches]
    uint8 = [batch["image"][kept] for batch, kept in zip(batches, own, strict=True) if kept.any()]
    labels = torch.cat([batch["label"][kept] for batch, kept in zip(batches, own, strict=True)])
    size = [min(side, _SIDE) for side in uint8[0].shape[2:]]
    pixels = torch.cat([F.adaptive_avg_pool2d(each.float(), size).flatten(1) for each in uint8]).numpy()
    return extract_features(model, processor, uint8, num_steps=num_steps), labels.numpy(), pixels


def feature_lines(found: dict) -> list[str]:
    """The accuracies as lines of text."""
    names = {"tokens": "", "pixels": "pixel_"}
    lines = [
        "",
        f"labels read from {found['train_samples']} training images, accuracy on {found['samples']} held-out images:",
        f"{'':<24} {'nearest neighbors':>17}  {'linear probe':>12}",
    ]
    for name, prefix in names.items():
        accuracies = found[f"{prefix}knn_accuracy"], found[f"{prefix}linear_probe_accuracy"]
        lines.append(f"{name:<24} {accuracies[0]:>17.3f}  {accuracies[1]:>12.3f}")
    return [*lines, f"{'the most frequent label':<24} {found['majority_accuracy']:>17.3f}"]
