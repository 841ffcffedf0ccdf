"""Images as uint8 tensors, resized as the checkpoint's image processor says."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from transformers.image_processing_backends import PilBackend

from ..utils.errors import UserError

MAX_IMAGE_PIXELS = 2**30 // 4 // 3  # the size from which Pillow warns: 256 MiB of red, green and blue
BACKGROUND = (255, 255, 255)  # what a transparent image is laid on: white, as viewers do
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by the number that EXIF writes

Box = tuple[float, float, float, float]  # left, top, right and bottom


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


@contextmanager
def broken_images_are_named(name: str) -> Iterator[None]:
    """Whatever goes wrong meanwhile is the image's fault.

    Raises:
        UserError: in place of any other exception: a damaged file makes Pillow's readers raise all kinds.
    """
    try:
        yield
    except UnidentifiedImageError as error:  # its message shows an address in memory
        raise UserError(f"cannot read the image {name}: it is of no format that Pillow knows") from error
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"cannot read the image {name}: {reason}") from error


def load_image(
    source: dict[str, Any], num_channels: int, where: str, max_image_pixels: int = MAX_IMAGE_PIXELS
) -> Image.Image:
    """Decode {"bytes", "path"} to a PIL image of 1 or 3 channels, the picture that a viewer shows: see [`read_pixels`].

    Args:
        source: the bytes count where both are given.
        num_channels: 1 or 3.
        where: names the image where it has no path.
        max_image_pixels: a larger image is refused before it is decoded.

    Raises:
        UserError: when it is no image, is damaged or too large; names the file, or else `where`.
    """
    with broken_images_are_named(source.get("path") or where):
        return read_pixels(open_image(source, max_image_pixels), num_channels, max_image_pixels)


def open_image(source: dict[str, Any], max_image_pixels: int) -> Image.Image:
    """The image of {"bytes", "path"}, of which only the head is read yet."""
    image = Image.open(io.BytesIO(source["bytes"]) if source.get("bytes") is not None else source["path"])
    _check_size(image, max_image_pixels)
    if image.format == "EPS":
        raise ValueError("it is PostScript, a program, which is not run")
    return image


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an image from [`open_image`] as a viewer shows it."""
    is_turned = _orientation(image) >= 5 and image.format != "TIFF"  # Pillow turns these itself
    return image.size[::-1] if is_turned else image.size


def read_pixels(
    image: Image.Image, num_channels: int, max_image_pixels: int, least_size: tuple[int, int] | None = None
) -> Image.Image:
    """The pixels of an image from [`open_image`], in 1 or 3 channels.

    It is turned as its EXIF data say, transparent parts show [`BACKGROUND`], 16 bits of gray become 8 of the same
    brightness, and of an animation the first picture is taken. Color profiles are not applied. A JPEG is decoded to a
    half, a quarter or an eighth of its size where that is no smaller than `least_size`, (width, height).
    """
    if least_size is not None and image.format == "JPEG":
        image.draft(None, least_size if _orientation(image) < 5 else least_size[::-1])
    image.load()
    _check_size(image, max_image_pixels)  # an icon's picture tells its size only now
    orientation = _orientation(image)
    image, mode = _opaque(_eight_bits(image)), "L" if num_channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _check_size(image: Image.Image, max_image_pixels: int) -> None:
    if image.width * image.height > max_image_pixels:
        raise ValueError(f"its {image.width}x{image.height} pixels are more than max_image_pixels {max_image_pixels}")


def _orientation(image: Image.Image) -> int:
    """EXIF's number for how to turn the image, 1 where there is none. Damaged EXIF data do not hide the picture."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, of which none is known to be white (mode F)")
    if not image.mode.startswith("I"):
        return image
    pixels = np.asarray(image).astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(f"its pixels are not in the range of 16 bits, [0, 65535] (mode {image.mode})")
    return Image.fromarray(((pixels * 255 + 32767) // 65535).astype(np.uint8))


def _opaque(image: Image.Image) -> Image.Image:
    without_palette = image.mode == "P" and image.palette is None  # as Pillow's reader of Apple's icons leaves it
    if not without_palette and not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (*BACKGROUND, 255)), image)


def with_bytes(source: dict[str, Any] | None) -> dict[str, Any] | None:
    """{"bytes", "path"} of a remote file with its bytes; anything else as it is."""
    if source is None or source.get("bytes") or "://" not in (source.get("path") or ""):
        return source
    with fsspec.open(source["path"], "rb") as file:
        return {"path": source["path"], "bytes": file.read()}


def output_size(processor: PilBackend) -> tuple[int, int]:
    """Height and width of what a processor makes of an image."""
    size = processor.crop_size if processor.do_center_crop else processor.size
    return size["height"], size["width"]


def resize_to_tensor(image: Image.Image, processor: PilBackend, box: Box | None = None) -> torch.Tensor:
    """A PIL image to uint8 (C, H, W) of the processor's size, without rescaling and normalizing.

    Args:
        image: of 1 or 3 channels.
        processor: says the size, and how to interpolate.
        box: the part of the image, in pixels, that is resized to the whole size; what the processor takes when None.
    """
    height, width = output_size(processor)
    if box is None and image.size == (width, height):
        return _to_tensor(image)
    box = box or _processors_box(image, processor)
    if box is not None:
        return _to_tensor(image.resize((width, height), processor.resample, box))
    array = np.asarray(image)
    array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    pixels = processor(
        array, do_rescale=False, do_normalize=False, do_convert_rgb=False, input_data_format="channels_first"
    )["pixel_values"][0]
    return torch.from_numpy(np.asarray(pixels)).round().clamp(0, 255).to(torch.uint8)


def _to_tensor(image: Image.Image) -> torch.Tensor:
    array = np.array(image)
    return torch.from_numpy(array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1)))


def _processors_box(image: Image.Image, processor: PilBackend) -> Box | None:
    """The part of the image that the processor resizes and takes, in pixels of the image; None where it does
    something else. To resize this part alone is what makes it faster than the processor, to within a gray level."""
    if not processor.do_resize:
        return None
    if not processor.do_center_crop:
        return 0, 0, image.width, image.height
    height, width = output_size(processor)
    size = processor.size
    if size.get("shortest_edge") and not size.get("longest_edge"):
        short, long = size["shortest_edge"], int(size["shortest_edge"] * max(image.size) / min(image.size))
        resized = (short, long) if image.width <= image.height else (long, short)
    elif size.get("width") and size.get("height"):
        resized = size["width"], size["height"]
    else:
        return None
    left, top = (resized[0] - width) // 2, (resized[1] - height) // 2
    if left < 0 or top < 0:
        return None
    x, y = image.width / resized[0], image.height / resized[1]
    return left * x, top * y, min((left + width) * x, image.width), min((top + height) * y, image.height)
