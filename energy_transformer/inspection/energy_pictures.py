"""Pictures of the energy along a descent: of the images, and of each patch."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.colors import PowerNorm

from .pictures import COLORS, WORDS, Picture, draw_image, draw_spread, label_panel, panel_size, shown_steps, spread_note
from .recording import DescentRecord

_MAX_MAPS = 7
_TICKS = 6
_GAMMA = 0.4  # of the colors
_OUTLIERS = 0.01  # share of the patches whose color is cut at either end of the scale


def energy_figure(record: DescentRecord) -> Picture:
    """The energy and its parts along the steps, relative to the start: median and spread over images.

    Values:
        energies: (1 + terms, B, T + 1), that of all terms first.
    """
    names = list(record.token_energies)
    energies = torch.stack([record.energies, *(record.energy_of(name) for name in names)])
    picture = Picture(4.6, 3.2, {"energies": energies})
    axis = picture.subplots()
    draw_energy(axis, record, label="all together")
    for name, values in zip(names, energies[1:], strict=True):
        color, label = COLORS.get(name, "tab:green"), f"{WORDS.get(name, name)} part"
        draw_spread(axis, values - values[:, :1], color, label, linestyle="--", linewidth=1.3)
    axis.axhline(0, color="0.6", linewidth=0.7)
    axis.legend(fontsize=7, frameon=False)
    start = f"{record.energies[:, 0].median().item():,.0f}".replace("-", "−")
    axis.set_title(f"The energy at each step and its parts (start: {start})", fontsize=9)
    picture.supxlabel(spread_note(len(record.images)), fontsize=6, color="0.4", x=0.99, ha="right")
    return picture


def draw_energy(
    axis, record: DescentRecord, image: int | None = None, shown: Sequence[int] = (), label: str | None = None
) -> None:
    """The energy of an image, or of all, relative to the start; a thin line where another block takes over.

    Args:
        shown: steps with a red dot.
    """
    energies = record.energies if image is None else record.energies[image : image + 1]
    draw_spread(axis, energies - energies[:, :1], COLORS["energy"], label, shown)
    axis.set_ylabel("energy of an image − its start", fontsize=8)
    if len(record.block_starts) > 1:
        style = {"transform": axis.get_xaxis_transform(), "fontsize": 6, "color": "0.4", "va": "top"}
        for number, start in enumerate(record.block_starts):
            if number:  # the state there has the energy of the new block already
                axis.axvline(start - 0.5, color="0.6", linewidth=0.7)
            axis.text(max(start - 0.45, 0), 1, str(number + 1) if number else "block 1", **style)


def token_energy_figure(record: DescentRecord, term: str | None = None, max_images: int = 4) -> Picture:
    """The energy of each patch at the steps of the descent: it falls until the patch fits to the others.

    Args:
        record: of the descent.
        term: `"attention"`, `"hopfield"` or another term of the model; all of them when None. In the attention the
            energy of a token is its share as a query.
        max_images: rows.

    Values:
        token_energies: (B, T + 1, rows, columns).

    Raises:
        ValueError: for a term that the model has not.
    """
    maps = record.energy_map(term)
    steps, shown = shown_steps(record.num_steps, _MAX_MAPS), range(len(record.images))[:max_images]
    width, height = panel_size(*record.images.shape[-2:])
    inputs = 1 + bool(record.mask.any())
    columns = len(steps) + inputs
    picture = Picture((width + 0.08) * columns + 0.7, (height + 0.08) * len(shown) + 0.6, {"token_energies": maps})
    axes = picture.subplots(len(shown), columns, squeeze=False)
    scale = color_scale(maps[: len(shown)])
    for row, i in zip(axes, shown, strict=True):
        first = i == 0
        draw_image(row[0], record.images[i], "original" if first else "")
        if inputs == 2:
            draw_image(row[1], record.masked_images[i], "masked" if first else "")
        for axis, t in zip(row[inputs:], steps, strict=True):
            drawn = draw_map(axis, maps[i, t], scale, f"step {t}" if first else "")
    bar = picture.colorbar(drawn, ax=axes[:, inputs:], fraction=0.02, pad=0.01, aspect=10 * len(shown))
    label_bar(bar)
    part = "" if term is None else f"{WORDS.get(term, term)} part of the "
    picture.add_note(f"The {part}energy of each patch at each step: bright is high, dark is low", size=9)
    return picture


def draw_map(axis, values: torch.Tensor, scale: dict, title: str = "", caption: str = ""):
    """The energy of each patch (rows, columns) in colors."""
    drawn = axis.imshow(values.detach().float().cpu().numpy(), cmap="inferno", interpolation="nearest", **scale)
    label_panel(axis, title, caption)
    return drawn


def color_scale(maps: torch.Tensor) -> dict[str, PowerNorm]:
    """One scale for all maps, so that steps can be compared, finer at the low end: the first step lowers the energy so
    much that later differences would not be seen."""
    low, high = np.quantile(maps.detach().float().cpu().numpy(), [_OUTLIERS, 1 - _OUTLIERS])
    return {"norm": PowerNorm(_GAMMA, float(low), float(high), clip=True)}


def label_bar(bar, label: str = "energy of a patch") -> None:
    ticks = bar.norm.inverse(np.linspace(0, 1, _TICKS))
    bar.set_ticks(ticks, labels=[f"{tick:.3g}".replace("-", "−") for tick in ticks])
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=6)
    bar.set_label(label, fontsize=7)
    bar.outline.set_linewidth(0.4)
