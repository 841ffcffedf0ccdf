"""Which patches are hidden.

Two masks belong to an image: `masked` patches count in the loss; of these, the `corrupted` ones are replaced by the
mask token, and the rest keep their content (Hoover et al. 2023, appendix A: 100 of 196 patches in the loss, 90 of
them replaced). Shapes: B images, N patches in row-major order over the grid.
"""

import math

import torch

SCATTER_PROBABILITY = 0.5


def count_masked(num_units: int, mask_ratio: float, replace_probability: float) -> tuple[int, int]:
    """How many of `num_units` are masked and how many of these are corrupted.

    At least one unit is masked, and one corrupted unless `replace_probability` is 0; where there is more than one unit,
    at least one is left out of the mask.

    Raises:
        ValueError: when `mask_ratio` is outside (0, 1) or `replace_probability` outside [0, 1].
    """
    if not 0 < mask_ratio < 1:
        raise ValueError(f"mask_ratio must lie between 0 and 1, both excluded, got {mask_ratio}")
    if not 0 <= replace_probability <= 1:
        raise ValueError(f"mask_replace_probability must lie between 0 and 1, got {replace_probability}")
    masked = max(1, min(num_units - 1, round(mask_ratio * num_units)))
    return masked, max(round(replace_probability * masked), int(replace_probability > 0))


def fixed_noise(images: int, units: int, device: torch.device | str | None = None) -> torch.Tensor:
    """Noise (B, units) in [0, 1) that is the same on every device and, for an image, in every batch.

    It looks uniform and independent, and needs no generator, so that a graph of the model can be exported: each
    number is a hash of its place, by multiplications modulo 2³² and shifts, of which the upper 24 bits are kept.
    """
    bits = torch.arange(1, images * units + 1, device=device)
    for _ in range(2):
        bits = (bits ^ (bits >> 16)) * 0x45D9F3B & 0xFFFFFFFF
    bits = bits ^ (bits >> 16)
    return ((bits >> 8).float() / 2**24).view(images, units)


def scatter_masks(
    noise: torch.Tensor,
    grid: tuple[int, int],
    mask_ratio: float,
    replace_probability: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks scattered over the grid: the units of least noise are corrupted, the next ones masked but visible.

    Args:
        noise (`torch.Tensor` of shape `(B, units)`): uniform noise in [0, 1); `units` is the number of patches, or of
            the larger units (see [`noise_units`]) that are hidden as a whole.
        grid: rows and columns of patches.
        mask_ratio: share of the units that is masked.
        replace_probability: share of the masked units that is replaced by the mask token.

    Returns:
        `masked` and `corrupted`, both `torch.BoolTensor` of shape `(B, N)`; every image has the same counts.

    Raises:
        ValueError: when the units do not tile the grid, or a share is out of range.
    """
    masked_count, corrupted_count = count_masked(noise.shape[-1], mask_ratio, replace_probability)
    rows, columns = _unit_grid(noise, grid)
    ranks = noise.argsort(-1).argsort(-1).unflatten(-1, (rows, columns))
    unit = grid[0] // rows
    ranks = ranks.repeat_interleave(unit, -2).repeat_interleave(unit, -1).flatten(-2)
    return ranks < masked_count, ranks < corrupted_count


def block_masks(
    noise: torch.Tensor,
    grid: tuple[int, int],
    mask_ratio: float,
    replace_probability: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks of one block, at a place of its own for each image and wrapped around the borders of the grid.

    The block is a square of units whose last row may be shorter, for the same counts as with [`scatter_masks`];
    within it the units of least noise are corrupted. Arguments and results as for [`scatter_masks`].
    """
    return scatter_masks(noise + ~_block(noise, grid, mask_ratio), grid, mask_ratio, replace_probability)


def scatter_or_block_masks(
    noise: torch.Tensor,
    grid: tuple[int, int],
    mask_ratio: float,
    replace_probability: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scattered masks for a share `SCATTER_PROBABILITY` of the images, block masks for the others.

    Arguments and results as for [`scatter_masks`].
    """
    _, uniform = _uniforms_beside_ranks(noise)
    block = ~_block(noise, grid, mask_ratio) & (uniform >= SCATTER_PROBABILITY)[:, None]
    return scatter_masks(noise + block, grid, mask_ratio, replace_probability)


MASK_TYPES = {"scatter": scatter_masks, "block": block_masks, "scatter_or_block": scatter_or_block_masks}


def draw_masks(mask_type: str, noise: torch.Tensor, *args) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks of a kind in [`MASK_TYPES`]; the other arguments are those of [`scatter_masks`].

    Raises:
        ValueError: for an unknown kind.
    """
    if mask_type not in MASK_TYPES:
        raise ValueError(f"mask_type must be one of {', '.join(MASK_TYPES)}, got {mask_type!r}")
    return MASK_TYPES[mask_type](noise, *args)


def join_mask_values(masked: torch.Tensor, corrupted: torch.Tensor) -> torch.Tensor:
    """Both masks in one uint8 tensor, as the paper's code has them: 0 seen, 1 corrupted, 2 masked but seen."""
    return torch.where(corrupted, 1, masked.to(torch.uint8) * 2).to(torch.uint8)


def split_mask_values(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The inverse of [`join_mask_values`], `masked` and `corrupted`; a boolean mask is both."""
    return mask > 0, mask == 1


def _unit_grid(noise: torch.Tensor, grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the square units of the noise."""
    rows, columns = grid
    unit = round((rows * columns / noise.shape[-1]) ** 0.5)
    if unit * unit * noise.shape[-1] != rows * columns or rows % unit or columns % unit:
        raise ValueError(f"noise of shape {tuple(noise.shape)} does not tile a grid of {rows}x{columns} patches")
    return rows // unit, columns // unit


def _uniforms_beside_ranks(noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two uniform numbers in [0, 1] for each image, independent of each other and of the order of its noise.

    The largest of n uniform numbers has the distribution function uⁿ; below it, the other n − 1 are uniform again.
    """
    count = noise.shape[-1]
    largest, least = noise.double().amax(-1), noise.double().amin(-1)
    return largest**count, (1 - least / largest.clamp(min=1e-300)) ** (count - 1)


def _block(noise: torch.Tensor, grid: tuple[int, int], mask_ratio: float) -> torch.Tensor:
    """True for the units of the block, (B, units)."""
    rows, columns = _unit_grid(noise, grid)
    count, _ = count_masked(rows * columns, mask_ratio, 1.0)
    width = max(min(columns, math.ceil(count**0.5)), math.ceil(count / rows))
    uniform, _ = _uniforms_beside_ranks(noise)
    corner = (uniform * rows * columns).long().clamp(max=rows * columns - 1)[:, None]
    place = torch.arange(rows * columns, device=noise.device)
    down = (place // columns - corner // columns) % rows
    right = (place - corner) % columns
    return (right < width) & (down * width + right < count)


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
