"""Held-out figures of a classifier, and the baselines that say what they are worth."""

import contextlib
import hashlib
import json
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from torch.nn import functional as F
from torch.utils.data import DataLoader

from ..data import ImageTensors, normalize
from ..metrics import load_metric
from ..metrics.confusion import Confusion
from ..utils.files import write_json
from .loaders import share_broken_images

_PROBE_IMAGES = 5000
_PROBE_SIDE = 16
_PROBE_BATCH = 500
_PROBE_KEYS = 32  # images of a split that tell it from others


@torch.no_grad()
def evaluate_classifier(
    accelerator: Accelerator, model, loader: DataLoader, processor, names: list[str]
) -> tuple[dict[str, float], Confusion]:
    """Accuracy, loss and the accuracy of each label that occurs, and which are confused; on every process."""
    model.eval()
    accuracy = load_metric("accuracy", keep_in_memory=True)
    losses, answers = [], []
    for batch in loader:
        logits = model(normalize(batch["image"], processor)).logits.float()
        loss = F.cross_entropy(logits, batch["label"], reduction="none")
        found = accelerator.gather_for_metrics((logits.argmax(-1), batch["label"], loss, batch["is_own"]))
        predictions, references, loss = (values[found[-1]].cpu() for values in found[:-1])
        accuracy.add_batch(predictions=predictions, references=references)
        answers.append((predictions, references))
        losses.append(loss)
    share_broken_images(loader.dataset)
    confusion = Confusion.of(*(torch.cat(parts) for parts in zip(*answers, strict=True)))
    images, right = confusion.images(len(names)), confusion.right(len(names))
    of_labels = {f"eval_accuracy_{names[label]}": float(right[label] / images[label]) for label in images.nonzero()[0]}
    results = {
        "eval_accuracy": accuracy.compute()["accuracy"],
        "eval_loss": torch.cat(losses).double().mean().item(),
        **of_labels,
        "eval_samples": loader.dataset.num_readable,
    }
    return results, confusion


def pixel_probe_accuracy(train: ImageTensors, held_out: ImageTensors, num_labels: int, num_workers: int = 0) -> float:
    """Accuracy of a linear classifier of the raw pixels: ridge regression of one-hot labels, in float64.

    The images are averaged down to at most 16×16 pixels, and of each split an even selection of at most 5000 is used,
    so that it takes seconds. What was found once is kept in the cache of `datasets`.
    """
    rows = [_even_selection(len(images)) for images in (train, held_out)]
    kept = _cache_file(train, held_out, rows, num_labels)
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        return float(json.loads(kept.read_text())["accuracy"])
    pixels, labels = (torch.cat(parts) for parts in zip(*_pixel_batches(train, rows[0], num_workers), strict=True))
    ridge = 0.01 * len(pixels) * torch.eye(pixels.shape[1], dtype=pixels.dtype)
    sums = torch.zeros(num_labels, pixels.shape[1], dtype=pixels.dtype).index_add_(0, labels, pixels)
    weights = torch.linalg.solve(pixels.T @ pixels + ridge, sums.T)
    right = [
        (pixels @ weights).argmax(-1) == labels for pixels, labels in _pixel_batches(held_out, rows[1], num_workers)
    ]
    accuracy = torch.cat(right).double().mean().item()
    with contextlib.suppress(OSError):  # it is found again the next time
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, {"accuracy": accuracy})
    return accuracy


def _even_selection(count: int) -> list[int]:
    return np.linspace(0, count - 1, min(count, _PROBE_IMAGES)).round().astype(int).tolist()


def _cache_file(train: ImageTensors, held_out: ImageTensors, rows: list[list[int]], num_labels: int) -> Path:
    """Named by all that decides the accuracy; the splits are told by the pixels and labels of a few of their images."""
    checksum = hashlib.sha256(json.dumps([rows, num_labels, _PROBE_SIDE]).encode())
    for images, own in zip((train, held_out), rows, strict=True):
        for values in images.__getitems__(own[:: -(-len(own) // _PROBE_KEYS)]).values():
            checksum.update(values.numpy().tobytes())
    return Path(datasets.config.HF_DATASETS_CACHE) / "energy_transformer_probes" / f"{checksum.hexdigest()[:24]}.json"


def _pixel_batches(images: ImageTensors, rows: list[int], num_workers: int):
    """Pixels in [-1, 1] and a constant, (B, C·h·w + 1) float64, with labels (B,); broken images are left out."""
    workers = 0 if images.is_decoded else num_workers
    generator = torch.Generator()  # so that the run's own random numbers stay as they are
    for batch in DataLoader(
        images, _PROBE_BATCH, sampler=rows, num_workers=workers, collate_fn=images.collate, generator=generator
    ):
        is_own, size = batch["is_own"], [min(side, _PROBE_SIDE) for side in batch["image"].shape[2:]]
        pixels = F.adaptive_avg_pool2d(batch["image"][is_own].double() / 127.5 - 1, size).flatten(1)
        yield F.pad(pixels, (0, 1), value=1.0), batch["label"][is_own]
