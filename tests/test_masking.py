"""Scatter masks: exact counts, the paper's split, reproducible from a generator, uniform over the patches."""

import pytest
import torch

from energy_transformer.masking import count_masked, fixed_noise, noise_units, scatter_masks


def test_paper_split():
    assert count_masked(196, 100 / 196, 0.9) == (100, 90)
    noise = torch.rand(5, 196, generator=torch.Generator().manual_seed(0))
    masked, corrupted = scatter_masks(noise, (14, 14), 100 / 196, 0.9)
    assert masked.dtype == corrupted.dtype == torch.bool
    assert masked.sum(-1).tolist() == [100] * 5
    assert corrupted.sum(-1).tolist() == [90] * 5
    assert not (corrupted & ~masked).any()


def test_the_units_of_least_noise_are_hidden():
    noise = torch.tensor([[0.9, 0.1, 0.5, 0.2, 0.7, 0.3]])
    masked, corrupted = scatter_masks(noise, (2, 3), 0.5, 0.67)
    assert masked.tolist() == [[False, True, False, True, False, True]]
    assert corrupted.tolist() == [[False, True, False, True, False, False]]


def test_every_patch_is_hidden_equally_often():
    noise = torch.rand(4000, 16, generator=torch.Generator().manual_seed(0))
    share = scatter_masks(noise, (4, 4), 0.5)[0].float().mean(0)
    assert (share - 0.5).abs().max() < 0.04  # five standard deviations


def test_fixed_noise_is_uniform_and_independent():
    keys = torch.arange(4000)
    noise = fixed_noise(keys, 16)
    order = torch.randperm(4000, generator=torch.Generator().manual_seed(0))
    assert noise[order].equal(fixed_noise(keys[order], 16)), "it depends on the key alone"
    assert noise.equal(fixed_noise(torch.arange(5000), 16)[:4000]) and noise.min() >= 0 and noise.max() < 1
    share = scatter_masks(noise, (4, 4), 0.5)[0].float().mean(0)
    assert (share - 0.5).abs().max() < 0.04  # five standard deviations
    ordered = noise.flatten().double().sort().values
    assert (ordered - torch.linspace(0, 1, ordered.numel()).double()).abs().max() < 1.6 / ordered.numel() ** 0.5
    for sample in (fixed_noise(keys[:1000], 196), fixed_noise(keys[:1000], 196).T):  # between patches, between images
        correlations = sample.T.corrcoef()[~torch.eye(sample.shape[1], dtype=torch.bool)]
        assert correlations.abs().max() < 5.5 / sample.shape[0] ** 0.5


def test_larger_units_are_hidden_as_a_whole():
    units = noise_units((4, 6), (4, 4), 8)
    assert units == 6
    masked, _ = scatter_masks(torch.rand(3, units, generator=torch.Generator().manual_seed(0)), (4, 6), 0.5)
    blocks = masked.unflatten(-1, (2, 2, 3, 2)).transpose(-3, -2).flatten(-2)
    assert ((blocks.sum(-1) == 0) | (blocks.sum(-1) == 4)).all()
    assert masked.sum(-1).tolist() == [12] * 3


def test_at_least_one_patch_stays_and_one_goes():
    assert count_masked(4, 0.99, 1.0) == (3, 3)
    assert count_masked(4, 0.01, 1.0) == (1, 1)


def test_at_least_one_masked_patch_is_replaced_unless_none_may_be():
    assert count_masked(4, 0.3, 0.4) == (1, 1)
    assert count_masked(196, 0.5, 1e-3) == (98, 1)
    assert count_masked(4, 0.3, 0.0) == (1, 0)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5])
def test_a_ratio_outside_the_open_interval_is_refused(ratio):
    with pytest.raises(ValueError, match="mask_ratio"):
        count_masked(16, ratio, 1.0)


def test_a_share_outside_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match="mask_replace_probability"):
        count_masked(16, 0.5, 1.5)


@pytest.mark.parametrize("size", [6, 2, 16, 0])
def test_a_mask_patch_size_that_does_not_fit_is_refused(size):
    with pytest.raises(ValueError, match="mask_patch_size"):
        noise_units((6, 6), (4, 4), size)


def test_noise_that_does_not_tile_the_grid_is_refused():
    with pytest.raises(ValueError, match="does not tile"):
        scatter_masks(torch.rand(1, 5), (4, 4), 0.5)
