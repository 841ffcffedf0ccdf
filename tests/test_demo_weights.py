"""The weights that come with the package: what they are, and that they do what their card says."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from huggingface_hub import ModelCard
from PIL import Image
from training_runs import ENVIRONMENT
from transformers import AutoImageProcessor, AutoModelForMaskedImageModeling

from energy_transformer import EnergyTransformerConfig, EnergyTransformerForMaskedImageModeling, demo_checkpoint
from energy_transformer.commands import reconstruct
from energy_transformer.data.demo import photograph
from energy_transformer.training.checkpoint_evaluation import evaluate_checkpoint
from energy_transformer.training.checkpoint_evaluation_arguments import EvaluationArguments
from energy_transformer.training.masked_image_modeling import build_config
from energy_transformer.training.masked_image_modeling_arguments import MaskedImageModelingArguments
from energy_transformer.training.parsing import parse_arguments

ROOT = Path(__file__).parents[1]
# Seeds 0 and 1 were 1.4 % apart at most before the projections were normalized, and 18 % with scattered masks alone;
# those of the recipe as it is have not been compared yet.
OF_SEEDS = 0.2


def errors(checkpoint, *ratios):
    """The masked error of each prediction, by kind and number of hidden patches."""
    report = evaluate_checkpoint(
        str(checkpoint), EvaluationArguments(cpu=True, mask_ratios=ratios), Accelerator(cpu=True)
    )
    found = {}
    for row in report["results"]:
        found.setdefault((row["mask_type"], row["hidden_patches"]), {})[row["prediction"]] = row["masked_mse"]
    return found


def of_the_card():
    rows = re.findall(r"^\| (\d+) of 64, (\w+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", card(), re.MULTILINE)
    names = ("model", "mean_color", "neighbor_average")
    return {(kind, int(hidden)): dict(zip(names, map(float, row), strict=True)) for hidden, kind, *row in rows}


def card():
    return (demo_checkpoint() / "README.md").read_text()


def test_the_weights_do_what_the_card_says():
    measured, told = errors(demo_checkpoint(), 0.5), of_the_card()
    assert set(told) == {(kind, hidden) for kind in ("scatter", "block") for hidden in (16, 32, 48)}
    assert set(measured) == {("scatter", 32), ("block", 32)}
    for mask, error in measured.items():
        assert error == pytest.approx(told[mask], rel=1e-3)
    for error in told.values():
        assert error["model"] < error["mean_color"]


def test_the_metadata_of_the_card_are_those_of_the_run():
    (result,) = ModelCard(card()).data.eval_results
    run = json.loads((demo_checkpoint() / "all_results.json").read_text())
    assert result.metric_value == pytest.approx(run["eval_masked_mse"], rel=1e-4)
    assert "](samples/" not in card() and not re.search(r"/(home|root|tmp|work)/", card())
    assert (ROOT / "model_cards" / "energy-transformer-demo.md").resolve() == (
        demo_checkpoint() / "README.md"
    ).resolve()


def test_the_folder_is_small_and_loads_without_code_of_its_own(tmp_path):
    assert sum(path.stat().st_size for path in demo_checkpoint().iterdir()) < 1_000_000
    assert not [*demo_checkpoint().glob("*.py")]
    model, info = AutoModelForMaskedImageModeling.from_pretrained(demo_checkpoint(), output_loading_info=True)
    assert type(model) is EnergyTransformerForMaskedImageModeling and model.dtype == torch.float32
    assert not any(info.values())
    processor = AutoImageProcessor.from_pretrained(demo_checkpoint())
    assert [*processor.image_mean] == [0.5, 0.5, 0.5]
    model.save_pretrained(tmp_path)
    assert (tmp_path / "modeling_energy_transformer.py").is_file()
    assert "auto_map" in json.loads((tmp_path / "config.json").read_text())


def test_the_recipe_of_the_demo_is_that_of_the_weights():
    config = build_config(parse_arguments(["--config=demo"], None, MaskedImageModelingArguments))
    shipped = EnergyTransformerConfig.from_pretrained(demo_checkpoint())
    computed = {"architectures", "dtype", "transformers_version", "_name_or_path"}
    recipe, weights = ({k: v for k, v in each.to_dict().items() if k not in computed} for each in (config, shipped))
    assert recipe == weights and config.mask_type == "scatter_or_block"
    run = json.loads((demo_checkpoint() / "all_results.json").read_text())
    args = parse_arguments(["--config=demo"], None, MaskedImageModelingArguments)
    assert (run["train_steps"], run["arguments"]["seed"]) == (args.max_train_steps, args.seed)


def test_a_photograph_is_filled_in_without_naming_a_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    photo = photograph("astronaut.png")[64:192, 160:352]
    hidden = np.zeros(photo.shape[:2], dtype=bool)
    hidden[64:80, 80:112] = hidden[16:32, 128:144] = True
    Image.fromarray(photo).save("photo.png")
    Image.fromarray(hidden.astype(np.uint8) * 255).save("mask.png")
    reconstruct.main(["photo.png", "--mask=mask.png", "--output=filled.png"])
    assert capsys.readouterr().out.startswith("filled:  filled.png\n")
    filled, photo = (np.asarray(image, dtype=float) / 255 for image in (Image.open("filled.png"), photo))
    assert (filled[~hidden] == photo[~hidden]).all()
    assert ((filled - photo)[hidden] ** 2).mean() < ((photo[~hidden].mean(0) - photo[hidden]) ** 2).mean()


@pytest.mark.slow
def test_a_new_training_ends_in_the_range_of_seeds(tmp_path):
    command = [sys.executable, "-m", "energy_transformer", "train", "masked-image-modeling", "--config=demo", "--cpu"]
    done = subprocess.run(
        [*command, f"--output_dir={tmp_path / 'run'}"], env=ENVIRONMENT, capture_output=True, text=True, timeout=3600
    )
    assert done.returncode == 0, done.stderr
    for mask, error in errors(tmp_path / "run", 0.5).items():
        assert error["model"] == pytest.approx(of_the_card()[mask]["model"], rel=OF_SEEDS)
        assert error["model"] < error["mean_color"]
