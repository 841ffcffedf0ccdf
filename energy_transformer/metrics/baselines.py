"""Predictions of hidden patches without a model, and the error over them.

Shapes: images (B, C, H, W) of any range; mask (B, N), True for the hidden patches, N in row-major order.
"""

import torch

from ..patches import patchify, unpatchify


def masked_squared_error(
    prediction: torch.Tensor, images: torch.Tensor, mask: torch.Tensor, patch_size: tuple[int, int]
) -> torch.Tensor:
    """Mean squared error over the pixels of the hidden patches of each image, (B,) float32; 0 where none is hidden."""
    error = patchify((prediction.float() - images.float()).square(), patch_size).mean(-1)
    return torch.where(mask, error, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)


def _patch_colors(images: torch.Tensor, patch_size: tuple[int, int]) -> torch.Tensor:
    """Mean color of each patch, (B, N, C)."""
    return patchify(images, patch_size).unflatten(-1, (images.shape[1], -1)).mean(-1)


def paint_hidden(
    images: torch.Tensor, colors: torch.Tensor, mask: torch.Tensor, patch_size: tuple[int, int]
) -> torch.Tensor:
    """`images` with every pixel of the hidden patches replaced by `colors` (B, C, H, W) or one (B, C, 1, 1)."""
    grid = (images.shape[2] // patch_size[0], images.shape[3] // patch_size[1])
    hidden = mask[..., None].expand(-1, -1, images.shape[1] * patch_size[0] * patch_size[1])
    return torch.where(unpatchify(hidden, patch_size, grid, images.shape[1]), colors, images)


def mean_visible_color(images: torch.Tensor, mask: torch.Tensor, patch_size: tuple[int, int]) -> torch.Tensor:
    """Hidden patches painted with the mean color of all visible pixels of the same image (0 where none is visible)."""
    visible = (~mask)[..., None].to(images.dtype)
    total = (_patch_colors(images, patch_size) * visible).sum(1)
    mean = total / visible.sum(1).clamp(min=1)
    return paint_hidden(images, mean[..., None, None], mask, patch_size)


def neighbor_average(
    images: torch.Tensor, mask: torch.Tensor, patch_size: tuple[int, int], power: float = 4.0
) -> torch.Tensor:
    """Each hidden pixel painted with a distance-weighted average of the visible patches around it.

    The weight of a visible patch is 1 / d^power with d the distance in pixels from the hidden pixel to the patch's
    center, and its value is its mean color. The pictures are smooth, and every hidden pixel has its own weights.
    Images without a visible patch are painted with 0.
    """
    height, width = images.shape[2:]
    rows, columns = height // patch_size[0], width // patch_size[1]
    pixels = torch.cartesian_prod(torch.arange(height), torch.arange(width)).to(images)
    centers = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).to(images)
    size = torch.tensor(patch_size).to(images)
    centers = centers * size + (size - 1) / 2
    # a pixel of a hidden patch is at least half a pixel away from the center of any visible one
    weights = torch.cdist(pixels, centers).clamp(min=0.5).pow(-power)
    weights = torch.where(mask[:, None], 0.0, weights)
    total = weights.sum(-1, keepdim=True)
    colors = weights @ _patch_colors(images, patch_size) / torch.where(total > 0, total, 1.0)
    return paint_hidden(images, colors.transpose(1, 2).unflatten(-1, (height, width)), mask, patch_size)
