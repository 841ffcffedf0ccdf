"""Pictures of reconstructions and descents; pixels are clipped to [0, 1] for display."""

import textwrap
from pathlib import Path

import torch
from matplotlib.figure import Figure

from ..utils.files import atomic_path
from .reconstruction import Reconstruction

_PANEL = 1.15  # inches
_MAX_FRAMES = 9
_GREY = 0.5  # of a hidden patch


def _panels(
    rows: list[list[torch.Tensor]],
    titles: list[str],
    captions: list[list[str]] | None = None,
    note: str | None = None,
) -> Figure:
    """A grid of images (C, H, W) with a title over each column, and a note over the whole."""
    height, width = rows[0][0].shape[-2:]
    row_height = _PANEL * height / width + (0.2 if captions else 0.05)
    figure = Figure(figsize=(_PANEL * len(titles), row_height * len(rows) + 0.3))
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            axis = axes[row][column]
            pixels = image.detach().float().cpu().clamp(0, 1).permute(1, 2, 0).numpy()
            axis.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                axis.set_title(titles[column], fontsize=7)
            if captions:
                axis.set_xlabel(captions[row][column], fontsize=6)
    if note:
        figure.suptitle("\n".join(textwrap.wrap(note, int(16 * figure.get_figwidth()))), fontsize=7)
    figure.tight_layout(pad=0.3)
    return figure


def reconstruction_figure(
    result: Reconstruction, patch_size: tuple[int, int], others: dict[str, torch.Tensor] | None = None
) -> Figure:
    """One row an image: original, masked input, the hidden patches filled in, and other predictions by name."""
    columns = {
        "original": result.images,
        "masked": result.filled_in(torch.full_like(result.images, _GREY), patch_size),
        "reconstruction": result.filled_in(result.prediction, patch_size),
        **(others or {}),
    }
    return _panels([list(row) for row in zip(*columns.values(), strict=True)], list(columns), note=result.note)


def descent_figure(result: Reconstruction, patch_size: tuple[int, int], max_images: int | None = None) -> Figure:
    """One row an image: original, masked input, and the hidden patches as decoded at up to nine states of the descent,
    first and last included, with the energy below each."""
    last = len(result.frames) - 1
    steps = sorted({round(i * last / (_MAX_FRAMES - 1)) for i in range(_MAX_FRAMES)})
    masked = result.filled_in(torch.full_like(result.images, _GREY), patch_size)
    frames = result.filled_in(result.frames, patch_size)
    shown = range(len(result.images))[:max_images]
    rows = [[result.images[i], masked[i], *(frames[t, i] for t in steps)] for i in shown]
    captions = [["", "", *(f"E = {result.energies[i, t].item():.4g}" for t in steps)] for i in shown]
    return _panels(rows, ["original", "masked", *(f"step {t}" for t in steps)], captions, result.note)


def energy_figure(energies: torch.Tensor) -> Figure:
    """Energy along the steps, energies (B, T + 1): a thin line an image, the mean thick."""
    values = energies.detach().float().cpu()
    figure = Figure(figsize=(4.5, 3))
    axis = figure.subplots()
    for line in values:
        axis.plot(line.numpy(), color="tab:blue", alpha=0.35, linewidth=0.8)
    axis.plot(values.mean(0).numpy(), color="tab:red", linewidth=2, label="mean")
    axis.set_xlabel("step")
    axis.set_ylabel("energy of an image")
    axis.locator_params(axis="x", integer=True)
    axis.legend()
    figure.tight_layout()
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG under a temporary name and move it into place; parent folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
