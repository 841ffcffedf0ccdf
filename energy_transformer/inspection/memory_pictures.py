"""Pictures of the memories, and of what is missing without them."""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from ..data import denormalize
from ..modeling_energy_transformer import EnergyTransformerForMaskedImageModeling, EnergyTransformerPreTrainedModel
from .memories import decoded_memories, memory_activations, most_active, scaled_memories
from .pictures import Picture, draw_image, label_panel, panel_size
from .reconstruction import Reconstruction, reconstruct

_PATCHES = 8  # shown for each memory
_MEMORIES = 12


def memory_figure(
    model: EnergyTransformerPreTrainedModel,
    processor,
    pixel_values: torch.Tensor,
    memories: Sequence[int] | None = None,
    block: int = 0,
) -> Picture:
    """Memories, and the patches of a data set that activate each most: a row a memory.

    For a masked-image model the first panel is the memory as the decoder draws it. The others are patches, framed, with
    the patches around them, at most one of each image.

    Args:
        model: with a Hopfield term.
        processor: that normalized the images.
        pixel_values: the data set, (B, C, H, W).
        memories: which to show; the twelve that are most active on it when None.
        block: whose memories.

    Values:
        memories: their numbers, (memories,).
        activations: of the patches shown, (memories, patches).
        decoded: (memories, C, patch height, patch width), of a masked-image model.

    Raises:
        ValueError: when there is no Hopfield term, or no such memory or block.
    """
    activations = memory_activations(model, pixel_values, block)
    chosen = most_active(activations, _MEMORIES) if memories is None else list(memories)
    by_image, patches = activations[..., chosen].max(1)
    strengths, images = by_image.T.topk(min(_PATCHES, len(pixel_values)))
    places = patches.T.gather(1, images)
    values = {"memories": torch.tensor(chosen), "activations": strengths}
    if isinstance(model, EnergyTransformerForMaskedImageModeling):
        values["decoded"] = decoded_memories(model, processor, chosen, block)
    surroundings = _surroundings(denormalize(pixel_values, processor), images, places, model.config.patch_height_width)
    return _draw_memories(surroundings, values)


def _surroundings(images, chosen, places, patch_size: tuple[int, int]) -> torch.Tensor:
    """Patches with their neighbors, (memories, patches, C, 3·height, 3·width)."""
    height, width = patch_size
    columns = images.shape[-1] // width
    padded = F.pad(images, (width, width, height, height), mode="replicate")
    cut = [
        padded[i, :, row : row + 3 * height, column : column + 3 * width]
        for i, row, column in zip(
            chosen.flatten().tolist(),
            (places // columns * height).flatten().tolist(),
            (places % columns * width).flatten().tolist(),
            strict=True,
        )
    ]
    return torch.stack(cut).unflatten(0, chosen.shape)


def _draw_memories(surroundings: torch.Tensor, values: dict[str, torch.Tensor]) -> Picture:
    """Two memories in a line."""
    count, shown = surroundings.shape[:2]
    is_decoded = "decoded" in values
    lines, columns = -(-count // 2), shown + is_decoded
    height, width = surroundings.shape[-2] // 3, surroundings.shape[-1] // 3
    picture = Picture(0.62 * (2 * columns + 1), 0.62 * lines * height / width + 0.65, values)
    axes = picture.subplots(lines, 2 * columns + 1, squeeze=False, width_ratios=[*[1] * columns, 0.5, *[1] * columns])
    for axis in axes.ravel():
        axis.set_axis_off()
    for number, memory in enumerate(values["memories"].tolist()):
        line, half = axes[number % lines], number // lines
        own = line[half * (columns + 1) :][:columns]
        for axis in own:
            axis.set_axis_on()
        if is_decoded:
            draw_image(own[0], values["decoded"][number], "decoded" if number % lines == 0 else "")
            own[0].title.set_fontsize(7)
        own[0].set_ylabel(memory, fontsize=7, rotation=0, ha="right", va="center", labelpad=2)
        for axis, image in zip(own[is_decoded:], surroundings[number], strict=True):
            draw_image(axis, image)
            corner = [(width - 0.5, height - 0.5), (2 * width - 0.5, 2 * height - 0.5)]
            (x, y), (right, bottom) = corner
            axis.plot([x, right, right, x, x], [y, y, bottom, bottom, y], color="tab:cyan", linewidth=0.9)
    what = ", as the decoder draws them," if is_decoded else ""
    picture.add_note(f"Memories (by number){what} and the patches (framed) that activate each most", size=9)
    return picture


def memory_effect_figure(
    model: EnergyTransformerForMaskedImageModeling,
    processor,
    pixel_values: torch.Tensor,
    mask: torch.Tensor,
    memories: Sequence[int] | None = None,
    scale: float = 0.0,
    block: int = 0,
    num_steps: int | None = None,
) -> Picture:
    """What memories do to a reconstruction: with them, without them, and the difference; a column an image.

    Args:
        model, processor, pixel_values, mask, num_steps: as for [`reconstruct`].
        memories: which to change; the ten most active ones when None.
        scale: what they are multiplied by; 0 switches them off.
        block: whose memories.

    Values:
        memories: their numbers.
        with_memories, without_memories: predictions (B, C, H, W) in [0, 1], unclipped.
        errors: of both, (2, B).

    Raises:
        ValueError: when there is no Hopfield term, or no such memory or block.
    """
    if memories is None:
        memories = most_active(memory_activations(model, pixel_values, block, num_steps), 10)
    result = reconstruct(model, processor, pixel_values, mask, num_steps)
    with scaled_memories(model, memories, scale, block):
        without = reconstruct(model, processor, pixel_values, mask, num_steps).prediction
    predictions = torch.stack([result.prediction, without])
    values = {
        "memories": torch.tensor(list(memories)),
        "with_memories": result.prediction,
        "without_memories": without,
        "errors": result.errors(predictions),
    }
    return _draw_effect(result, values, len(list(memories)), scale)


def _draw_effect(result: Reconstruction, values: dict[str, torch.Tensor], count: int, scale: float) -> Picture:
    change = "switched off" if scale == 0 else f"times {scale:g}"
    plural = "memory" if count == 1 else "memories"
    with_them, without = result.filled_in(torch.stack([values["with_memories"], values["without_memories"]]))
    difference = (without - with_them).abs().mean(1)
    bound = max(difference.quantile(0.995).item(), 1e-3)
    width, height = panel_size(*result.images.shape[-2:])
    columns = len(result.images)
    picture = Picture(columns * (width + 0.08) + 0.9, 5 * (height + 0.12) + 0.6, values)
    axes = picture.subplots(5, columns, squeeze=False)
    errors = [[f"error {error:.4f}" for error in each] for each in values["errors"].tolist()]
    nothing = [""] * columns
    rows = [("original", result.images, nothing), ("masked", result.masked_images, nothing)]
    rows += [("all memories", with_them, errors[0]), (f"{count} {change}", without, errors[1])]
    for line, (name, images, captions) in zip(axes[:4], rows, strict=True):
        for i, axis in enumerate(line):
            draw_image(axis, images[i], caption=captions[i])
        line[0].set_ylabel(name, fontsize=9)
    for i, axis in enumerate(axes[4]):
        drawn = axis.imshow(difference[i].cpu().numpy(), cmap="Reds", vmin=0, vmax=bound)
        label_panel(axis)
    axes[4, 0].set_ylabel("difference", fontsize=9)
    bar = picture.colorbar(drawn, ax=axes[4], fraction=0.02, pad=0.01)
    bar.ax.tick_params(labelsize=7)
    bar.set_label("change of color", fontsize=8)
    picture.add_note(f"The same reconstruction with {count} {plural} {change}", size=9)
    return picture
