"""Scattered, block and mixed masks, and masks of several values."""

import pytest
import torch

from energy_transformer import EnergyTransformerConfig, EnergyTransformerForMaskedImageModeling
from energy_transformer.masking import (
    MASK_TYPES,
    block_masks,
    count_masked,
    draw_masks,
    join_mask_values,
    scatter_masks,
    scatter_or_block_masks,
    split_mask_values,
)

GRIDS = [(14, 14), (4, 6), (2, 9), (7, 1)]


def noise(images, grid, seed=0):
    return torch.rand(images, grid[0] * grid[1], generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("ratio", [0.1, 100 / 196, 0.75])
@pytest.mark.parametrize("kind", MASK_TYPES)
def test_every_image_has_the_counts_asked_for(kind, ratio, grid):
    masked, corrupted = draw_masks(kind, noise(50, grid), grid, ratio, 0.9)
    counts = count_masked(grid[0] * grid[1], ratio, 0.9)
    assert masked.dtype == corrupted.dtype == torch.bool and masked.shape == (50, grid[0] * grid[1])
    assert (masked.sum(-1) == counts[0]).all() and (corrupted.sum(-1) == counts[1]).all()
    assert not (corrupted & ~masked).any()


def blocks(grid, height, width):
    """Every block of that size, wrapped around the borders: (places, N)."""
    block = torch.zeros(grid, dtype=torch.bool)
    block[:height, :width] = True
    places = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    return torch.stack([block.roll(place, (0, 1)).flatten() for place in places])


def test_blocks_are_the_paper_codes_squares_at_every_place():
    """100 of 196 patches: a square of 10 by 10 that wraps around, each place as likely as the others."""
    grid = (14, 14)
    masked, corrupted = block_masks(noise(20_000, grid), grid, 100 / 196, 0.9)
    expected = blocks(grid, 10, 10)
    match = (masked.float() @ expected.float().T) == 100
    assert (match.sum(-1) == 1).all()
    counts = match.sum(0)
    chi_square = ((counts - 20_000 / 196) ** 2 / (20_000 / 196)).sum().item()
    assert chi_square < 280, "195 degrees of freedom: beyond 280 in 1 of 10,000 draws"
    places = match.float().argmax(-1)
    corner_seen = (~corrupted[torch.arange(20_000), places]).float().mean().item()
    assert corner_seen == pytest.approx(0.1, abs=0.01), "the corner is corrupted as often as the other places"


def test_a_block_that_is_no_square_has_a_shorter_last_row():
    masked, _ = block_masks(noise(40, (6, 6)), (6, 6), 8 / 36)
    shape = torch.zeros(6, 6, dtype=torch.bool)
    shape[:2, :3] = True
    shape[2, :2] = True
    expected = torch.stack([shape.roll((r, c), (0, 1)).flatten() for r in range(6) for c in range(6)])
    assert ((masked.float() @ expected.float().T) == 8).any(-1).all()


def test_mixtures_take_each_image_from_one_kind():
    grid = (14, 14)
    draws = noise(4000, grid)
    scatter, block = scatter_masks(draws, grid, 0.5, 0.9), block_masks(draws, grid, 0.5, 0.9)
    masked, corrupted = scatter_or_block_masks(draws, grid, 0.5, 0.9)
    is_scatter = (masked == scatter[0]).all(-1) & (corrupted == scatter[1]).all(-1)
    is_block = (masked == block[0]).all(-1) & (corrupted == block[1]).all(-1)
    assert (is_scatter ^ is_block).all()
    assert is_scatter.float().mean().item() == pytest.approx(0.5, abs=0.03)


def test_the_choice_of_the_kind_does_not_favor_any_patch():
    """Among the scattered images of a mixture every patch is masked equally often."""
    grid = (4, 4)
    draws = noise(20_000, grid)
    masked, _ = scatter_or_block_masks(draws, grid, 0.5)
    chosen = (masked == scatter_masks(draws, grid, 0.5)[0]).all(-1)
    frequencies = masked[chosen].float().mean(0)
    torch.testing.assert_close(frequencies, torch.full((16,), 0.5), rtol=0, atol=0.025)


@pytest.mark.parametrize("kind", MASK_TYPES)
def test_units_larger_than_a_patch(kind):
    grid = (8, 12)
    masked, corrupted = draw_masks(kind, noise(10, (4, 6)), grid, 0.5, 0.5)
    for mask in (masked, corrupted):
        units = mask.unflatten(-1, (4, 2, 6, 2)).transpose(2, 3).flatten(-2)
        assert (units.all(-1) == units.any(-1)).all()


def test_the_generator_determines_the_masks():
    config = EnergyTransformerConfig(
        image_size=16, patch_size=4, hidden_size=16, num_attention_heads=2, head_dim=4, intermediate_size=8, num_steps=1
    )
    pixel_values = torch.randn(6, 3, 16, 16)
    drawn = {}
    for kind in MASK_TYPES:
        config.mask_type = kind
        model = EnergyTransformerForMaskedImageModeling(config).train()
        one, same, other = (
            model(pixel_values, generator=torch.Generator().manual_seed(seed)).mask for seed in (3, 3, 4)
        )
        assert one.equal(same) and not one.equal(other)
        drawn[kind] = one
        expected, _ = draw_masks(kind, noise(6, (4, 4), seed=3), (4, 4), config.mask_ratio, 0.9)
        assert one.equal(expected)
    assert not drawn["scatter"].equal(drawn["block"])


def test_mask_values():
    masked, corrupted = scatter_masks(noise(5, (14, 14)), (14, 14), 100 / 196, 0.9)
    values = join_mask_values(masked, corrupted)
    assert values.dtype == torch.uint8
    assert [int((values[0] == value).sum()) for value in range(3)] == [96, 90, 10]
    for found, expected in zip(split_mask_values(values), (masked, corrupted), strict=True):
        assert found.equal(expected)
    for found in split_mask_values(masked):
        assert found.equal(masked)


def test_the_model_takes_mask_values():
    torch.manual_seed(0)
    config = EnergyTransformerConfig(
        image_size=16, patch_size=4, hidden_size=16, num_attention_heads=2, head_dim=4, intermediate_size=8, num_steps=2
    )
    model = EnergyTransformerForMaskedImageModeling(config).eval()
    pixel_values = torch.randn(2, 3, 16, 16)
    masked, corrupted = scatter_masks(noise(2, (4, 4)), (4, 4), 0.5, 0.5)
    expected = model(pixel_values, bool_masked_pos=masked, bool_corrupted_pos=corrupted)
    found = model(pixel_values, bool_masked_pos=join_mask_values(masked, corrupted))
    assert found.loss.equal(expected.loss) and found.reconstruction.equal(expected.reconstruction)
    assert not found.reconstruction.equal(model(pixel_values, bool_masked_pos=masked).reconstruction)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("stripes", noise(1, (4, 4)), (4, 4), 0.5), "mask_type must be one of scatter, block, scatter_or_block"),
        (("block", noise(1, (4, 4)), (4, 5), 0.5), "does not tile a grid of 4x5"),
        (("scatter_or_block", noise(1, (4, 4)), (4, 4), 1.5), "mask_ratio must lie between 0 and 1"),
        (("block", noise(1, (4, 4)), (4, 4), 0.5, 2.0), "mask_replace_probability must lie between 0 and 1"),
    ],
)
def test_impossible_masks_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_masks(*arguments)
