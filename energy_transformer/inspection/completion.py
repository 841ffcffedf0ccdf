"""Fill in what a mask of one's own hides in a photograph of any size.

The pixels outside of the mask stay the photograph's own. The model sees the photograph at a scale at which it can look
across the holes, in overlapping tiles of its own size, or whole.

Shapes: C channels, H and W height and width of the photograph, h and w those of what the model works on.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from scipy.ndimage import distance_transform_edt
from torch.nn import functional as F

from ..data import denormalize, normalize
from ..data.pixels import MAX_IMAGE_PIXELS, broken_images_are_named, open_image
from ..masking import patch_mask
from ..modeling_energy_transformer import EnergyTransformerForMaskedImageModeling
from ..patches import patch_mask_to_pixels
from ..utils.errors import UserError
from .pictures import Picture, image_grid, shown_steps
from .reconstruction import predicted_pixels

_HOLE = 1 / 4  # of the model's side: the radius of a hole that it looks across
_BATCH = 32  # tiles at once
_MAX_PATCHES = 16384  # of a photograph that is run whole
_MAX_FRAMES = 4
_FIGURE_SIDE = 320  # pixels


@dataclass
class Completion:
    """A photograph that was filled in.

    Attributes:
        image: uint8 (H, W, C); outside of the mask the photograph's own pixels.
        seen: the photograph at the scale of the model in [0, 1], (C, h, w).
        hidden: True for what the model did not see: every patch that the mask touches, (h, w).
        frames: `seen`, filled in with the decoded states of some steps, (frames, C, h, w).
        steps: which steps these are.
        error: mean squared error against the photograph under the mask, in units of [0, 1].
        mean_color_error: that of the mean color of the rest.
    """

    image: np.ndarray
    seen: torch.Tensor
    hidden: torch.Tensor
    frames: torch.Tensor
    steps: list[int]
    error: float
    mean_color_error: float


def load_mask(path: str | Path, size: tuple[int, int]) -> np.ndarray:
    """The mask of a picture file for a photograph of (height, width), booleans of that shape: True where it is white.

    A picture of another size is resized to it, each pixel taking the value of the nearest one. Gray counts as white
    from the middle on, transparent as black.

    Raises:
        UserError: when the file is no picture, or hides nothing or everything.
    """
    with broken_images_are_named(str(path)):
        picture = ImageOps.exif_transpose(open_image({"path": str(path)}, MAX_IMAGE_PIXELS))
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture)
        mask = np.asarray(picture.convert("L").resize(size[::-1], Image.Resampling.NEAREST)) >= 128
    if not mask.any():
        raise UserError(f"the mask {path} hides nothing: what is white is hidden, and none of it is")
    if mask.all():
        raise UserError(f"the mask {path} hides the whole photograph: what is white is hidden, and all of it is")
    return mask


@torch.no_grad()
def complete(
    model: EnergyTransformerForMaskedImageModeling,
    processor,
    photograph: np.ndarray,
    mask: np.ndarray,
    whole: bool = False,
    scale: float | None = None,
    overlap: float = 0.5,
    num_steps: int | None = None,
) -> Completion:
    """Fill in a photograph, uint8 (H, W, C), under a mask, booleans (H, W), of any form.

    A patch that the mask touches is hidden from the model as a whole, but only the pixels under the mask change.

    Args:
        model, processor: of a masked-image checkpoint.
        photograph: with as many channels as the model has.
        mask: True for the pixels to fill in.
        whole: run the model once on the whole photograph, with positions that are resized to it, and not in tiles.
        scale: what the model works on is so much smaller than the photograph, in (0, 1]; small enough for it to look
            across the widest hole when None. What it paints is then enlarged.
        overlap: share of a tile that its neighbor covers too, in [0, 1); where tiles overlap they are blended.
        num_steps: descent steps of each block; the model's when None.

    Raises:
        UserError: for a photograph or a mask of a wrong shape, one that is smaller than the model or too large to be
            run whole, and a scale or an overlap out of range.
    """
    model.eval()
    tile = model.config.image_height_width
    _check(photograph, mask, model, scale, overlap)
    size = _working_size(mask, tile, scale, overlap)
    image = torch.from_numpy(np.array(photograph)).permute(2, 0, 1)[None].float()
    covered = torch.from_numpy(mask)[None, None]
    image, touched = F.adaptive_avg_pool2d(image, size), F.adaptive_max_pool2d(covered.float(), size) > 0
    image, touched = _padded(image, touched, model.config.patch_height_width)
    if whole:
        tile = (image.shape[-2], image.shape[-1])
        _check_whole(tile, model.config.patch_height_width)
    painter = _Painter(model, processor, normalize(image, processor), touched[0, 0], num_steps)
    for corners in _batches(_tiles(touched[0, 0], tile, overlap)):
        painter.paint(corners, tile)
    seen, hidden, touched = (
        (each[..., : size[0], : size[1]]) for each in (image[0] / 255, painter.hidden, touched[0, 0])
    )
    frames = torch.where(touched, painter.frames()[..., : size[0], : size[1]], seen)
    filled = _fill(photograph, mask, frames[-1])
    error, mean_color_error = _errors(photograph, filled, mask)
    return Completion(filled, seen, hidden, frames, painter.steps, error, mean_color_error)


def _check(photograph: np.ndarray, mask: np.ndarray, model, scale: float | None, overlap: float) -> None:
    channels, (height, width) = model.config.num_channels, model.config.image_height_width
    if photograph.dtype != np.uint8 or photograph.ndim != 3 or photograph.shape[2] != channels:
        given = f"{photograph.dtype} of shape {photograph.shape}"
        raise UserError(f"photograph must be uint8 of shape (H, W, {channels}), got {given}")
    if mask.dtype != bool or mask.shape != photograph.shape[:2] or not mask.any() or mask.all():
        wanted = f"booleans of shape {photograph.shape[:2]}, some of them true"
        raise UserError(
            f"mask must be {wanted}, got {mask.dtype} of shape {mask.shape}, {int(mask.sum())} of them true"
        )
    if photograph.shape[0] < height or photograph.shape[1] < width:
        given = f"{photograph.shape[0]}x{photograph.shape[1]}"
        raise UserError(f"the photograph is too small: {given} pixels, and the model works on {height}x{width}")
    if scale is not None and not 0 < scale <= 1:
        raise UserError(f"scale must lie above 0 and be at most 1, got {scale}")
    if not 0 <= overlap < 1:
        raise UserError(f"overlap must be at least 0 and below 1, got {overlap}")


def _check_whole(size: tuple[int, int], patch_size: tuple[int, int]) -> None:
    count = (size[0] // patch_size[0]) * (size[1] // patch_size[1])
    if count > _MAX_PATCHES:
        raise UserError(
            f"the photograph is too large to be run whole: {count} patches, at most {_MAX_PATCHES}; a smaller scale or "
            "tiles will do"
        )


def _working_size(mask: np.ndarray, tile: tuple[int, int], scale: float | None, overlap: float) -> tuple[int, int]:
    """Height and width at which the model looks across the widest hole; at least those of a tile."""
    if scale is None:
        radius = distance_transform_edt(mask).max()
        scale = min(1.0, _HOLE * min(tile) / radius)
    height, width = mask.shape
    scale = max(scale, tile[0] / height, tile[1] / width)
    return min(height, math.ceil(scale * height)), min(width, math.ceil(scale * width))


def _padded(image: torch.Tensor, touched: torch.Tensor, patch_size: tuple[int, int]):
    """Both to multiples of the patch size, the image by its border and the mask by what is seen."""
    down, right = (-image.shape[-2]) % patch_size[0], (-image.shape[-1]) % patch_size[1]
    return F.pad(image, (0, right, 0, down), mode="replicate"), F.pad(touched, (0, right, 0, down))


def _tiles(touched: torch.Tensor, tile: tuple[int, int], overlap: float) -> Iterator[tuple[int, int]]:
    """Upper left corners of the tiles that the mask touches."""
    starts = []
    for length, side in zip(touched.shape, tile, strict=True):
        count = 1 + math.ceil((length - side) / max(1, round(side * (1 - overlap))))
        starts.append(sorted({round(i * (length - side) / max(count - 1, 1)) for i in range(count)}))
    for top, left in product(*starts):
        if touched[top : top + tile[0], left : left + tile[1]].any():
            yield top, left


def _batches(corners: Iterator[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    found = list(corners)
    for first in range(0, len(found), _BATCH):
        yield found[first : first + _BATCH]


class _Painter:
    """Decoded tiles, blended: a sum with weights that fall towards the border of a tile, and the sum of the weights."""

    def __init__(self, model, processor, pixel_values: torch.Tensor, touched: torch.Tensor, num_steps: int | None):
        self.model, self.processor, self.num_steps = model, processor, num_steps
        self.pixel_values, self.touched = pixel_values, touched
        self.steps = shown_steps(sum(model.base_model.steps_of_layers(num_steps)), _MAX_FRAMES)
        channels, height, width = pixel_values.shape[1:]
        self.sum = torch.zeros(len(self.steps), channels, height, width)
        self.weights = torch.zeros(height, width)
        self.hidden = torch.zeros(height, width, dtype=torch.bool)

    def paint(self, corners: list[tuple[int, int]], tile: tuple[int, int]) -> None:
        """Let the model fill in the tiles at these corners."""
        patch_size, device = self.model.config.patch_height_width, self.model.device
        grid = (tile[0] // patch_size[0], tile[1] // patch_size[1])
        parts = [(slice(top, top + tile[0]), slice(left, left + tile[1])) for top, left in corners]
        pixels = torch.stack([self.pixel_values[0][:, rows, columns] for rows, columns in parts])
        touched = torch.stack([self.touched[part] for part in parts])
        mask = patch_mask("mask", touched, len(parts), grid, patch_size)
        outputs = self.model(
            pixels.to(device),
            bool_masked_pos=mask.to(device),
            interpolate_pos_encoding=True,
            output_hidden_states=self.steps,
            num_steps=self.num_steps,
        )
        frames = self.model.decode_states(outputs.hidden_states, grid, self.num_steps).cpu()
        frames = denormalize(predicted_pixels(frames, pixels, mask, self.model.config), self.processor)
        hidden = patch_mask_to_pixels(mask, patch_size, grid)[:, 0]
        window = _window(tile)
        for part, decoded, unseen in zip(parts, frames.transpose(0, 1), hidden, strict=True):
            self.sum[(slice(None), slice(None), *part)] += decoded * window
            self.weights[part] += window
            self.hidden[part] |= unseen

    def frames(self) -> torch.Tensor:
        """The decoded states in [0, 1], (frames, C, h, w); nothing where no tile lies."""
        return (self.sum / self.weights.clamp(min=1e-6)).clamp(0, 1)


def _window(tile: tuple[int, int]) -> torch.Tensor:
    """Weights of the pixels of a tile: a pyramid."""
    rows, columns = (1 - (torch.arange(side) - (side - 1) / 2).abs() / (side / 2) for side in tile)
    return torch.minimum(rows[:, None], columns[None])


def _fill(photograph: np.ndarray, mask: np.ndarray, painted: torch.Tensor) -> np.ndarray:
    """The photograph with what was painted (C, h, w), enlarged to its size, under the mask."""
    if painted.shape[-2:] != mask.shape:
        painted = F.interpolate(painted[None], size=mask.shape, mode="bicubic", antialias=False)[0]
    pixels = (painted.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return np.where(mask[..., None], pixels, photograph)


def _errors(photograph: np.ndarray, filled: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    true, found = (image[mask].astype(np.float64) / 255 for image in (photograph, filled))
    mean = photograph[~mask].mean(0) / 255
    return float(np.square(found - true).mean()), float(np.square(mean - true).mean())


def completion_figure(result: Completion) -> Picture:
    """What the model saw, the states on the way, and the result, at the scale at which it worked.

    Values:
        hidden: (h, w).
    """
    gray = torch.where(result.hidden, torch.full_like(result.seen, 0.55), result.seen)
    images = [result.seen, gray, *result.frames]
    names = ["the photo", "what the model sees", *(f"step {step}" for step in result.steps)]
    names[-1] += ": the result"
    shrink = max(result.seen.shape[-2:]) / _FIGURE_SIDE
    if shrink > 1:
        size = [round(side / shrink) for side in result.seen.shape[-2:]]
        images = [F.interpolate(image[None], size=size, mode="area")[0] for image in images]
    columns = 3 if len(images) % 3 == 0 else len(images)
    rows, captions = ([each[i : i + columns] for i in range(0, len(images), columns)] for each in (images, names))
    error = f"Error under the mask: {result.error:.4f}, that of the mean color: {result.mean_color_error:.4f}"
    return image_grid(rows, [""] * columns, captions, {"hidden": result.hidden}, error)
