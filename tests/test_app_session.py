"""What the app computes, without its interface."""

import numpy as np
import pytest
import torch
from PIL import Image

from energy_transformer import EnergyTransformerConfig, EnergyTransformerForMaskedImageModeling
from energy_transformer.app.session import MAX_IMAGE_PIXELS, Explorer, energy_curve, energy_map, painted_on
from energy_transformer.data.image_processing import build_image_processor
from energy_transformer.inspection import load_for_inspection
from energy_transformer.utils.errors import UserError


@pytest.fixture
def explorer(small_model, tmp_path):
    """Of pictures of 16×24 pixels, in patches of 4, which are shown 16 times as large."""
    small_model.save_pretrained(tmp_path / "model")
    build_image_processor((16, 24)).save_pretrained(tmp_path / "model")
    return Explorer.of(str(tmp_path / "model"), "cpu")


@pytest.fixture
def picture(explorer):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return explorer.fit(Image.fromarray(pixels))


def test_what_is_painted_is_hidden_and_nothing_else_changes(explorer, picture):
    shown = explorer.enlarged(picture)
    assert picture.shape == (16, 24, 3) and shown.shape == (256, 384, 3)
    painted = np.zeros(shown.shape[:2], dtype=bool)
    painted[3 * 16 + 15, 8 * 16] = True  # one dot, in the pixel of row 3 and column 8: the patch (0, 2)
    found = explorer.descend(picture, painted, 3)
    assert found.mask[0].nonzero().tolist() == [[2]] and found.num_steps == 3
    before, after = shown, explorer.frame(found, 3)
    inside = np.zeros(shown.shape[:2], dtype=bool)
    inside[: 4 * 16, 8 * 16 : 12 * 16] = True
    assert np.abs(before[~inside].astype(int) - after[~inside]).max() <= 1  # a rounding
    assert (before[inside] != after[inside]).any()


def test_a_canvas_of_another_size_than_the_picture(explorer, picture):
    painted = np.zeros((100, 150), dtype=bool)
    painted[-1, -1] = True
    assert explorer.descend(picture, painted, 1).mask[0].nonzero().tolist() == [[23]]


@pytest.mark.parametrize("x, y, place", [(0, 0, (0, 0)), (383, 255, (3, 5)), (64, 63, (0, 1))])
def test_a_click_chooses_the_patch_under_it(explorer, picture, x, y, place):
    found = explorer.descend(picture, np.eye(256, 384, dtype=bool), 2)
    assert f"row {place[0]}, column {place[1]}" in explorer.attention(found, x, y).get_suptitle()


def test_pictures_of_a_step(explorer, picture):
    found = explorer.descend(picture, np.eye(256, 384, dtype=bool), 4)
    np.testing.assert_allclose(energy_map(found, 2).values["token_energies"], found.energy_map()[0, 2].numpy())
    assert energy_curve(found, 2).values["energies"].shape == (1, 5)
    assert not np.array_equal(explorer.frame(found, 0), explorer.frame(found, 4))


def test_mistakes_are_told_in_a_line(explorer, picture, tmp_path):
    for painted, told in [(None, "nothing is hidden"), (np.ones((256, 384), dtype=bool), "every patch is hidden")]:
        with pytest.raises(UserError, match=told):
            explorer.descend(picture, painted, 3)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"broken\.png"):
        explorer.open(str(tmp_path / "broken.png"))
    side = int(MAX_IMAGE_PIXELS**0.5) + 1
    Image.new("1", (side, side)).save(tmp_path / "large.png")
    with pytest.raises(UserError, match="pixels"):
        explorer.open(str(tmp_path / "large.png"))


def test_the_layers_of_the_editor_are_joined_and_bounded():
    left, right = (np.zeros((4, 6, 4), dtype=np.uint8) for _ in range(2))
    left[1, 0, 3], right[2, 5, 3] = 255, 1
    assert np.argwhere(painted_on({"layers": [left, None, right]})).tolist() == [[1, 0], [2, 5]]
    assert painted_on(None) is None and painted_on({"layers": []}) is None
    wide = np.broadcast_to(left[:1, :1], (2000, 2001, 4))
    for layers in ([left] * 5, [left, left[:2]], [wide]):
        with pytest.raises(UserError, match=r"^layers must be at most 4 of one size and of at most 4,000,000 pixels"):
            painted_on({"layers": layers})


def test_a_processor_of_other_channels_is_refused_in_a_line(small_model, tmp_path):
    small_model.save_pretrained(tmp_path)
    build_image_processor((16, 24), 1).save_pretrained(tmp_path)
    for load in (Explorer.of, load_for_inspection):
        with pytest.raises(UserError, match=r"num_channels 3, but its preprocessor_config\.json normalizes 1$"):
            load(str(tmp_path))


def test_a_gray_model_takes_photographs_in_color(small_config, tmp_path):
    config = EnergyTransformerConfig(**small_config.to_dict() | {"num_channels": 1, "energy_terms": ["attention"]})
    EnergyTransformerForMaskedImageModeling(config).save_pretrained(tmp_path)
    build_image_processor((16, 24), 1).save_pretrained(tmp_path)
    explorer = Explorer.of(str(tmp_path), "cpu")
    picture = explorer.fit(Image.new("RGB", (50, 40), "red"))
    assert picture.shape == (16, 24, 1)
    found = explorer.descend(picture, np.eye(256, 384, dtype=bool), 10_000)
    assert explorer.frame(found, 0).shape == (256, 384, 3) and found.num_steps == explorer.most_steps
    with pytest.raises(UserError, match="no memories"):
        explorer.memories()


def test_users_share_the_model_and_nothing_else(explorer, picture):
    """A descent of one is the same before and after another's."""
    mine = np.eye(256, 384, dtype=bool)
    first = explorer.descend(picture, mine, 3)
    explorer.descend(255 - picture, ~mine & (np.arange(384) < 200), 5)
    again = explorer.descend(picture, mine, 3)
    assert torch.equal(first.frames, again.frames)
