"""Where a token looks: its attention over the image."""

import numpy as np
import torch
from matplotlib.colors import PowerNorm
from matplotlib.patches import Rectangle

from .energy_pictures import label_bar
from .pictures import Picture, draw_image, label_panel, panel_size, shown_steps
from .recording import DescentRecord

_MAX_MAPS = 7


def attention_figure(record: DescentRecord, image: int = 0, patch: tuple[int, int] | None = None) -> Picture:
    """The attention of one patch to all patches, a row for each head and a column for each step, over the image.

    The patch is framed. The share of its attention that goes to a CLS token is in the title.

    Args:
        record: of a descent with its attentions.
        image: its place in the batch.
        patch: its row and column; the hidden patch nearest to the middle when None, or the middle where none is hidden.

    Values:
        attentions: (H, T, rows, columns).

    Raises:
        ValueError: for a record without attentions, or a patch outside of the grid.
    """
    if record.attentions is None:
        raise ValueError("attentions were not recorded: pass attentions=True to record_descent or reconstruct")
    row, column = _middle(record, image) if patch is None else _checked(patch, record.grid)
    columns = record.grid[1]
    special = record.attentions.shape[-1] - record.mask.shape[1]
    weights = record.attentions[:, image, :, special + row * columns + column].transpose(0, 1)
    maps = record.on_grid(weights)
    steps = shown_steps(len(record.attentions) - 1, _MAX_MAPS)
    heads = len(maps)
    width, height = panel_size(*record.images.shape[-2:])
    picture = Picture((width + 0.08) * (len(steps) + 1) + 0.7, (height + 0.1) * heads + 0.6, {"attentions": maps})
    axes = picture.subplots(heads, len(steps) + 1, squeeze=False)
    strongest = max(maps[:, steps].quantile(0.995).item(), 1e-9)
    scale = {"norm": PowerNorm(0.5, 0.0, strongest, clip=True)}  # or weak attention to many patches were not seen
    for head, line in enumerate(axes):
        if head == 0:
            draw_image(line[0], record.masked_images[image], "the input")
            _frame(line[0], record, row, column)
        else:
            line[0].set_axis_off()
        for axis, t in zip(line[1:], steps, strict=True):
            drawn = _draw_attention(axis, record, image, maps[head, t], scale, f"step {t + 1}" if head == 0 else "")
            _frame(axis, record, row, column)
        line[1].set_ylabel(f"head {head + 1}", fontsize=8)
    label_bar(picture.colorbar(drawn, ax=axes[:, 1:], fraction=0.02, pad=0.01), "share of the attention")
    title = f"Where the framed patch looks (row {row}, column {column}){_told(weights, special)}"
    picture.add_note(title, size=9)
    return picture


def _told(weights: torch.Tensor, special: int) -> str:
    """What goes to the CLS token."""
    return f"; {weights[..., 0].mean().item():.0%} of it at the CLS token, on average" if special else ""


def _middle(record: DescentRecord, image: int) -> tuple[int, int]:
    rows, columns = record.grid
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
    distances = (places - torch.tensor([(rows - 1) / 2, (columns - 1) / 2])).norm(dim=-1)
    hidden = record.mask[image].cpu()
    chosen = torch.where(hidden, distances, torch.inf if hidden.any() else distances).argmin()
    return int(chosen) // columns, int(chosen) % columns


def _checked(patch: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
    if not all(0 <= place < size for place, size in zip(patch, grid, strict=True)):
        raise ValueError(f"patch must be a row and a column of the grid of {grid[0]}x{grid[1]} patches, got {patch}")
    return patch


def _frame(axis, record: DescentRecord, row: int, column: int) -> None:
    height, width = record.patch_size
    corner = (column * width - 0.5, row * height - 0.5)
    axis.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="tab:cyan", linewidth=1.4))


def _draw_attention(axis, record: DescentRecord, image: int, weights: torch.Tensor, scale: dict, title: str):
    """The image in gray, under the weights."""
    height, width = record.images.shape[-2:]
    gray = record.masked_images[image].mean(0).cpu().clamp(0, 1).numpy()
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axis.imshow(gray, cmap="gray", vmin=-0.2, vmax=1.6)
    numbers = weights.cpu().numpy()
    opacity = 0.9 * np.asarray(scale["norm"](numbers))
    drawn = axis.imshow(numbers, cmap="inferno", alpha=opacity, extent=extent, **scale)
    label_panel(axis, title)
    return drawn
