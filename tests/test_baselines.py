"""The baselines against slow loops that follow their definitions pixel by pixel."""

import pytest
import torch

from energy_transformer.metrics import masked_squared_error, mean_visible_color, neighbor_average

PATCH = (2, 4)
ROWS, COLUMNS = 3, 2


@pytest.fixture
def images():
    return torch.rand(2, 3, ROWS * PATCH[0], COLUMNS * PATCH[1], generator=torch.Generator().manual_seed(0))


@pytest.fixture
def mask():
    return torch.tensor([[1, 0, 0, 1, 1, 0], [0, 0, 1, 0, 0, 0]], dtype=torch.bool)


def is_hidden(mask, y, x):
    return bool(mask[(y // PATCH[0]) * COLUMNS + x // PATCH[1]])


def pixels(images):
    return [(y, x) for y in range(images.shape[2]) for x in range(images.shape[3])]


def test_mean_visible_color(images, mask):
    result = mean_visible_color(images, mask, PATCH)
    for b, image in enumerate(images):
        visible = [image[:, y, x] for y, x in pixels(images) if not is_hidden(mask[b], y, x)]
        mean = torch.stack(visible).mean(0)
        for y, x in pixels(images):
            expected = mean if is_hidden(mask[b], y, x) else image[:, y, x]
            torch.testing.assert_close(result[b, :, y, x], expected)


def test_neighbor_average(images, mask):
    result = neighbor_average(images, mask, PATCH)
    for b, image in enumerate(images):
        visible = []
        for index in range(ROWS * COLUMNS):
            if not mask[b, index]:
                top, left = (index // COLUMNS) * PATCH[0], (index % COLUMNS) * PATCH[1]
                color = image[:, top : top + PATCH[0], left : left + PATCH[1]].mean((1, 2))
                visible.append((top + (PATCH[0] - 1) / 2, left + (PATCH[1] - 1) / 2, color))
        for y, x in pixels(images):
            if not is_hidden(mask[b], y, x):
                torch.testing.assert_close(result[b, :, y, x], image[:, y, x])
                continue
            weights = [((y - cy) ** 2 + (x - cx) ** 2) ** -2.0 for cy, cx, _ in visible]
            expected = sum(w * color for w, (_, _, color) in zip(weights, visible, strict=True)) / sum(weights)
            torch.testing.assert_close(result[b, :, y, x], expected)


def test_masked_squared_error_counts_hidden_pixels_only(images, mask):
    prediction = images.clone()
    prediction[0, :, :2, :4] += 0.5  # the first patch, hidden in the first image alone
    prediction[1, :, :2, :4] += 0.5
    error = masked_squared_error(prediction, images, mask, PATCH)
    torch.testing.assert_close(error, torch.tensor([0.25 / 3, 0.0]))


def test_nothing_visible_or_nothing_hidden_is_finite(images):
    for value in (True, False):
        mask = torch.full((2, 6), value)
        for baseline in (mean_visible_color, neighbor_average):
            result = baseline(images, mask, PATCH)
            assert torch.equal(result, torch.zeros_like(images) if value else images)
        assert masked_squared_error(images, images, mask, PATCH).tolist() == [0.0, 0.0]
