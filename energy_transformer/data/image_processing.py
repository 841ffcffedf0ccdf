"""The image processor of a checkpoint: transformers' own BiT processor on Pillow, without torchvision."""

from collections.abc import Sequence
from typing import Any

from transformers.image_processing_backends import PilBackend
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from ..hub import load_pretrained


def processor_sizes(height: int, width: int) -> dict[str, Any]:
    """What makes a processor resize an image to this size, whole and without a crop, as ViT's does. `size` alone then
    decides, so that `AutoImageProcessor.from_pretrained(..., size=...)` gives another one; processors of earlier
    versions also cut a square from the middle, which these options end."""
    return {
        "size": {"height": height, "width": width},
        "default_to_square": True,  # where `size` is one number
        "do_center_crop": False,
        "crop_size": None,
    }


def build_image_processor(
    image_size: tuple[int, int],
    num_channels: int = 3,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> PilBackend:
    """A processor that resizes as [`processor_sizes`] says and normalizes pixels in [0, 1].

    `mean` and `std` are those of the channels; 0.5 when None, which maps [0, 255] to [-1, 1].
    """
    return BitImageProcessorPil(
        **processor_sizes(*image_size),
        image_mean=list(mean or [0.5] * num_channels),
        image_std=list(std or [0.5] * num_channels),
        do_convert_rgb=num_channels == 3,
    )


def load_image_processor(name_or_path: str, **kwargs) -> PilBackend:
    """The processor of a checkpoint. `AutoImageProcessor` of transformers 5.17 would ask for torchvision.

    Raises:
        UserError: when there is none, or the Hub cannot be reached.
    """
    return load_pretrained(BitImageProcessorPil, name_or_path, **kwargs)
