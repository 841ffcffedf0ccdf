"""Augmentation of batches: Pillow's results for given boxes and factors, the distribution of what is drawn."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from energy_transformer.data import Augmentation
from energy_transformer.data.augmentation import jitter_color, resized_crop
from energy_transformer.data.cropping import random_boxes
from energy_transformer.data.demo import photograph
from energy_transformer.utils.errors import UserError

FULL = {"random_resized_crop": (0.08, 1.0), "horizontal_flip": True, "color_jitter": 0.4}


def crops(count, height=48, width=64):
    pixels = photograph("coffee.png")
    pieces = [pixels[20 * i : 20 * i + height, 11 * i : 11 * i + width] for i in range(count)]
    return torch.from_numpy(np.stack(pieces)).permute(0, 3, 1, 2).contiguous()


def uniform(count, seed=0):
    return torch.rand(count, Augmentation.num_uniform, generator=torch.Generator().manual_seed(seed))


def test_a_crop_is_that_of_pillow():
    images = crops(1)
    left, top, width, height = 8, 12, 32, 24
    share = [torch.tensor([value]) for value in (left / 64, top / 48, width / 64, height / 48)]
    ours = resized_crop(images.float(), *share)[0].permute(1, 2, 0)
    piece = Image.fromarray(images[0].permute(1, 2, 0).numpy()).crop((left, top, left + width, top + height))
    theirs = np.asarray(piece.resize((64, 48), Image.Resampling.BILINEAR), dtype=np.float32)
    inner = np.s_[2:-2, 2:-2]  # at the border Pillow repeats the piece's edge, where we see the image beyond it
    assert np.abs(ours.numpy() - theirs)[inner].max() <= 1.01  # Pillow rounds after each direction


def test_the_whole_image_is_left_as_it_is():
    images = crops(3).float()
    zero, one = torch.zeros(3), torch.ones(3)
    torch.testing.assert_close(resized_crop(images, zero, zero, one, one), images, rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    "factors",
    [
        (0.6, 1.0, 1.0),
        (1.4, 1.0, 1.0),
        (1.0, 0.6, 1.0),
        (1.0, 1.4, 1.0),
        (1.0, 1.0, 0.6),
        (1.0, 1.0, 1.4),
        (1.2, 0.7, 1.3),
    ],
)
def test_jitter_is_that_of_pillow(factors):
    images = crops(2)
    ours = jitter_color(images.float(), *(torch.full((2,), factor) for factor in factors))
    for image, result in zip(images, ours, strict=True):
        theirs = Image.fromarray(image.permute(1, 2, 0).numpy())
        for enhance, factor in zip(
            (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), factors, strict=True
        ):
            theirs = enhance(theirs).enhance(factor)
        difference = result.permute(1, 2, 0).numpy() - np.asarray(theirs, dtype=np.float32)
        assert np.abs(difference).max() <= 3  # Pillow rounds after each and takes a whole number for the mean


def test_boxes_lie_in_the_image_and_have_the_distribution_of_the_recipe():
    numbers = uniform(20000)
    left, top, width, height = random_boxes(*numbers.unbind(-1)[1:5], (0.08, 1.0))
    assert (left >= 0).all() and (top >= 0).all()
    assert (left + width <= 1 + 1e-6).all() and (top + height <= 1 + 1e-6).all()
    area, log_ratio = width * height, (width / height).log()
    assert area.min() >= 0.08 - 1e-6 and area.max() <= 1 + 1e-6
    torch.testing.assert_close(area.mean(), torch.tensor(0.54), rtol=0, atol=0.01)
    assert log_ratio.abs().max() <= np.log(4 / 3) + 1e-5
    small = area < 0.5  # any ratio fits: uniform in the logarithm
    torch.testing.assert_close(
        log_ratio[small].std(), torch.tensor(np.log(4 / 3) / np.sqrt(3)).float(), rtol=0.03, atol=0
    )
    for place, side in ((left, width), (top, height)):
        torch.testing.assert_close((place / (1 - side)).mean(), torch.tensor(0.5), rtol=0, atol=0.02)


def test_half_are_flipped_and_nothing_else_happens():
    images, numbers = crops(8), uniform(8)
    result = Augmentation(horizontal_flip=True)(images, numbers)
    assert result.dtype == torch.uint8
    flipped = numbers[:, 0] < 0.5
    assert 0 < flipped.sum() < 8
    assert torch.equal(result[flipped], images[flipped].flip(-1))
    assert torch.equal(result[~flipped], images[~flipped])


def test_an_image_depends_on_its_own_numbers_alone():
    """So that a batch may be divided over processes and accumulated batches."""
    images, numbers = crops(6), uniform(6)
    augment = Augmentation(**FULL)
    whole = augment(images, numbers)
    parts = torch.cat([augment(images[part], numbers[part]) for part in (slice(0, 2), slice(2, 3), slice(3, 6))])
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-3)
    assert whole.dtype == torch.float32 and whole.min() >= 0 and whole.max() <= 255
    assert not torch.equal(whole, augment(images, uniform(6, seed=1)))


def test_numbers_are_the_same_for_an_image_whatever_is_switched_on():
    images, numbers = crops(6), uniform(6)
    cropped = Augmentation(random_resized_crop=(0.2, 1.0))(images, numbers)
    both = Augmentation(random_resized_crop=(0.2, 1.0), horizontal_flip=True)(images, numbers)
    unflipped = numbers[:, 0] >= 0.5
    assert torch.equal(both[unflipped], cropped[unflipped])


def test_gray_images():
    result = Augmentation(**FULL)(crops(4)[:, :1], uniform(4))
    assert result.shape == (4, 1, 48, 64) and result.isfinite().all()


def test_without_any_option_images_are_returned():
    images = crops(2)
    assert Augmentation()(images, uniform(2)) is images


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"random_resized_crop": (0.0, 1.0)}, "random_resized_crop must be shares of the area, .* got 0.0 1.0"),
        ({"random_resized_crop": (0.5, 0.2)}, "random_resized_crop .* got 0.5 0.2"),
        ({"random_resized_crop": (0.5,)}, "random_resized_crop .* got 0.5"),
        ({"random_resized_crop": (0.5, 1.5)}, "random_resized_crop .* got 0.5 1.5"),
        ({"color_jitter": 1.5}, r"color_jitter must lie in \[0, 1\], got 1.5"),
        ({"color_jitter": -0.1}, r"color_jitter must lie in \[0, 1\], got -0.1"),
    ],
)  # fmt: skip
def test_mistakes(options, message):
    with pytest.raises(UserError, match=message):
        Augmentation(**options)
