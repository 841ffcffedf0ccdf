"""Pictures of a classifier's results."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

from ..metrics.confusion import Confusion

_MAX_NAMES = 30
_COLUMNS = 8


def confusion_figure(confusion: Confusion, names: Sequence[str]) -> Figure:
    """Rows are true labels, columns predicted ones; the shade is the share of the true label, the number the count.

    Of more than 30 labels those 30 are shown that are confused most.
    """
    chosen = confusion.most_confused(len(names), _MAX_NAMES)
    counts, images = confusion.matrix(chosen), confusion.images(len(names))[chosen]
    shares = counts / np.maximum(images[:, None], 1)
    side = 2 + 0.45 * len(chosen)
    figure = Figure(figsize=(side + 0.8, side))
    axis = figure.subplots()
    figure.colorbar(axis.imshow(shares, cmap="Blues", vmin=0, vmax=1), label="share of the true label", shrink=0.8)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    if len(chosen) < len(names):
        axis.set_title(f"the {len(chosen)} of {len(names)} labels that are confused most")
    shown = [names[label] for label in chosen]
    axis.set_xticks(range(len(chosen)), shown, rotation=90, fontsize=7)
    axis.set_yticks(range(len(chosen)), shown, fontsize=7)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            color = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, str(count), ha="center", va="center", fontsize=6, color=color)
    figure.tight_layout()
    return figure


def predictions_figure(images: torch.Tensor, predicted: Sequence[str], true: Sequence[str]) -> Figure:
    """Images (B, C, H, W) in [0, 1], each with its predicted label, and with the true one where that is another."""
    rows = -(-len(images) // _COLUMNS)
    figure = Figure(figsize=(1.4 * _COLUMNS, 1.9 * rows), layout="constrained")
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, image, guess, label in zip(axes, images, predicted, true, strict=False):
        pixels = image.detach().float().cpu().clamp(0, 1).permute(1, 2, 0).numpy()
        axis.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=1)
        right = guess == label
        title = guess if right else f"{guess}\n(true: {label})"
        axis.set_title(title, fontsize=6, color="black" if right else "tab:red")
    return figure
