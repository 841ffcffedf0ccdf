"""Which part of an image is kept: every crop's box, in shares of the image or in its pixels."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from transformers.image_processing_backends import PilBackend

Box = tuple[float, float, float, float]  # left, top, right and bottom
Size = tuple[int, int]  # width and height
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
_LOG_RATIO = math.log(4 / 3)


def random_boxes(
    area: torch.Tensor,
    ratio: torch.Tensor,
    left: torch.Tensor,
    top: torch.Tensor,
    scale: tuple[float, float],
    aspect: float = 1.0,
) -> tuple[torch.Tensor, ...]:
    """Left, top, width and height (B,) of crops as shares of the image, from uniform numbers (B,) in [0, 1).

    The area is uniform in `scale`. The ratio of width to height, relative to that of the size to which the crop is
    resized, is uniform in its logarithm between 3/4 and 4/3, or as much of it as fits into the image. Every place in
    the image is as likely. `aspect` is the ratio of the image itself, relative to that same size; in an image that is
    so long that no crop of the area has an allowed ratio, the crop is the largest that has one.
    """
    log_aspect = math.log(aspect)
    log_area = (scale[0] + (scale[1] - scale[0]) * area).log().clamp(max=_LOG_RATIO - abs(log_aspect))
    least, most = (log_area + log_aspect).clamp(min=-_LOG_RATIO), (log_aspect - log_area).clamp(max=_LOG_RATIO)
    log_ratio = least + (most - least) * ratio - log_aspect
    width, height = (((log_area + sign * log_ratio) / 2).exp().clamp(max=1) for sign in (1, -1))
    return left * (1 - width), top * (1 - height), width, height


def random_box(key: Sequence[int], scale: tuple[float, float], size: Size, target: Size) -> Box:
    """The crop that `key` decides of an image of `size`, to be resized to `target`; in shares of the image."""
    area, ratio, x, y = torch.from_numpy(np.random.default_rng(key).random((4, 1)))
    aspect = size[0] / size[1] * target[1] / target[0]
    left, top, width, height = (share.item() for share in random_boxes(area, ratio, x, y, scale, aspect))
    return left, top, left + width, top + height


def in_pixels(part: Box, size: Size) -> Box:
    """A part in shares of an image of `size`."""
    left, top, right, bottom = (share * side for share, side in zip(part, size * 2, strict=True))
    return left, top, min(right, size[0]), min(bottom, size[1])


def least_size(part: Box, target: Size) -> Size:
    """The size of an image of which a part, in shares of it, is as large as `target`."""
    left, top, right, bottom = part
    return math.ceil(target[0] / (right - left)), math.ceil(target[1] / (bottom - top))


def output_size(processor: PilBackend) -> tuple[int, int]:
    """Height and width of what a processor makes of an image."""
    size = processor.crop_size if processor.do_center_crop else processor.size
    return size["height"], size["width"]


def processors_box(size: Size, processor: PilBackend) -> Box | None:
    """The part that the processor resizes and takes of an image of `size`, in its pixels; None where it does something
    else."""
    if not processor.do_resize:
        return None
    if not processor.do_center_crop:
        return 0, 0, *size
    height, width = output_size(processor)
    to = processor.size
    if to.get("shortest_edge") and not to.get("longest_edge"):
        short, long = to["shortest_edge"], int(to["shortest_edge"] * max(size) / min(size))
        resized = (short, long) if size[0] <= size[1] else (long, short)
    elif to.get("width") and to.get("height"):
        resized = to["width"], to["height"]
    else:
        return None
    left, top = (resized[0] - width) // 2, (resized[1] - height) // 2
    if left < 0 or top < 0:
        return None
    x, y = size[0] / resized[0], size[1] / resized[1]
    return left * x, top * y, min((left + width) * x, size[0]), min((top + height) * y, size[1])
