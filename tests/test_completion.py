"""A mask of one's own: `complete`, and `reconstruct --mask`."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from energy_transformer import EnergyTransformerConfig, EnergyTransformerForMaskedImageModeling
from energy_transformer.commands.reconstruct import main
from energy_transformer.data import normalize
from energy_transformer.data.demo import photograph
from energy_transformer.data.image_processing import build_image_processor
from energy_transformer.inspection import complete, completion_figure, load_mask, reconstruct
from energy_transformer.utils.command_line import run_script
from energy_transformer.utils.errors import UserError

SCRIPT = Path(__file__).parents[1] / "scripts" / "reconstruct.py"
PROCESSOR = build_image_processor((16, 24))


@pytest.fixture
def photo():
    """A part of the coffee cup, 64 by 96 pixels."""
    return photograph("coffee.png")[100:164, 200:296]


def disk(shape, radius, center=(0.5, 0.5)):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return (rows - shape[0] * center[0]) ** 2 + (columns - shape[1] * center[1]) ** 2 <= radius**2


@pytest.fixture
def files(small_model, photo, tmp_path):
    """A checkpoint, a photograph, and a mask of another size with a free form."""
    small_model.save_pretrained(tmp_path / "model")
    PROCESSOR.save_pretrained(tmp_path / "model")
    Image.fromarray(photo).save(tmp_path / "photo.png")
    Image.fromarray(disk((320, 480), 90).astype(np.uint8) * 255).save(tmp_path / "mask.png")
    return tmp_path


@pytest.fixture
def run(files, monkeypatch, capfd):
    """Runs the command in this process; returns its exit code and what it printed."""

    def run(*words):
        monkeypatch.chdir(files)
        monkeypatch.setattr(sys, "argv", ["reconstruct", "model", *map(str, words)])
        with pytest.raises(SystemExit) as leaving:
            run_script(main)
        return leaving.value.code, capfd.readouterr()

    return run


def test_the_script_changes_what_is_under_the_mask_and_nothing_else(files, photo):
    words = [sys.executable, str(SCRIPT), "model", "photo.png", "--mask", "mask.png", "--output", "filled.png"]
    done = subprocess.run(words, cwd=files, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "filled:  filled.png\npicture: filled-descent.png\nmask: " in done.stdout
    filled = np.asarray(Image.open(files / "filled.png"))
    mask = disk((320, 480), 90)[2::5, 2::5]  # the nearest pixels of a fifth of the size
    assert filled.shape == photo.shape and np.array_equal(filled[~mask], photo[~mask])
    assert (filled[mask] != photo[mask]).any(-1).mean() > 0.95
    with Image.open(files / "filled-descent.png") as picture:
        picture.load()
        assert picture.width > 600


def test_masks_of_every_kind_of_file(photo, tmp_path):
    mask = disk((64, 96), 20)
    painted = np.zeros((64, 96, 4), np.uint8)
    painted[mask] = 255
    pictures = {
        "gray.png": Image.fromarray(mask.astype(np.uint8) * 200),
        "one_bit.png": Image.fromarray(mask),
        "color.webp": Image.fromarray(np.repeat(mask[..., None] * np.uint8(255), 3, 2)),
        "painted.png": Image.fromarray(painted),
        "palette.gif": Image.fromarray(mask.astype(np.uint8) * 255).convert("P"),
    }
    for name, picture in pictures.items():
        picture.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
        assert np.array_equal(load_mask(tmp_path / name, (64, 96)), mask), name


def test_a_touched_patch_is_hidden_whole_and_only_pixels_under_the_mask_change(small_model, photo):
    mask = np.zeros((64, 96), bool)
    mask[9, 14] = True
    options = {"scale": 1.0, "overlap": 0.0}
    result = complete(small_model, PROCESSOR, photo, mask, **options)
    expected = np.zeros((64, 96), bool)
    expected[8:12, 12:16] = True
    assert np.array_equal(result.hidden.numpy(), expected)
    changed = photo.copy()
    changed[8:12, 12:16] = 255 - changed[8:12, 12:16]
    other = complete(small_model, PROCESSOR, changed, mask, **options)
    assert np.array_equal(other.image[9, 14], result.image[9, 14])
    assert np.array_equal(other.image[~mask], changed[~mask])


def test_no_hidden_pixel_leaks_at_any_scale(small_model, photo):
    mask = disk((64, 96), 17)
    changed = np.where(mask[..., None], 255 - photo, photo)
    for options in ({}, {"scale": 0.37}, {"whole": True}, {"whole": True, "scale": 0.71}):
        first, second = (complete(small_model, PROCESSOR, each, mask, **options) for each in (photo, changed))
        assert np.array_equal(first.image, second.image), options
    assert first.hidden.shape == (46, 69)  # 0.71 of 64 and 96


def test_a_photograph_of_the_size_of_the_model_is_one_tile(small_model, photo):
    photo, mask = photo[:16, :24], disk((16, 24), 5)
    result = complete(small_model, PROCESSOR, photo, mask, scale=1.0)
    pixels = normalize(torch.from_numpy(photo.copy()).permute(2, 0, 1)[None], PROCESSOR)
    direct = reconstruct(small_model, PROCESSOR, pixels, torch.from_numpy(mask)[None])
    expected = direct.prediction[0].clamp(0, 1).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(result.image[mask] / 255, expected[mask], atol=0.51 / 255)
    assert result.steps == [0, 1, 2, 3] and result.frames.shape == (4, 3, 16, 24)
    true = photo[mask].astype(float) / 255
    assert result.error == pytest.approx(np.square(result.image[mask] / 255 - true).mean())
    assert result.mean_color_error == pytest.approx(np.square(photo[~mask].mean(0) / 255 - true).mean())


def test_whole_is_one_descent_of_the_whole(small_model, photo):
    mask = disk((64, 96), 12)
    result = complete(small_model, PROCESSOR, photo, mask, whole=True, scale=1.0)
    pixels = normalize(torch.from_numpy(photo.copy()).permute(2, 0, 1)[None], PROCESSOR)
    direct = reconstruct(small_model, PROCESSOR, pixels, torch.from_numpy(mask)[None])
    expected = direct.prediction[0].clamp(0, 1).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(result.image[mask] / 255, expected[mask], atol=0.51 / 255)
    odd = complete(small_model, PROCESSOR, photo[:61, :83], mask[:61, :83], whole=True, scale=1.0)
    assert odd.image.shape == (61, 83, 3) and odd.hidden.shape == (61, 83)


def test_tiles_are_blended_without_seams(small_model, photo):
    """By the definition: an average with weights that fall to nearly nothing at the border of a tile."""
    mask = disk((64, 96), 25)
    result = complete(small_model, PROCESSOR, photo, mask, scale=1.0, overlap=0.5)
    pixels = normalize(torch.from_numpy(photo.copy()).permute(2, 0, 1)[None], PROCESSOR)
    total, weights = np.zeros((64, 96, 3)), np.zeros((64, 96, 1))
    rows, columns = (1 - abs(np.arange(side) - (side - 1) / 2) / (side / 2) for side in (16, 24))
    window = np.minimum(rows[:, None], columns[None])[..., None]
    assert window.min() < 0.07
    for top in range(0, 49, 8):
        for left in range(0, 73, 12):
            part = (slice(top, top + 16), slice(left, left + 24))
            if mask[part].any():
                touched = torch.from_numpy(mask[part])[None]
                tile = reconstruct(small_model, PROCESSOR, pixels[..., part[0], part[1]], touched)
                total[part] += tile.prediction[0].permute(1, 2, 0).numpy() * window
                weights[part] += window
    expected = (total / np.maximum(weights, 1e-9)).clip(0, 1)
    np.testing.assert_allclose(result.image[mask] / 255, expected[mask], atol=0.52 / 255)


def test_wide_holes_are_looked_at_from_farther_away(small_model):
    photo = photograph("coffee.png")
    assert complete(small_model, PROCESSOR, photo, disk((400, 600), 3)).hidden.shape == (400, 600)
    far = complete(small_model, PROCESSOR, photo, disk((400, 600), 40))
    assert far.hidden.shape == (40, 60)  # a radius of 40 pixels becomes a quarter of 16
    assert np.array_equal(far.image.shape, photo.shape) and far.image[200, 300].tolist() != photo[200, 300].tolist()


def test_one_channel_and_normalized_patches(photo):
    config = EnergyTransformerConfig(
        image_size=16, patch_size=4, num_channels=1, hidden_size=16, num_attention_heads=2, head_dim=4, num_steps=2,
        norm_pix_loss=True, num_hidden_layers=2,
    )  # fmt: skip
    model = EnergyTransformerForMaskedImageModeling(config)
    mask = disk((64, 96), 6)
    gray = photo[..., :1]
    result = complete(model, build_image_processor((16, 16), num_channels=1), gray, mask)
    assert result.image.shape == (64, 96, 1) and np.array_equal(result.image[~mask], gray[~mask])
    assert completion_figure(result).values["hidden"].shape == result.hidden.shape


def test_mistakes_are_one_line(files, run):
    Image.new("L", (96, 64), 0).save(files / "black.png")
    Image.new("L", (96, 64), 255).save(files / "white.png")
    (files / "text.png").write_text("no picture")
    Image.new("RGB", (20, 12)).save(files / "small.png")
    for words, message in (
        (["photo.png", "--mask", "black.png"], "the mask black.png hides nothing: what is white is hidden"),
        (["photo.png", "--mask", "white.png"], "the mask white.png hides the whole photograph"),
        (["photo.png", "--mask", "text.png"], "cannot read the image text.png"),
        (["photo.png", "--mask", "nowhere.png"], "cannot read the image nowhere.png"),
        (
            ["small.png", "--mask", "mask.png"],
            "the photograph is too small: 12x20 pixels, and the model works on 16x24",
        ),
        (["photo.png", "--mask", "mask.png", "--scale", 2], "scale must lie above 0 and be at most 1, got 2"),
        (["photo.png", "--mask", "mask.png", "--overlap", 1], "overlap must be at least 0 and below 1, got 1"),
        (["photo.png", "--mask", "mask.png", "--mask_ratio", 0.5], "mask_ratio does not go with mask"),
        (["photo.png", "--mask", "mask.png", "--output", "filled.jpg"], "output must end in .png, got filled.jpg"),
        (["photo.png", "--mask", "mask.png", "--output", "photo.png"], "output photo.png is the image itself"),
        (["photo.png", "--scale", 0.5], "scale needs mask"),
    ):
        code, printed = run(*words)
        assert code == 2 and "Traceback" not in printed.err, (words, printed.err)
        last = printed.err.strip().splitlines()[-1]
        assert last.startswith("error: ") and message in last, last


def test_too_large_to_be_run_whole(small_model):
    photo = np.zeros((600, 600, 3), np.uint8)
    with pytest.raises(UserError, match="too large to be run whole: 22500 patches, at most 16384"):
        complete(small_model, PROCESSOR, photo, disk((600, 600), 2), whole=True)
    with pytest.raises(UserError, match=r"photograph must be uint8 of shape \(H, W, 3\), got float64"):
        complete(small_model, PROCESSOR, photo / 255, disk((600, 600), 2))
    with pytest.raises(UserError, match=r"mask must be booleans of shape \(600, 600\)"):
        complete(small_model, PROCESSOR, photo, disk((600, 500), 2))
