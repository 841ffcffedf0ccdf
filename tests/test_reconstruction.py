"""`scripts/reconstruct.py`: a checkpoint and an image of any size in, a picture of the descent out."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForMaskedImageModeling

from energy_transformer import (
    EnergyTransformerConfig,
    EnergyTransformerForImageClassification,
    EnergyTransformerForMaskedImageModeling,
)
from energy_transformer.commands.reconstruct import main
from energy_transformer.data import denormalize
from energy_transformer.data.demo import photograph
from energy_transformer.data.image_processing import build_image_processor, load_image_processor
from energy_transformer.inspection import prepare_image, reconstruct
from energy_transformer.metrics import masked_squared_error
from energy_transformer.utils.command_line import run_script


@pytest.fixture
def checkpoint(small_model, tmp_path):
    small_model.save_pretrained(tmp_path / "checkpoint")
    build_image_processor((16, 24)).save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(photograph("coffee.png")).save(tmp_path / "coffee.png")  # 600 by 400 pixels
    return tmp_path / "coffee.png"


@pytest.fixture
def run(monkeypatch, capfd):
    """Runs the command in this process; returns its exit code and what it printed."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["reconstruct", *map(str, words)])
        with pytest.raises(SystemExit) as leaving:
            run_script(main)
        return leaving.value.code, capfd.readouterr()

    return run


def test_writes_the_picture_and_says_what_it_did(checkpoint, picture, tmp_path, run):
    figure, output = tmp_path / "new" / "descent.png", tmp_path / "filled.png"
    code, printed = run(checkpoint, picture, "--figure", figure, "--output", output)
    assert code == 0
    assert f"picture: {figure}" in printed.out and f"filled:  {output}" in printed.out
    assert "hidden:  12 of 24 patches" in printed.out and "after 3 steps" in printed.out
    with Image.open(figure) as image:
        image.load()
        assert image.width > 700
    original = load_image_processor(checkpoint)(Image.open(picture), do_normalize=False, return_tensors="np")
    filled = np.asarray(Image.open(output))
    same = (abs(filled / 255 - original["pixel_values"][0].transpose(1, 2, 0)) < 2 / 255).all(-1)
    assert same.reshape(4, 4, 6, 4).all((1, 3)).sum() == 12  # of the 24 patches


@pytest.mark.parametrize(("size", "patches"), [(["32"], 64), (["32", "16"], 32), (["4", "4"], 1)])
def test_other_sizes(checkpoint, picture, tmp_path, run, size, patches):
    code, printed = run(checkpoint, picture, "--output", tmp_path / "a.png", "--image_size", *size)
    assert code == 0 and f"of {patches} patches" in printed.out


def test_the_printed_error_is_that_of_the_prediction(checkpoint, picture, tmp_path, run):
    _, printed = run(checkpoint, picture, "--output", tmp_path / "a.png", "--seed", 5, "--mask_ratio", 0.25)
    model = AutoModelForMaskedImageModeling.from_pretrained(checkpoint)
    processor = load_image_processor(checkpoint)
    pixel_values, mask = prepare_image(str(picture), model, processor, 0.25, 5)
    assert mask.sum() == 6
    outputs = model(pixel_values, bool_masked_pos=mask)
    images = processor(Image.open(picture), return_tensors="pt")["pixel_values"]
    error = masked_squared_error(
        denormalize(outputs.reconstruction, processor), denormalize(images, processor), mask, (4, 4)
    )
    assert f"mean squared error {error.item():.5f}" in printed.out


def test_frames_run_from_the_start_to_the_prediction(small_model):
    processor = build_image_processor((16, 24))
    pixel_values = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.rand(2, 24, generator=torch.Generator().manual_seed(1)) < 0.5
    result = reconstruct(small_model, processor, pixel_values, mask, num_steps=5)
    assert result.frames.shape == (6, 2, 3, 16, 24) and result.energies.shape == (2, 6)
    torch.testing.assert_close(result.frames[-1], result.prediction)
    torch.testing.assert_close(result.images, (pixel_values + 1) / 2)
    assert not torch.allclose(result.frames[0], result.prediction)


def test_one_channel(tmp_path, picture, run):
    config = EnergyTransformerConfig(
        image_size=16, patch_size=4, num_channels=1, hidden_size=16, num_attention_heads=2, head_dim=4, num_steps=2
    )
    EnergyTransformerForMaskedImageModeling(config).save_pretrained(tmp_path / "gray")
    build_image_processor((16, 16), num_channels=1).save_pretrained(tmp_path / "gray")
    code, _ = run(tmp_path / "gray", picture, "--output", tmp_path / "a.png")
    assert code == 0


def test_a_model_of_normalized_patches(small_model, picture, tmp_path, run):
    small_model.config.norm_pix_loss = True
    small_model.save_pretrained(tmp_path)
    build_image_processor((16, 24)).save_pretrained(tmp_path)
    errors = {}
    for words, note in (([], "estimated from the visible ones"), (["--leak_statistics"], "LEAK: mean and contrast")):
        code, printed = run(tmp_path, picture, "--output", tmp_path / "a.png", *words)
        assert code == 0 and note in printed.out
        errors[note] = printed.out.partition("mean squared error ")[2].split()[0]
    assert len(set(errors.values())) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--leak_statistics"], "leak_statistics is for models with norm_pix_loss"),
        (["--mask_ratio", "1.5"], "mask_ratio must lie between 0 and 1"),
        (["--image_size", "30"], r"image_size must be one number or height and width, multiples of the model's patch"),
        (["--image_size", "8", "8", "8"], "image_size must be one number or height and width"),
        (["--seed", "-1"], "seed must lie in"),
        (["--output", "/proc/nowhere/a.png"], "/proc/nowhere/a.png cannot be written"),
        (["--num_steps", "-1"], "num_steps must not be negative"),
        (["--output", "picture.jpg"], "output must end in .png, got picture.jpg"),
        (["--device", "abacus"], "device 'abacus' cannot be used"),
        (["--figure", "coffee-filled.png"], "output and figure must be two files"),
        (["--whole"], "whole needs mask"),
        (["--no_such_option"], "unrecognized arguments: --no_such_option"),
    ],
)
def test_mistakes(checkpoint, picture, run, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, printed = run(checkpoint, picture, *words)
    assert code == 2
    last = printed.err.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last and "Traceback" not in printed.err


def test_checkpoints_that_predict_no_pictures(small_config, small_model, picture, tmp_path, run):
    EnergyTransformerForImageClassification(small_config).save_pretrained(tmp_path / "classifier")
    damaged = tmp_path / "damaged"
    small_model.save_pretrained(damaged)
    weights = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    for name, message in (
        ("classifier", "holds no masked-image model: it lacks decoder.bias"),
        ("damaged", "cannot load"),
    ):
        code, printed = run(tmp_path / name, picture, "--output", tmp_path / "a.png")
        assert code == 2 and message in printed.err.strip().splitlines()[-1]


def test_files_that_are_not_what_they_should_be(checkpoint, picture, tmp_path, run, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "text.png").write_text("no image")
    for words, message in (
        ([checkpoint, tmp_path / "text.png"], f"cannot read the image {tmp_path / 'text.png'}"),
        ([checkpoint, tmp_path / "nowhere.png"], f"cannot read the image {tmp_path / 'nowhere.png'}"),
        ([tmp_path, picture], f"cannot load '{tmp_path}'"),
        (["nobody/nothing", picture], "cannot load 'nobody/nothing'"),
    ):
        code, printed = run(*words)
        assert code == 2 and message in printed.err.strip().splitlines()[-1]
