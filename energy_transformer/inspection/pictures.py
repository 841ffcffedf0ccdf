"""Figures that show themselves and keep their numbers, and how images are drawn into them."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..utils.files import atomic_path

DPI = 150
PANEL = 1.25  # inches of the shorter side of an image, which is more where its pixels need it
COLORS = {"energy": "black", "attention": "tab:orange", "hopfield": "tab:blue"}  # of the energy and its parts
WORDS = {"attention": "attention", "hopfield": "Hopfield"}  # for the names of terms
HIDDEN = (0.55, 0.55, 0.58)  # color of a hidden patch
_BAND = (0.1, 0.9)  # quantiles


class Picture(Figure):
    """A matplotlib figure with the numbers that it shows.

    As the last value of a notebook's cell it shows itself, without pyplot and without the `%matplotlib inline` that a
    bare `Figure` needs. `savefig`, `axes` and all else are those of matplotlib.

    Attributes:
        values: the arrays behind the picture by name; the function that draws it lists them.
    """

    values: dict[str, np.ndarray]

    def __init__(self, width: float, height: float, values: Mapping[str, np.ndarray | torch.Tensor]):
        super().__init__(figsize=(width, height), dpi=DPI, layout="constrained")
        FigureCanvasAgg(self)
        self.values = {name: as_array(value) for name, value in values.items()}

    def _repr_png_(self) -> bytes:
        """What IPython shows."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()

    def save(self, path: str | Path) -> None:
        """Write a PNG under a temporary name and move it into place; parent folders are made."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            self.savefig(temporary, format="png", dpi=DPI)

    def pixels(self) -> np.ndarray:
        """The picture as uint8 (height, width, 3)."""
        self.canvas.draw()
        return np.asarray(self.canvas.buffer_rgba())[..., :3].copy()

    def add_note(self, note: str | None, size: float = 8) -> None:
        """A line over the whole picture, broken where it is too long."""
        if note:
            lines = textwrap.wrap(note, max(20, int(115 / size * self.get_figwidth())))
            self.suptitle("\n".join(lines), fontsize=size)


def as_array(value: np.ndarray | torch.Tensor) -> np.ndarray:
    return value.detach().float().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def panel_size(height: int, width: int) -> tuple[float, float]:
    """Width and height in inches of a panel for images of that many pixels: at least a dot for each."""
    side = max(PANEL, 1.1 * min(height, width) / DPI)
    return side * width / min(height, width), side * height / min(height, width)


def draw_image(axis: Axes, image: torch.Tensor | np.ndarray, title: str = "", caption: str = "") -> None:
    """An image (C, H, W) in [0, 1], clipped to it, without ticks, with a title over and a caption under it."""
    pixels = as_array(image).clip(0, 1).transpose(1, 2, 0)
    axis.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=1)
    label_panel(axis, title, caption)


def label_panel(axis: Axes, title: str = "", caption: str = "") -> None:
    """Take the ticks away and write over and under the panel."""
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_linewidth(0.4)
    axis.set_title(title, fontsize=9, pad=3)
    axis.set_xlabel(caption, fontsize=8, labelpad=2)


def image_grid(
    rows: Sequence[Sequence[torch.Tensor]],
    titles: Sequence[str],
    captions: Sequence[Sequence[str]],
    values: Mapping[str, np.ndarray | torch.Tensor],
    note: str | None = None,
) -> Picture:
    """Images (C, H, W) in rows, a title over each column and a caption under each image."""
    width, height = panel_size(*rows[0][0].shape[-2:])
    lines = max(caption.count("\n") + bool(caption) for row in captions for caption in row)
    total = len(rows) * (height + 0.08 + 0.14 * lines) + 0.2 * any(titles) + 0.1 + 0.15 * bool(note)
    picture = Picture((width + 0.08) * len(titles), total, values)
    axes = picture.subplots(len(rows), len(titles), squeeze=False)
    for number, (row, images) in enumerate(zip(axes, rows, strict=True)):
        for axis, image, title, caption in zip(row, images, titles, captions[number], strict=True):
            draw_image(axis, image, "" if number else title, caption)
    picture.add_note(note)
    return picture


def draw_spread(
    axis: Axes,
    values: torch.Tensor | np.ndarray,
    color: str,
    label: str | None = None,
    shown: Sequence[int] = (),
    **line,
) -> None:
    """Values (B, S) of images along the steps: the median as a line, the band that holds 80 % of the images, and red
    dots at the steps that are shown beside it."""
    values = as_array(values)
    low, middle, high = np.quantile(values, [_BAND[0], 0.5, _BAND[1]], axis=0)
    steps = np.arange(values.shape[1])
    axis.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)
    axis.plot(steps, middle, color=color, label=label, **{"linewidth": 1.8, "marker": ".", "markersize": 4, **line})
    axis.plot(shown, middle[list(shown)], "o", color="tab:red", markersize=6, zorder=3)
    axis.set_xlabel("step", fontsize=8)
    axis.locator_params(axis="x", integer=True)
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)


def spread_note(images: int) -> str:
    """What the line and the band of [`draw_spread`] are."""
    return f"line: median of {images} images, band: 80 % of them" if images > 1 else "of one image"


def shown_steps(num_steps: int, most: int) -> list[int]:
    """At most so many of the states 0 … T, the first and the last included, and denser at the start: the first steps
    move the tokens most."""
    if num_steps < most:
        return list(range(num_steps + 1))
    return sorted({round(num_steps * (i / (most - 1)) ** 2) for i in range(most)})


def even_sample(count: int, number: int, seed: int = 0) -> list[int]:
    """`number` of `count` indices: one from each of as many equal parts, drawn with the seed.

    Files and rows are often sorted by class or time, and neighbors look alike: the first few of them are no sample.
    """
    number = min(number, count)
    bounds = np.linspace(0, count, number + 1).round().astype(int)
    generator = np.random.default_rng(seed)
    return [int(generator.integers(low, high)) for low, high in pairwise(bounds)]
