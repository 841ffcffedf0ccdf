"""Pictures of the energy along a descent: of the images, and of each patch."""

import numpy as np
import torch

from .pictures import COLORS, WORDS, Picture, draw_image, draw_spread, label_panel, panel_size, shown_steps, spread_note
from .recording import DescentRecord

_MAX_MAPS = 7
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
    for name, values in zip(["energy", *names], energies, strict=True):
        label = "all together" if name == "energy" else f"{WORDS.get(name, name)} part"
        style = {} if name == "energy" else {"linestyle": "--", "linewidth": 1.3}
        draw_spread(axis, values - values[:, :1], COLORS.get(name, "tab:green"), label, **style)
    axis.axhline(0, color="0.6", linewidth=0.7)
    axis.set_ylabel("energy of an image − its start", fontsize=8)
    axis.legend(fontsize=7, frameon=False)
    start = record.energies[:, 0].median().item()
    axis.set_title(f"The energy along the descent (start: {start:,.0f})".replace("-", "−"), fontsize=9)
    picture.supxlabel(spread_note(len(record.images)), fontsize=6, color="0.4", x=0.99, ha="right")
    return picture


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
    picture.add_note(f"The {part}energy of each patch, step by step: bright is high, dark has settled", size=9)
    return picture


def draw_map(axis, values: torch.Tensor, scale: dict, title: str = "", caption: str = ""):
    """The energy of each patch (rows, columns) in colors."""
    drawn = axis.imshow(values.detach().float().cpu().numpy(), cmap="inferno", interpolation="nearest", **scale)
    label_panel(axis, title, caption)
    return drawn


def color_scale(maps: torch.Tensor) -> dict[str, float]:
    """One scale for all maps, so that steps can be compared."""
    low, high = np.quantile(maps.detach().float().cpu().numpy(), [_OUTLIERS, 1 - _OUTLIERS])
    return {"vmin": float(low), "vmax": float(high)}


def label_bar(bar, label: str = "energy of a patch") -> None:
    bar.ax.tick_params(labelsize=6)
    bar.set_label(label, fontsize=7)
    bar.outline.set_linewidth(0.4)
