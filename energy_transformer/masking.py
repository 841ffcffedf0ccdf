"""Which patches are hidden.

Two masks belong to an image: `masked` patches count in the loss; of these, the `corrupted` ones are replaced by the
mask token, and the rest keep their content (Hoover et al. 2023, appendix A: 100 of 196 patches in the loss, 90 of
them replaced). Shapes: B images, N patches in row-major order over the grid.
"""

import torch


def count_masked(num_units: int, mask_ratio: float, replace_probability: float) -> tuple[int, int]:
    """How many of `num_units` are masked and how many of these are corrupted.

    At least one unit is masked and corrupted, and, where there is more than one, at least one is left out of the mask.

    Raises:
        ValueError: when `mask_ratio` is outside (0, 1) or `replace_probability` outside [0, 1].
    """
    if not 0 < mask_ratio < 1:
        raise ValueError(f"mask_ratio must lie between 0 and 1, both excluded, got {mask_ratio}")
    if not 0 <= replace_probability <= 1:
        raise ValueError(f"mask_replace_probability must lie between 0 and 1, got {replace_probability}")
    masked = max(1, min(num_units - 1, round(mask_ratio * num_units)))
    return masked, round(replace_probability * masked)


def scatter_masks(
    noise: torch.Tensor,
    grid: tuple[int, int],
    mask_ratio: float,
    replace_probability: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks scattered over the grid: the units of least noise are corrupted, the next ones masked but visible.

    Args:
        noise (`torch.Tensor` of shape `(B, units)`): uniform noise; `units` is the number of patches, or of the
            larger units (see [`noise_units`]) that are hidden as a whole.
        grid: rows and columns of patches.
        mask_ratio: share of the units that is masked.
        replace_probability: share of the masked units that is replaced by the mask token.

    Returns:
        `masked` and `corrupted`, both `torch.BoolTensor` of shape `(B, N)`; every image has the same counts.

    Raises:
        ValueError: when the units do not tile the grid, or a share is out of range.
    """
    rows, columns = grid
    masked_count, corrupted_count = count_masked(noise.shape[-1], mask_ratio, replace_probability)
    ranks = noise.argsort(-1).argsort(-1)
    unit = round((rows * columns / noise.shape[-1]) ** 0.5)
    if unit * unit * noise.shape[-1] != rows * columns or rows % unit or columns % unit:
        raise ValueError(f"noise of shape {tuple(noise.shape)} does not tile a grid of {rows}x{columns} patches")
    if unit > 1:
        ranks = ranks.unflatten(-1, (rows // unit, columns // unit))
        ranks = ranks.repeat_interleave(unit, -2).repeat_interleave(unit, -1).flatten(-2)
    return ranks < masked_count, ranks < corrupted_count


def noise_units(grid: tuple[int, int], patch_size: tuple[int, int], mask_patch_size: int | None) -> int:
    """Number of square units of `mask_patch_size` pixels on the grid; the number of patches when it is None.

    Raises:
        ValueError: when `mask_patch_size` is no multiple of the patch size or does not tile the grid.
    """
    rows, columns = grid
    if mask_patch_size is None:
        return rows * columns
    unit = mask_patch_size // patch_size[0]
    fits = mask_patch_size == unit * patch_size[0] == unit * patch_size[1]
    if not fits or unit < 1 or rows % unit or columns % unit:
        raise ValueError(
            f"mask_patch_size must be a multiple of the patch size {patch_size} that divides the image "
            f"({rows * patch_size[0]}x{columns * patch_size[1]} pixels), got {mask_patch_size}"
        )
    return (rows // unit) * (columns // unit)
