"""Training augmentation of a whole batch on its device, with parameters of its own for each image.

The recipe of the paper's code is timm's default: a crop of 8 to 100 % of the area and of aspect ratio 3/4 to 4/3,
resized to the full size, a flip for half of the images, and brightness, contrast and saturation jittered by 0.4, one
after the other. The crop here is for images that were decoded once to the model's size; images that are decoded as
they are read have been cropped before they were resized (`decoding.ImageDecoder`), with the same boxes.

Flip and crop are torch's `flip` and `grid_sample`: kornia's `crop_and_resize` aligns the corner pixels' centers, where
Pillow and torchvision align their outer edges, and takes twice the time. The jitters are kornia's, which are Pillow's.
"""

import importlib.util
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..utils.errors import UserError
from ..utils.extras import install_command

_LOG_RATIO = math.log(4 / 3)


@dataclass(frozen=True)
class Augmentation:
    """A function of images and random numbers alone.

    Args:
        random_resized_crop: least and greatest share of the area that a crop keeps; None for no crop.
        horizontal_flip: mirror an image with probability one half.
        color_jitter: brightness, contrast and saturation are multiplied by up to 1 ± this; 0 for none. Needs kornia.

    Raises:
        UserError: for a value that is not allowed, or without kornia where it is needed.
    """

    random_resized_crop: tuple[float, float] | None = None
    horizontal_flip: bool = False
    color_jitter: float = 0.0

    num_uniform = 8  # random numbers for each image: flip, area, ratio, left, top, brightness, contrast, saturation

    def __post_init__(self):
        crop = self.random_resized_crop
        if crop is not None and not (len(crop) == 2 and 0 < crop[0] <= crop[1] <= 1):
            given = " ".join(map(str, crop))
            raise UserError(f"random_resized_crop must be shares of the area, 0 < MIN <= MAX <= 1, got {given}")
        if not 0 <= self.color_jitter <= 1:
            raise UserError(f"color_jitter must lie in [0, 1], got {self.color_jitter}")
        if self.color_jitter and importlib.util.find_spec("kornia") is None:
            raise UserError(f"color_jitter needs kornia: {install_command('train')}")

    def __call__(self, images: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        """Augment images (B, C, H, W), uint8 or float32 in units of [0, 255], C = 1 or 3.

        `uniform` (B, num_uniform) are numbers in [0, 1), all of them drawn whatever the options are. Returns images of
        the same shape: float32 in units of [0, 255], or of the given dtype where there is no crop and no jitter.
        """
        flip, area, ratio, left, top, *jitter = uniform.unbind(-1)
        if self.random_resized_crop is not None:
            images = resized_crop(images.float(), *crop_boxes(area, ratio, left, top, self.random_resized_crop))
        if self.horizontal_flip:
            images = torch.where((flip < 0.5)[:, None, None, None], images.flip(-1), images)
        if self.color_jitter:
            factors = (1 + self.color_jitter * (2 * number - 1) for number in jitter)
            images = jitter_color(images.float(), *factors)
        return images


def crop_boxes(
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


def resized_crop(
    images: torch.Tensor, left: torch.Tensor, top: torch.Tensor, width: torch.Tensor, height: torch.Tensor
) -> torch.Tensor:
    """The part of each image (B, C, H, W) in its box, in shares of the image (B,), resized to (H, W), bilinear."""
    theta = torch.zeros(len(images), 2, 3, dtype=images.dtype, device=images.device)
    theta[:, 0, 0], theta[:, 0, 2] = width, 2 * left + width - 1
    theta[:, 1, 1], theta[:, 1, 2] = height, 2 * top + height - 1
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def jitter_color(
    images: torch.Tensor, brightness: torch.Tensor, contrast: torch.Tensor, saturation: torch.Tensor
) -> torch.Tensor:
    """Images (B, C, H, W) in units of [0, 255] with factors (B,), one after the other, as Pillow's `ImageEnhance`."""
    from kornia.enhance import (
        adjust_brightness_accumulative,
        adjust_contrast_with_mean_subtraction,
        adjust_saturation_with_gray_subtraction,
    )

    images = adjust_brightness_accumulative(images / 255, brightness)
    images = adjust_contrast_with_mean_subtraction(images, contrast)
    return adjust_saturation_with_gray_subtraction(images, saturation) * 255
