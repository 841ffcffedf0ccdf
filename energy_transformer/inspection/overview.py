"""One picture that shows what an Energy Transformer does."""

from .energy_pictures import color_scale, draw_energy, draw_map
from .pictures import Picture, draw_image, panel_size, shown_steps
from .reconstruction import Reconstruction

_SIDE = 1.35  # inches of a panel's shorter side


def overview_figure(result: Reconstruction, image: int = 0, steps: list[int] | None = None) -> Picture:
    """One image from its mask to the result: the decoded states over the energy of each patch, beside the energy curve.

    Args:
        result: of [`reconstruct`].
        image: its place in the batch.
        steps: which states to show; five when None, most of them early.

    Values:
        energies: (T + 1,).
        token_energies: (T + 1, rows, columns).
        errors: (T + 1,).
    """
    steps = shown_steps(result.num_steps, 5) if steps is None else steps
    maps, energies = result.energy_map()[image], result.energies[image]
    errors = result.errors(result.frames)[:, image]
    values = {"energies": energies, "token_energies": maps, "errors": errors}
    width, height = panel_size(*result.images.shape[-2:])
    width, height = _SIDE * width / min(width, height), _SIDE * height / min(width, height)
    columns = len(steps) + 2
    picture = Picture(columns * (width + 0.1) + 2.9, 2 * (height + 0.35) + 0.45, values)
    images, curve = picture.subfigures(1, 2, width_ratios=[columns * (width + 0.1), 2.9])
    axes = images.subplots(2, columns)
    draw_image(axes[0, 0], result.masked_images[image], "masked photo")
    draw_image(axes[0, -1], result.images[image], "the truth")
    for axis in (axes[1, 0], axes[1, -1]):
        axis.set_axis_off()
    axes[1, 0].text(0.98, 0.5, "energy of\neach patch:\nbright is high,\ndark is low", ha="right", va="center",
                    transform=axes[1, 0].transAxes, fontsize=11)  # fmt: skip
    frames, scale = result.filled_in(result.frames)[:, image], color_scale(maps)
    for top, bottom, step in zip(axes[0, 1:-1], axes[1, 1:-1], steps, strict=True):
        title = "start" if step == 0 else "result" if step == result.num_steps else f"step {step}"
        draw_image(top, frames[step], title, f"error {errors[step].item():.4f}")
        draw_map(bottom, maps[step], scale)
    for axis in axes.ravel():
        axis.title.set_fontsize(11)
        axis.xaxis.label.set_fontsize(10)
    axis = curve.subplots()
    draw_energy(axis, result, image, steps)
    axis.set_title("Its energy", fontsize=13)
    for label in (axis.xaxis.label, axis.yaxis.label):
        label.set_fontsize(11)
    axis.tick_params(labelsize=9)
    images.suptitle("Tokens descend an energy, and the hidden patches of a photo fill in", fontsize=13)
    return picture
