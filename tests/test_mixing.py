"""Mixup and cutmix: what comes out is a blend of two neighbors, and labels count as much as pixels."""

import pytest
import torch

from energy_transformer.training.mixing import Mixer

HEIGHT, WIDTH = 16, 24


@pytest.fixture
def uniforms():
    return torch.rand(20000, 4, generator=torch.Generator().manual_seed(0))


def test_labels_count_as_much_as_pixels(uniforms):
    """Images of one number each, so that a mean pixel tells how much of either image is in it."""
    labels = torch.arange(400) % 5
    images = labels.float()[:, None, None, None].expand(-1, 3, HEIGHT, WIDTH)
    mixed, targets = Mixer(0.8, 1.0)(images, labels, 5, uniforms[:400])
    torch.testing.assert_close(targets.sum(1), torch.ones(400))
    assert ((targets > 0).sum(1) <= 2).all() and (targets > 0).sum() > 500
    torch.testing.assert_close(mixed.mean((1, 2, 3)), targets @ torch.arange(5.0), atol=1e-5, rtol=1e-5)
    partner = torch.arange(400).view(-1, 2).flip(1).flatten()
    rows = torch.arange(400)
    both = targets[rows, labels] + torch.where(labels == labels[partner], 0.0, targets[rows, labels[partner]])
    torch.testing.assert_close(both, torch.ones(400))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixup_shares_are_those_of_the_beta_distribution(uniforms, alpha):
    shares = Mixer(alpha, 0.0).shares(uniforms, HEIGHT, WIDTH)
    assert (shares == shares[:, :, :1, :1]).all(), "one share for all pixels"
    shares = shares[:, 0, 0, 0].double()
    beta = torch.distributions.Beta(alpha, alpha)
    assert shares.mean().item() == pytest.approx(0.5, abs=0.01)
    assert shares.var().item() == pytest.approx(beta.variance.item(), rel=0.05)


def test_cutmix_pastes_one_box(uniforms):
    shares = Mixer(0.0, 1.0).shares(uniforms[:2000], HEIGHT, WIDTH)[:, 0]
    assert set(shares.unique().tolist()) == {0.0, 1.0}
    pasted = 1 - shares
    by_rows, by_columns = pasted.amax(2), pasted.amax(1)
    assert torch.equal(pasted, by_rows[:, :, None] * by_columns[:, None, :]), "a rectangle"
    for line in (by_rows, by_columns):
        assert (line.diff(dim=1, prepend=torch.zeros(2000, 1)).clamp(min=0).sum(1) <= 1).all(), "without gaps"


def test_an_uncut_box_has_the_drawn_area():
    """In the middle of a large picture nothing is cut off: the share kept is the quantile that was drawn."""
    uniforms = torch.tensor([[p, 0.0, 0.5, 0.5] for p in (0.1, 0.5, 0.9)])
    shares = Mixer(0.0, 1.0).shares(uniforms, 400, 400).mean((1, 2, 3))
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.5, 0.9]), atol=0.01, rtol=0)


def test_with_both_half_of_the_images_are_cut(uniforms):
    shares = Mixer(1.0, 1.0).shares(uniforms[:4000], HEIGHT, WIDTH)
    blended = ((shares > 0) & (shares < 1)).flatten(1).all(1)
    assert blended.float().mean().item() == pytest.approx(0.5, abs=0.04)


def test_pairs_make_it_independent_of_the_division(uniforms):
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.rand(8, 3, HEIGHT, WIDTH, generator=generator), torch.arange(8)
    mixer = Mixer(0.5, 0.5)
    whole = mixer(images, labels, 8, uniforms[:8])
    parts = [mixer(images[i : i + 4], labels[i : i + 4], 8, uniforms[i : i + 4]) for i in (0, 4)]
    for all_at_once, *pieces in zip(whole, *parts, strict=True):
        assert torch.equal(all_at_once, torch.cat(pieces))
