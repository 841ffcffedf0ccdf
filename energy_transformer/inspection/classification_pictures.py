"""Pictures of a classifier's results."""

from collections.abc import Sequence

import numpy as np
import torch

from ..metrics.confusion import Confusion
from .pictures import Picture, draw_image, panel_size

_MAX_NAMES = 30
_COLUMNS = 8


def confusion_figure(confusion: Confusion, names: Sequence[str]) -> Picture:
    """Rows are true labels, columns predicted ones; the shade is the share of the true label, the number the count.

    Of more than 30 labels those 30 are shown that are confused most.

    Values:
        counts: (shown labels, shown labels).
    """
    chosen = confusion.most_confused(len(names), _MAX_NAMES)
    counts, images = confusion.matrix(chosen), confusion.images(len(names))[chosen]
    shares = counts / np.maximum(images[:, None], 1)
    side = 2 + 0.45 * len(chosen)
    figure = Picture(side + 0.8, side, {"counts": counts})
    axis = figure.subplots()
    figure.colorbar(axis.imshow(shares, cmap="Blues", vmin=0, vmax=1), label="share of the true label", shrink=0.8)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    axis.set_title("True and predicted labels of held-out images", fontsize=9)
    if len(chosen) < len(names):
        axis.set_title(f"The {len(chosen)} of {len(names)} labels that are confused most", fontsize=9)
    shown = [names[label] for label in chosen]
    axis.set_xticks(range(len(chosen)), shown, rotation=90, fontsize=7)
    axis.set_yticks(range(len(chosen)), shown, fontsize=7)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            color = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, str(count), ha="center", va="center", fontsize=6, color=color)
    return figure


def predictions_figure(images: torch.Tensor, predicted: Sequence[str], true: Sequence[str]) -> Picture:
    """Images (B, C, H, W) in [0, 1], each with its predicted label, and with the true one where that is another.

    Values:
        right: (B,) booleans.
    """
    right = np.array([guess == label for guess, label in zip(predicted, true, strict=True)])
    columns, rows = min(_COLUMNS, len(images)), -(-len(images) // _COLUMNS)
    width, height = panel_size(*images.shape[-2:])
    figure = Picture(columns * (width + 0.15), rows * (height + 0.5) + 0.3, {"right": right})
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(images) :]:
        axis.set_axis_off()
    for axis, image, guess, label, is_right in zip(axes, images, predicted, true, right, strict=False):
        draw_image(axis, image, guess if is_right else f"{guess}\nbut it is: {label}")
        axis.title.set(color="black" if is_right else "tab:red", fontsize=7)
    figure.suptitle(f"{right.sum()} of {len(images)} held-out images get the right label", fontsize=9)
    return figure
