"""Images to patches and back. Patches stand row by row over the grid; their elements are channel first (c, h, w)."""

import torch


def patchify(images: torch.Tensor, patch_size: tuple[int, int]) -> torch.Tensor:
    """(B, C, H, W) to (B, N, C·ph·pw).

    Raises:
        ValueError: when the patch size does not divide the image.
    """
    batch, channels, height, width = images.shape
    patch_height, patch_width = patch_size
    if height % patch_height or width % patch_width:
        raise ValueError(
            f"images of {height}x{width} pixels cannot be cut into patches of {patch_height}x{patch_width}"
        )
    rows, columns = height // patch_height, width // patch_width
    split = images.reshape(batch, channels, rows, patch_height, columns, patch_width)
    return split.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * patch_height * patch_width)


def unpatchify(
    patches: torch.Tensor, patch_size: tuple[int, int], grid: tuple[int, int], num_channels: int
) -> torch.Tensor:
    """(B, N, C·ph·pw) on a grid of (rows, columns) patches to (B, C, H, W): the inverse of [`patchify`]."""
    (rows, columns), (patch_height, patch_width) = grid, patch_size
    split = patches.reshape(-1, rows, columns, num_channels, patch_height, patch_width)
    return split.permute(0, 3, 1, 4, 2, 5).reshape(-1, num_channels, rows * patch_height, columns * patch_width)


def patch_mask_to_pixels(mask: torch.Tensor, patch_size: tuple[int, int], grid: tuple[int, int]) -> torch.Tensor:
    """A mask of patches (B, N) to one of pixels (B, 1, H, W)."""
    pixels = mask.unflatten(-1, grid).repeat_interleave(patch_size[0], -2).repeat_interleave(patch_size[1], -1)
    return pixels.unsqueeze(1)


def patch_mean_and_std(patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What `norm_pix_loss` normalises a patch with, as in ViTMAE: patches (..., L) to two tensors (..., 1)."""
    return patches.mean(-1, keepdim=True), (patches.var(-1, keepdim=True) + 1e-6).sqrt()
