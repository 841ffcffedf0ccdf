"""Held-out figures of a classifier, and the baselines that say what they are worth."""

import numpy as np
import torch
from accelerate import Accelerator
from torch.nn import functional as F
from torch.utils.data import DataLoader

from ..data import ImageTensors, normalize
from ..metrics import load_metric

_PROBE_IMAGES = 5000
_PROBE_SIDE = 16
_PROBE_BATCH = 500


@torch.no_grad()
def evaluate_classifier(
    accelerator: Accelerator, model, loader: DataLoader, processor, names: list[str]
) -> tuple[dict[str, float], list[list[int]]]:
    """Accuracy, loss and the accuracy of each label that occurs, and the confusion matrix; on every process."""
    model.eval()
    accuracy, confusion = (load_metric(name, keep_in_memory=True) for name in ("accuracy", "confusion_matrix"))
    losses = []
    for batch in loader:
        logits = model(normalize(batch["image"], processor)).logits.float()
        loss = F.cross_entropy(logits, batch["label"], reduction="none")
        found = accelerator.gather_for_metrics((logits.argmax(-1), batch["label"], loss))
        predictions, references, loss = (values.cpu() for values in found)
        for metric in (accuracy, confusion):
            metric.add_batch(predictions=predictions, references=references)
        losses.append(loss)
    matrix = confusion.compute(num_labels=len(names))["confusion_matrix"]
    of_labels = {
        f"eval_accuracy_{name}": row[label] / sum(row)
        for label, (name, row) in enumerate(zip(names, matrix, strict=True))
        if sum(row)
    }
    results = {
        "eval_accuracy": accuracy.compute()["accuracy"],
        "eval_loss": torch.cat(losses).double().mean().item(),
        **of_labels,
        "eval_samples": len(loader.dataset),
    }
    return results, matrix


def pixel_probe_accuracy(train: ImageTensors, held_out: ImageTensors, num_labels: int) -> float:
    """Accuracy of a linear classifier of the raw pixels: ridge regression of one-hot labels, in float64.

    The images are averaged down to at most 16×16 pixels, and of the training images an even selection of at most 5000
    is used, so that it takes seconds.
    """
    chosen = np.linspace(0, len(train) - 1, min(len(train), _PROBE_IMAGES)).round().astype(int).tolist()
    pixels, labels = (torch.cat(parts) for parts in zip(*_pixel_batches(train, chosen), strict=True))
    ridge = 0.01 * len(chosen) * torch.eye(pixels.shape[1], dtype=pixels.dtype)
    weights = torch.linalg.solve(pixels.T @ pixels + ridge, pixels.T @ F.one_hot(labels, num_labels).to(pixels))
    batches = _pixel_batches(held_out, list(range(len(held_out))))
    return sum(((pixels @ weights).argmax(-1) == labels).sum().item() for pixels, labels in batches) / len(held_out)


def _pixel_batches(images: ImageTensors, indices: list[int]):
    """Pixels in [-1, 1] and a constant, (B, C·h·w + 1) float64, with labels (B,)."""
    for first in range(0, len(indices), _PROBE_BATCH):
        batch = images.__getitems__(indices[first : first + _PROBE_BATCH])
        size = [min(side, _PROBE_SIDE) for side in batch["image"].shape[2:]]
        pixels = F.adaptive_avg_pool2d(batch["image"].double() / 127.5 - 1, size).flatten(1)
        yield F.pad(pixels, (0, 1), value=1.0), batch["label"]
