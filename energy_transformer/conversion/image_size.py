"""Give a model another image size for good."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import nn

from ..modeling_energy_transformer import EnergyTransformerPreTrainedModel

Model = TypeVar("Model", bound=EnergyTransformerPreTrainedModel)


@torch.no_grad()
def resize(model: Model, image_size: int | Sequence[int]) -> Model:
    """Make `image_size` the model's own: its positions become those that `interpolate_pos_encoding=True` gives there.

    The model is changed in place: afterwards it takes images of that size without interpolation, is saved with it, and
    trains on with positions of its own for each patch. The image processor that belongs to it is
    `AutoImageProcessor.from_pretrained(folder, size={"height": height, "width": width})`.

    Args:
        model: any of the models, with or without a head.
        image_size: pixels of a side, or height and width: multiples of the patch size.

    Returns:
        The same model.

    Raises:
        ValueError: when the patches do not tile an image of that size.
    """
    sizes = [image_size] if isinstance(image_size, int) else list(image_size)
    height, width = sizes[0], sizes[-1]
    patch_height, patch_width = model.config.patch_height_width
    if not 1 <= len(sizes) <= 2 or min(sizes) < 1 or height % patch_height or width % patch_width:
        raise ValueError(
            "image_size must be one number or height and width, multiples of the patch size "
            f"{patch_height}x{patch_width}, got {image_size}"
        )
    embeddings = model.base_model.embeddings
    old = embeddings.position_embeddings
    positions = embeddings.interpolate_pos_encoding(embeddings.grid_of(height, width))
    embeddings.position_embeddings = nn.Parameter(positions.clone(), requires_grad=old.requires_grad)
    model.config.image_size = height if height == width else (height, width)
    return model
