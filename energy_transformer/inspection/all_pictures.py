"""Every picture that can be drawn of a model."""

from collections.abc import Iterator

import torch

from ..metrics import mean_visible_color, neighbor_average
from ..modeling_energy_transformer import EnergyTransformerForMaskedImageModeling, EnergyTransformerPreTrainedModel
from .animation import Animation, descent_animation
from .attention_pictures import attention_figure
from .energy_pictures import energy_figure, token_energy_figure
from .memories import hopfield_term
from .memory_pictures import memory_effect_figure, memory_figure
from .overview import overview_figure
from .pictures import Picture
from .reconstruction import Reconstruction, reconstruct
from .reconstruction_pictures import descent_figure, reconstruction_figure
from .recording import DescentRecord, record_descent
from .token_geometry import geometry_figure

_ROWS = 4  # images in the pictures of several steps
_COLUMNS = 8


def all_pictures(
    model: EnergyTransformerPreTrainedModel,
    processor,
    pixel_values: torch.Tensor,
    mask: torch.Tensor | None = None,
    dataset: torch.Tensor | None = None,
    patch: tuple[int, int] | None = None,
    num_steps: int | None = None,
) -> Iterator[tuple[str, Picture | Animation]]:
    """The pictures with their names, each drawn when it is asked for.

    Args:
        model, processor, pixel_values, mask, num_steps: as for [`record_descent`]. Pictures of one image show the one
            of most contrast.
        dataset: images (B, C, H, W), normalized, to search for what activates the memories; `pixel_values` when None.
        patch: whose attention is shown; see [`attention_figure`].
    """
    if isinstance(model, EnergyTransformerForMaskedImageModeling) and mask is not None:
        record: DescentRecord = reconstruct(model, processor, pixel_values, mask, num_steps, attentions=True)
    else:
        record = record_descent(model, processor, pixel_values, mask, num_steps, attentions=True)
    if isinstance(record, Reconstruction):
        yield from _of_reconstruction(record)
    yield from _of_descent(record, patch)
    if _has_memories(model):
        yield "memories", memory_figure(model, processor, pixel_values if dataset is None else dataset)
        if isinstance(record, Reconstruction):
            first = pixel_values[:_COLUMNS], record.mask[:_COLUMNS]
            yield "memories_switched_off", memory_effect_figure(model, processor, *first, num_steps=num_steps)


def _of_reconstruction(result: Reconstruction) -> Iterator[tuple[str, Picture | Animation]]:
    baselines = {
        "neighbor average": neighbor_average(result.images, result.mask, result.patch_size),
        "mean color": mean_visible_color(result.images, result.mask, result.patch_size),
    }
    yield "overview", overview_figure(result, _example(result))
    yield "reconstructions", reconstruction_figure(result, baselines, _COLUMNS)
    yield "descent", descent_figure(result, _ROWS)
    yield "animation", descent_animation(result, _example(result))


def _of_descent(record: DescentRecord, patch: tuple[int, int] | None) -> Iterator[tuple[str, Picture]]:
    yield "energy", energy_figure(record)
    yield "token_energies", token_energy_figure(record, max_images=_ROWS)
    if len(record.token_energies) > 1:
        for term in record.token_energies:
            yield f"token_energies_{term}", token_energy_figure(record, term, _ROWS)
    yield "token_geometry", geometry_figure(record)
    if record.attentions is not None and record.attentions.numel():
        yield "attention", attention_figure(record, _example(record), patch)


def _example(record: DescentRecord) -> int:
    """The image of most contrast."""
    return int(record.images.mean(1).flatten(1).std(1).argmax())


def _has_memories(model: EnergyTransformerPreTrainedModel) -> bool:
    try:
        return hopfield_term(model) is not None
    except ValueError:
        return False
