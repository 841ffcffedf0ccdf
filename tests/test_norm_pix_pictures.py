"""Pictures of models with `norm_pix_loss`: the mean and contrast of hidden patches are never taken from the original
unless asked for, and then the picture says so."""

import copy

import pytest
import torch

from energy_transformer.data import denormalize
from energy_transformer.data.image_processing import build_image_processor
from energy_transformer.inspection import descent_figure, predicted_pixels, reconstruct, reconstruction_figure
from energy_transformer.patches import patch_mask_to_pixels, patch_mean_and_std, patchify, unpatchify

PATCH, GRID = (4, 4), (4, 6)
PROCESSOR = build_image_processor((16, 24))


@pytest.fixture
def model(small_model):
    small_model.config.norm_pix_loss = True
    return small_model


def images(seed=0):
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def some_mask(seed=0):
    mask = torch.rand(2, 24, generator=torch.Generator().manual_seed(seed)) < 0.5
    mask[1, 3:] = False  # any number for each image
    return mask


def normalized(pixel_values):
    """What the model would predict with no error at all."""
    patches = patchify(pixel_values, PATCH)
    mean, std = patch_mean_and_std(patches)
    return unpatchify((patches - mean) / std, PATCH, GRID, 3)


def with_statistics(pixel_values, mean, std):
    """The same patches with means and standard deviations (B, P, 1)."""
    return unpatchify(patchify(normalized(pixel_values), PATCH) * std + mean, PATCH, GRID, 3)


def test_hidden_pixels_change_no_picture_unless_they_leak(model):
    mask = some_mask()
    hidden = patch_mask_to_pixels(mask, PATCH, GRID)
    changed = torch.where(hidden, images(1) * 0.3 + 0.5, images())
    first, second = (reconstruct(model, PROCESSOR, pixels, mask) for pixels in (images(), changed))
    assert torch.equal(first.prediction, second.prediction) and torch.equal(first.frames, second.frames)
    leaks = [reconstruct(model, PROCESSOR, pixels, mask, leak_statistics=True) for pixels in (images(), changed)]
    assert not torch.allclose(leaks[0].prediction, leaks[1].prediction, atol=1e-2)


def test_with_the_statistics_leaked_a_perfect_prediction_is_the_image(model):
    pixels, mask = images(), some_mask()
    found = predicted_pixels(normalized(pixels), pixels, mask, model.config, leak_statistics=True)
    torch.testing.assert_close(found, pixels, rtol=0, atol=1e-5)


def test_visible_patches_keep_their_own_statistics(model):
    pixels, mask = images(), some_mask()
    found = patchify(predicted_pixels(normalized(pixels), pixels, mask, model.config), PATCH)
    torch.testing.assert_close(found[~mask], patchify(pixels, PATCH)[~mask], rtol=0, atol=1e-5)


def test_statistics_that_are_the_same_everywhere_are_found(model):
    pixels = with_statistics(images(), torch.full((2, 24, 1), 0.3), torch.full((2, 24, 1), 0.1))
    found = predicted_pixels(normalized(pixels), pixels, some_mask(), model.config)
    torch.testing.assert_close(found, pixels, rtol=0, atol=1e-4)


def test_the_estimate_is_the_weighted_average_of_the_visible_patches(model):
    means = torch.rand(2, 24, 1, generator=torch.Generator().manual_seed(2))
    stds = means + 0.1
    mask = some_mask()
    pixels = with_statistics(images(), means, stds)
    found = patchify(predicted_pixels(normalized(pixels), pixels, mask, model.config), PATCH)
    image, patch = mask.nonzero()[5].tolist()
    weights, total = torch.zeros(2), 0.0
    for other in range(24):
        if not mask[image, other]:
            down, right = 4 * (patch // 6 - other // 6), 4 * (patch % 6 - other % 6)
            weight = 1 / (down**2 + right**2) ** 2
            weights += weight * torch.tensor([means[image, other].item(), stds[image, other].item()])
            total += weight
    mean, std = patch_mean_and_std(found[image, patch])
    torch.testing.assert_close(torch.cat([mean, std]), weights / total, rtol=1e-3, atol=1e-3)


def test_without_any_visible_patch_the_picture_is_that_of_the_model(model):
    pixels, mask = images(), torch.ones(2, 24, dtype=torch.bool)
    prediction = normalized(pixels)
    torch.testing.assert_close(predicted_pixels(prediction, pixels, mask, model.config), prediction)


def test_frames_end_at_the_prediction_and_only_hidden_patches_are_painted(model):
    pixels, mask = images(), some_mask()
    result = reconstruct(model, PROCESSOR, pixels, mask)
    assert result.frames.shape == (4, 2, 3, 16, 24)
    torch.testing.assert_close(result.frames[-1], result.prediction)
    outputs = model(pixels, bool_masked_pos=mask)
    expected = denormalize(predicted_pixels(outputs.reconstruction, pixels, mask, model.config), PROCESSOR)
    torch.testing.assert_close(result.prediction, expected)
    painted = (result.filled_in(result.prediction) != result.images).any(1, keepdim=True)
    assert torch.equal(painted, patch_mask_to_pixels(mask, PATCH, GRID))


@pytest.mark.parametrize(("leak", "word"), [(False, "estimated"), (True, "LEAK")])
def test_every_picture_says_where_the_statistics_come_from(model, leak, word):
    result = reconstruct(model, PROCESSOR, images(), some_mask(), leak_statistics=leak)
    for figure in (reconstruction_figure(result), descent_figure(result)):
        assert word in figure.get_suptitle()


def test_a_model_of_pixels_needs_none_of_it(small_model):
    plain = copy.deepcopy(small_model)
    result = reconstruct(plain, PROCESSOR, images(), some_mask())
    assert result.note is None and reconstruction_figure(result).get_suptitle().endswith("over their pixels")
    with pytest.raises(ValueError, match="leak_statistics is for models with norm_pix_loss=True"):
        reconstruct(plain, PROCESSOR, images(), some_mask(), leak_statistics=True)
