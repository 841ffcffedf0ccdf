"""Pictures of reconstructions, with the error under each panel; pixels are clipped to [0, 1] for display."""

import torch

from .pictures import Picture, image_grid, shown_steps
from .reconstruction import Reconstruction

_MAX_FRAMES = 7


def reconstruction_figure(
    result: Reconstruction, others: dict[str, torch.Tensor] | None = None, max_images: int | None = None
) -> Picture:
    """A column an image: original, masked input, the hidden patches filled in, and other predictions by name.

    Under each prediction stands its mean squared error over the hidden pixels, in units of [0, 1].

    Values:
        errors: (1 + others, B).
    """
    predictions = {"model": result.prediction, **(others or {})}
    errors = result.errors(torch.stack(list(predictions.values())))
    rows = {"original": result.images, "masked": result.masked_images}
    rows |= {name: result.filled_in(prediction) for name, prediction in predictions.items()}
    shown = [list(images[:max_images]) for images in rows.values()]
    count = len(shown[0])
    captions = [[""] * count] * 2 + [[f"error {error:.4f}" for error in each[:count]] for each in errors.tolist()]
    title = "What is filled in for the hidden patches; error: mean square over their pixels"
    note = f"{title}; {result.note}" if result.note else title
    picture = image_grid(shown, [""] * count, captions, {"errors": errors}, note)
    for axis, name in zip(picture.axes[::count], rows, strict=True):
        axis.set_ylabel(name, fontsize=8)
    return picture


def descent_figure(result: Reconstruction, max_images: int | None = None) -> Picture:
    """A row an image: original, masked input, and the hidden patches as decoded at up to seven states of the descent.

    Under each state stand its error over the hidden pixels, in units of [0, 1], and its energy: at the start the value,
    then the difference to it.

    Values:
        errors: (B, T + 1).
        energies: (B, T + 1).
    """
    steps = shown_steps(result.num_steps, _MAX_FRAMES)
    errors, energies = result.errors(result.frames).T, result.energies
    frames, masked = result.filled_in(result.frames), result.masked_images
    shown = range(len(result.images))[:max_images]
    rows = [[result.images[i], masked[i], *(frames[t, i] for t in steps)] for i in shown]
    captions = [["", "", *(_state_caption(errors[i], energies[i], t) for t in steps)] for i in shown]
    titles = ["original", "masked", *(f"step {t}" for t in steps)]
    legend = (
        "The descent. error: mean square over the hidden pixels; E: energy of the image at the start, ΔE: its change"
    )
    note = f"{legend}; {result.note}" if result.note else legend
    return image_grid(rows, titles, captions, {"errors": errors, "energies": energies}, note)


def _state_caption(errors: torch.Tensor, energies: torch.Tensor, step: int) -> str:
    """Error and energy of an image at a step, (T + 1,) each."""
    start, energy = energies[0].item(), energies[step].item()
    energy_text = f"E = {start:,.0f}" if step == 0 else f"ΔE {energy - start:+,.0f}"
    return f"error {errors[step].item():.4f}\n{energy_text}".replace("-", "−")
