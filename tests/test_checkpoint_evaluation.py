"""scripts/evaluate_masked_image_modeling.py as a process: its table and JSON, one process and two, and its mistakes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from skimage.metrics import structural_similarity

from energy_transformer import EnergyTransformerConfig, EnergyTransformerForMaskedImageModeling
from energy_transformer.data import denormalize, normalize
from energy_transformer.data.demo import load_demo_dataset
from energy_transformer.data.image_processing import build_image_processor, load_image_processor
from energy_transformer.masking import block_masks, scatter_masks
from energy_transformer.patches import patch_mask_to_pixels
from energy_transformer.training.checkpoint_evaluation import evaluate_checkpoint, format_table, write_report
from energy_transformer.training.checkpoint_evaluation_arguments import EvaluationArguments, parse_evaluation_arguments
from energy_transformer.utils.errors import UserError

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "evaluate_masked_image_modeling.py"
WORDS = ["--max_eval_samples=21", "--per_device_eval_batch_size=8", "--mask_types", "scatter", "block",
         "--mask_ratios", "0.25", "0.5", "--num_steps=2"]  # fmt: skip


def save_model(folder, **changes):
    torch.manual_seed(0)
    config = EnergyTransformerConfig(
        **{"image_size": 32, **changes}, patch_size=4, hidden_size=32, num_attention_heads=2, head_dim=16,
        intermediate_size=64, num_steps=3, step_size=0.5, initialization="scaled",
    )  # fmt: skip
    EnergyTransformerForMaskedImageModeling(config).save_pretrained(folder)
    build_image_processor((32, 32)).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def finished(checkpoint, tmp_path_factory):
    """The script's report with one process, and what it printed."""
    output = tmp_path_factory.mktemp("report") / "report.json"
    done = run(SCRIPT, checkpoint, *WORDS, f"--output={output}")
    assert done.returncode == 0, done.stderr
    return json.loads(output.read_text()), done.stdout


def run(*words):
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_every_mask_has_a_line_for_the_model_and_both_baselines(finished):
    report, printed = finished
    rows = [(r["mask_type"], r["mask_ratio"], r["hidden_patches"], r["prediction"]) for r in report["results"]]
    assert rows == [
        (kind, ratio, hidden, name)
        for kind in ("scatter", "block")
        for ratio, hidden in ((0.25, 16), (0.5, 32))
        for name in ("model", "mean_color", "neighbor_average")
    ]
    assert (report["samples"], report["patches"], report["num_steps"]) == (21, 64, 2)
    lines = printed.splitlines()
    assert lines[0] == "21 images, 2 steps; mean over images ± half its 95% interval"
    assert len([line for line in lines if line.startswith(("scatter", "block"))]) == 12
    for row in report["results"]:
        for metric in ("masked_mse", "psnr", "ssim"):
            assert row[f"{metric}_low"] < row[metric] < row[f"{metric}_high"]


def test_figures_follow_their_definition(finished, checkpoint):
    """The model's figures with plain loops over images, masks drawn anew from the seed."""
    report, _ = finished
    model = EnergyTransformerForMaskedImageModeling.from_pretrained(checkpoint)
    processor = load_image_processor(checkpoint)
    images = load_demo_dataset()["test"].shuffle(seed=0).select(range(21))["image"]
    pixels = torch.stack([torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy()) for image in images])
    pixel_values = normalize(pixels, processor)
    noise = torch.rand(21, 64, generator=torch.Generator().manual_seed(0))
    rows = iter(row for row in report["results"] if row["prediction"] == "model")
    for masks in (scatter_masks, block_masks):
        for ratio in (0.25, 0.5):
            row = next(rows)
            mask, _ = masks(noise, (8, 8), ratio)
            with torch.no_grad():
                predicted = model(pixel_values, bool_masked_pos=mask, num_steps=2).reconstruction
            hidden = patch_mask_to_pixels(mask, (4, 4), (8, 8)).expand_as(pixel_values)
            original = denormalize(pixel_values, processor)
            picture = torch.where(hidden, denormalize(predicted, processor), original)
            errors = [(a - b)[h].square().mean().item() for a, b, h in zip(picture, original, hidden, strict=True)]
            assert row["masked_mse"] == pytest.approx(np.mean(errors), rel=1e-5)
            shown, original = picture.clamp(0, 1).double().numpy(), original.double().numpy()
            decibels = [-10 * np.log10(((a - b) ** 2).mean()) for a, b in zip(shown, original, strict=True)]
            assert row["psnr"] == pytest.approx(np.mean(decibels), rel=1e-5)
            similarity = [
                structural_similarity(a, b, data_range=1, channel_axis=0, gaussian_weights=True, sigma=1.5,
                                      use_sample_covariance=False)
                for a, b in zip(shown, original, strict=True)
            ]  # fmt: skip
            assert row["ssim"] == pytest.approx(np.mean(similarity), rel=1e-5)


def test_two_processes_give_the_same_numbers(finished, checkpoint, tmp_path):
    """21 images do not divide by two: those that fill the last batch must not count."""
    launcher = ["-m", "accelerate.commands.launch", "--config_file", "configuration/accelerate/multi_cpu.yaml"]
    done = run(*launcher, SCRIPT, checkpoint, "--cpu", *WORDS, f"--output={tmp_path / 'two.json'}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("21 images") == 1, "one process prints"
    two = json.loads((tmp_path / "two.json").read_text())
    for one, other in zip(finished[0]["results"], two["results"], strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert other[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-5)), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_types": ["scater"]}, "mask_types must be of scatter, block, scatter_or_block, got 'scater'"),
        ({"mask_ratios": [0.5, 1.0]}, r"mask_ratios must lie between 0 and 1, both excluded, got \[0.5, 1.0\]"),
        ({"confidence_level": 95.0}, "confidence_level must lie between 0 and 1"),
        ({"num_steps": -1}, "num_steps must not be negative, got -1"),
        ({"seed": -1}, "seed must lie in"),
        ({"per_device_eval_batch_size": 0}, "per_device_eval_batch_size must be at least 1, got 0"),
        ({"output": "nowhere/report.json"}, "output must be a file in a folder that exists, got nowhere/report.json"),
    ],
)
def test_values_that_are_not_allowed(options, message):
    with pytest.raises(UserError, match=message):
        EvaluationArguments(**options)


def test_shared_options_keep_the_defaults_of_training():
    checkpoint, args = parse_evaluation_arguments(["somewhere", "--dataset_name=x", "--mask_ratios", "0.1"], None)
    assert (checkpoint, args.dataset_name, args.mask_ratios) == ("somewhere", "x", [0.1])
    assert (args.train_val_split, args.per_device_eval_batch_size, args.seed) == (0.15, 128, 0)


def test_a_report_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "report.json").mkdir()
    with pytest.raises(UserError, match="cannot be written: Is a directory"):
        write_report({}, tmp_path / "report.json")


def test_checkpoints_that_do_not_serve_are_one_line(tmp_path):
    accelerator = Accelerator(cpu=True)
    small = save_model(tmp_path / "small", image_size=8)
    for folder, message in (
        (small, "is of 8x8 pixels, but SSIM needs 11x11"),
        (tmp_path / "nowhere", "cannot load .*nowhere"),
    ):
        with pytest.raises(UserError, match=message) as error:
            evaluate_checkpoint(str(folder), EvaluationArguments(), accelerator)
        assert "\n" not in str(error.value)


def test_normalized_patches_are_measured_without_the_answer(tmp_path):
    folder = save_model(tmp_path / "normalized", norm_pix_loss=True)
    arguments = EvaluationArguments(max_eval_samples=6, mask_types=["scatter"], mask_ratios=[0.5])
    report = evaluate_checkpoint(str(folder), arguments, Accelerator(cpu=True))
    assert report["patch_statistics"] == "estimated"
    assert "estimated from the visible ones" in format_table(report)
    model, mean_color, neighbors = (row["masked_mse"] for row in report["results"])
    assert neighbors < model < 3 * mean_color, "an untrained model: the estimated mean with noise of its contrast"


def test_broken_images_are_left_out_and_told(checkpoint, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for index in range(4):
        load_demo_dataset()["test"][index]["image"].save(images / f"{index}.png")
    (images / "2.png").write_bytes((images / "2.png").read_bytes()[:60])
    arguments = EvaluationArguments(train_dir=str(images), validation_dir=str(images), mask_ratios=[0.5])
    report = evaluate_checkpoint(str(checkpoint), arguments, Accelerator(cpu=True))
    assert (report["samples"], report["broken_images"]) == (3, 1)
    assert "1 broken images are left out" in format_table(report)


def test_one_image_has_no_interval(checkpoint):
    with pytest.raises(UserError, match="needs at least 2 images, got 1"):
        evaluate_checkpoint(str(checkpoint), EvaluationArguments(max_eval_samples=1), Accelerator(cpu=True))


def test_the_script_prints_a_mistake_on_one_line(tmp_path):
    done = run(SCRIPT, tmp_path, "--mask_types=scater")
    assert done.returncode == 2 and done.stderr.strip().splitlines()[-1].startswith("error: mask_types must be of")
    assert "Traceback" not in done.stderr
