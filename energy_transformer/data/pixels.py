"""Images as uint8 tensors, resized as the checkpoint's image processor says."""

import io
from typing import Any

import fsspec
import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from transformers.image_processing_backends import PilBackend

from ..utils.errors import UserError


def normalize(images: torch.Tensor, processor: PilBackend) -> torch.Tensor:
    """uint8 images (B, C, H, W) to float32 as the processor rescales and normalizes them, on their device."""
    mean, std = _mean_and_std(processor, images.device)
    return (images.float() * processor.rescale_factor - mean) / std


def denormalize(pixel_values: torch.Tensor, processor: PilBackend) -> torch.Tensor:
    """Normalized images (..., C, H, W) to float32 in units of [0, 1], without clipping."""
    mean, std = _mean_and_std(processor, pixel_values.device)
    return pixel_values.float() * std + mean


def _mean_and_std(processor: PilBackend, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = torch.tensor([processor.image_mean, processor.image_std], device=device)[..., None, None]
    return mean, std


def load_image(source: dict[str, Any], num_channels: int, where: str) -> Image.Image:
    """Decode {"bytes", "path"} to a PIL image of 1 or 3 channels.

    Raises:
        UserError: when it is no image or is damaged; names the file, or else `where`.
    """
    name = source.get("path") or where
    try:
        image = Image.open(io.BytesIO(source["bytes"]) if source.get("bytes") is not None else source["path"])
        if image.mode.startswith(("I", "F")):
            raise UserError(f"cannot read the image {name}: it has more than 8 bits a channel (mode {image.mode})")
        return image.convert("L" if num_channels == 1 else "RGB")
    except UserError:
        raise
    except UnidentifiedImageError as error:  # its message shows an address in memory
        raise UserError(f"cannot read the image {name}: it is of no format that Pillow knows") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read the image {name}: {error}") from error


def with_bytes(source: dict[str, Any] | None) -> dict[str, Any] | None:
    """{"bytes", "path"} of a remote file with its bytes; anything else as it is."""
    if source is None or source.get("bytes") or "://" not in (source.get("path") or ""):
        return source
    with fsspec.open(source["path"], "rb") as file:
        return {"path": source["path"], "bytes": file.read()}


def resize_to_tensor(image: Image.Image, processor: PilBackend) -> torch.Tensor:
    """A PIL image to uint8 (C, H, W) of the processor's size, without rescaling and normalizing."""
    array = np.asarray(image)
    array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    crop = processor.crop_size
    if array.shape[1:] == (crop["height"], crop["width"]):
        return torch.from_numpy(array.copy())
    pixels = processor(
        array, do_rescale=False, do_normalize=False, do_convert_rgb=False, input_data_format="channels_first"
    )["pixel_values"][0]
    return torch.from_numpy(np.asarray(pixels)).round().clamp(0, 255).to(torch.uint8)
