"""Pictures of masks, reconstructions and descents.

Images are float (B, C, H, W) in [0, 1], clipped for display; masks (B, N) are True for the hidden patches.
"""

from pathlib import Path

import torch
from matplotlib.figure import Figure

from .patches import patch_mask_to_pixels

_PANEL = 1.15  # inches
_MAX_FRAMES = 9


def _hidden_pixels(images: torch.Tensor, mask: torch.Tensor, patch_size: tuple[int, int]) -> torch.Tensor:
    grid = (images.shape[2] // patch_size[0], images.shape[3] // patch_size[1])
    return patch_mask_to_pixels(mask, patch_size, grid)


def _panels(rows: list[list[torch.Tensor]], titles: list[str], captions: list[list[str]] | None = None) -> Figure:
    """A grid of images (C, H, W) with a title over each column."""
    figure = Figure(figsize=(_PANEL * len(titles), _PANEL * len(rows) * (1.15 if captions else 1.05) + 0.3))
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
    figure.tight_layout(pad=0.3)
    return figure


def reconstruction_figure(
    images: torch.Tensor,
    masks: torch.Tensor,
    reconstructions: torch.Tensor,
    patch_size: tuple[int, int],
    others: dict[str, torch.Tensor] | None = None,
) -> Figure:
    """One row an image: original, masked input, the hidden patches filled in, and other predictions by name."""
    hidden = _hidden_pixels(images, masks, patch_size)
    columns = {
        "original": images,
        "masked": torch.where(hidden, 0.5, images),
        "reconstruction": torch.where(hidden, reconstructions.to(images), images),
        **(others or {}),
    }
    return _panels([list(row) for row in zip(*columns.values(), strict=True)], list(columns))


def descent_figure(
    frames: torch.Tensor,
    images: torch.Tensor,
    masks: torch.Tensor,
    patch_size: tuple[int, int],
    energies: torch.Tensor | None = None,
) -> Figure:
    """One row an image: original, masked input, and the decoded state at up to nine steps, first and last included.

    Args:
        frames (`torch.Tensor` of shape `(T + 1, B, C, H, W)`): decoded states.
        energies (`torch.Tensor` of shape `(B, T + 1)`, *optional*): written below them.
    """
    last = len(frames) - 1
    steps = sorted({round(i * last / (_MAX_FRAMES - 1)) for i in range(_MAX_FRAMES)})
    masked = torch.where(_hidden_pixels(images, masks, patch_size), 0.5, images)
    rows = [[images[i], masked[i], *(frames[t, i] for t in steps)] for i in range(len(images))]
    captions = None
    if energies is not None:
        captions = [["", "", *(f"E = {energies[i, t].item():.4g}" for t in steps)] for i in range(len(images))]
    return _panels(rows, ["original", "masked", *(f"step {t}" for t in steps)], captions)


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
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png", dpi=150)
    temporary.replace(path)
