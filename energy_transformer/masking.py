"""Which patches are hidden.

Two masks belong to an image: `masked` patches count in the loss; of these, the `corrupted` ones are replaced by the
mask token, and the rest keep their content (Hoover et al. 2023, appendix A: 100 of 196 patches in the loss, 90 of
them replaced). Shapes: B images, N patches in row-major order over the grid.
"""

import math

import torch
from torch import Tensor

Grid = tuple[int, int]
Masks = tuple[Tensor, Tensor]
SCATTER_PROBABILITY = 0.5


def count_masked(num_units: int, mask_ratio: float, replace_probability: float) -> Grid:
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
    num_units = int(num_units)  # a tensor while torch.jit.trace is at work
    masked = max(1, min(num_units - 1, round(mask_ratio * num_units)))
    return masked, max(round(replace_probability * masked), int(replace_probability > 0))


def _hash(numbers: Tensor) -> Tensor:
    """Integers that look random, below 2³², by multiplications modulo 2³² and shifts."""
    for _ in range(2):
        numbers = (numbers ^ (numbers >> 16)) * 0x45D9F3B & 0xFFFFFFFF
    return numbers ^ (numbers >> 16)


def fixed_noise(image_keys: Tensor, units: int) -> Tensor:
    """Noise (B, units) in [0, 1) that depends on the key of an image alone, (B,) integers of at least 0.

    It looks uniform and independent, is the same on every device and in every batch, and needs no generator, so that
    a graph of the model can be exported: each number is a hash, of which the upper 24 bits are kept.
    """
    places = torch.arange(1, units + 1, device=image_keys.device)
    bits = _hash((_hash((image_keys[:, None] + 1) & 0xFFFFFFFF) + places) & 0xFFFFFFFF)
    return (bits >> 8).float() / 2**24


def content_keys(pixel_values: Tensor) -> Tensor:
    """A key (B,) of each image (B, C, H, W), an integer below 2³²: a hash of its pixels, rounded to 12 bits.

    The same image has the same key in every batch, because whole numbers add up the same in any order.
    """
    pixels = pixel_values.detach().flatten(1).float().nan_to_num(0.0).clamp(-(2**10), 2**10)
    levels = (pixels * 2**12).round().long()
    places = _hash(torch.arange(1, levels.shape[1] + 1, device=levels.device))
    return (levels * (places >> 16)).sum(1) & 0xFFFFFFFF


def scatter_masks(noise: Tensor, grid: Grid, mask_ratio: float, replace_probability: float = 1.0) -> Masks:
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


def block_masks(noise: Tensor, grid: Grid, mask_ratio: float, replace_probability: float = 1.0) -> Masks:
    """Masks of one block, at a place of its own for each image and wrapped around the borders of the grid.

    The block is a square of units whose last row may be shorter, for the same counts as with [`scatter_masks`];
    within it the units of least noise are corrupted. Arguments and results as for [`scatter_masks`].
    """
    return scatter_masks(noise + ~_block(noise, grid, mask_ratio), grid, mask_ratio, replace_probability)


def scatter_or_block_masks(noise: Tensor, grid: Grid, mask_ratio: float, replace_probability: float = 1.0) -> Masks:
    """Scattered masks for a share `SCATTER_PROBABILITY` of the images, block masks for the others.

    Arguments and results as for [`scatter_masks`].
    """
    _, uniform = _uniforms_beside_ranks(noise)
    block = ~_block(noise, grid, mask_ratio) & (uniform >= SCATTER_PROBABILITY)[:, None]
    return scatter_masks(noise + block, grid, mask_ratio, replace_probability)


MASK_TYPES = {"scatter": scatter_masks, "block": block_masks, "scatter_or_block": scatter_or_block_masks}


def draw_masks(mask_type: str, noise: Tensor, *args) -> Masks:
    """Masks of a kind in [`MASK_TYPES`]; the other arguments are those of [`scatter_masks`].

    Raises:
        ValueError: for an unknown kind.
    """
    if mask_type not in MASK_TYPES:
        raise ValueError(f"mask_type must be one of {', '.join(MASK_TYPES)}, got {mask_type!r}")
    return MASK_TYPES[mask_type](noise, *args)


def join_mask_values(masked: Tensor, corrupted: Tensor) -> Tensor:
    """Both masks in one uint8 tensor, as the paper's code has them: 0 seen, 1 corrupted, 2 masked but seen."""
    return torch.where(corrupted, 1, masked.to(torch.uint8) * 2).to(torch.uint8)


def split_mask_values(mask: Tensor) -> Masks:
    """The inverse of [`join_mask_values`], `masked` and `corrupted`; a boolean mask is both."""
    return mask > 0, mask == 1  # new tensors, for ONNX renames an input that is an output too


def whole_number_mask(name: str, mask, largest: int) -> Tensor:
    """A tensor of a mask that is a tensor, NumPy array or list of booleans, or of integers from 0 to `largest`, 1 or 2.

    Raises:
        ValueError: for another dtype or value. Values are looked at in integers on the CPU alone, and never while a
            graph is made, so that nothing waits for a device.
    """
    allowed = f"booleans, or the integers {'0 and 1' if largest == 1 else '0, 1 and 2'}"
    try:
        mask = torch.as_tensor(mask)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be a tensor, array or list of {allowed}, got {type(mask).__name__}") from error
    if mask.is_floating_point() or mask.is_complex():
        raise ValueError(f"{name} must hold {allowed}, got {mask.dtype}")
    if mask.dtype != torch.bool and mask.device.type == "cpu" and not is_making_a_graph():
        values = mask.long()
        wrong = values[(values < 0) | (values > largest)]
        if wrong.numel():
            raise ValueError(f"{name} must hold {allowed}, got the value {wrong[0].item()}")
    return mask


def patch_mask(name: str, mask, images: int, grid: Grid, patch_size: Grid) -> Tensor:
    """A mask in one of the forms that users have, as the mask of the patches, (B, N).

    Args:
        name: of the argument, for the errors.
        mask: a tensor, NumPy array or list of booleans or of the integers 0 (seen), 1 (hidden) and 2 (seen, but in
            the loss), of the patches, (B, N) or (B, rows, columns), or of the pixels, (B, H, W): a patch is hidden
            as a whole where any of its pixels is.
        images: B.
        grid: rows and columns of patches.
        patch_size: height and width of a patch in pixels.

    Raises:
        ValueError: for another dtype, shape or value. Values are looked at in integers on the CPU alone, and never
            while a graph is made, so that nothing waits for a device.
    """
    mask = whole_number_mask(name, mask, 2)
    (rows, columns), (height, width) = grid, patch_size
    forms = (images, rows * columns), (images, rows, columns), (images, rows * height, columns * width)
    if not any(mask.shape == form for form in forms):
        raise ValueError(
            f"{name} must have shape (B, patches) = {forms[0]}, (B, rows, columns) = {forms[1]} or that of the pixels, "
            f"(B, H, W) = {forms[2]}, got {tuple(mask.shape)}"
        )
    if mask.shape == forms[2] != forms[1]:
        masked, corrupted = (
            part.unflatten(1, (rows, height)).unflatten(3, (columns, width)).any(4).any(2)
            for part in split_mask_values(mask)
        )
        mask = masked if mask.dtype == torch.bool else join_mask_values(masked, corrupted)
    return mask.flatten(1)


def is_making_a_graph() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _unit_grid(noise: Tensor, grid: Grid) -> Grid:
    """Rows and columns of the square units of the noise."""
    rows, columns = grid
    unit = round((rows * columns / noise.shape[-1]) ** 0.5)
    if unit * unit * noise.shape[-1] != rows * columns or rows % unit or columns % unit:
        raise ValueError(f"noise of shape {tuple(noise.shape)} does not tile a grid of {rows}x{columns} patches")
    return rows // unit, columns // unit


def _uniforms_beside_ranks(noise: Tensor) -> Masks:
    """Two uniform numbers in [0, 1] for each image, independent of each other and of the order of its noise.

    The largest of n uniform numbers has the distribution function uⁿ; below it, the other n − 1 are uniform again.
    """
    count = noise.shape[-1]
    largest, least = noise.double().amax(-1), noise.double().amin(-1)
    return largest**count, (1 - least / largest.clamp(min=1e-300)) ** (count - 1)


def _block(noise: Tensor, grid: Grid, mask_ratio: float) -> Tensor:
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


def noise_units(grid: Grid, patch_size: Grid, mask_patch_size: int | None) -> int:
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
