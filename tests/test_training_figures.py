"""Figures that are infinite or no numbers are recorded as such, and end no run whose model is safe."""

import json

import pytest
from huggingface_hub import ModelCard
from PIL import Image
from training_runs import log, train

from energy_transformer.hub.cards import model_card
from energy_transformer.utils.errors import UserError
from energy_transformer.utils.files import as_json, write_json


def results(folder):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads((folder / "all_results.json").read_text(), parse_constant=refuse)


def test_json_has_no_infinities(tmp_path):
    content = {"a": [1.5, float("nan")], "b": {"c": float("-inf")}, "d": (2, "inf", None)}
    write_json(tmp_path / "x.json", content)
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1.5, None], "b": {"c": None}, "d": [2, "inf", None]}
    assert as_json({"a": float("inf")}) == '{"a": null}'


def test_a_gradient_may_be_left_as_long_as_it_is(tmp_path):
    train(tmp_path, "--max_grad_norm=inf", "--max_train_steps=2")
    assert results(tmp_path)["arguments"]["max_grad_norm"] == "inf"
    assert "| `max_grad_norm` | inf |" in (tmp_path / "README.md").read_text()
    assert all(line["grad_norm"] > 0 for line in log(tmp_path))


def test_images_of_one_color_have_no_ratio(tmp_path, caplog):
    for number in range(24):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), (number, 9, 9)).save(tmp_path / "images" / f"{number}.png")
    words = [f"--train_dir={tmp_path / 'images'}", "--max_train_steps=4", "--eval_steps=2", "--train_val_split=0.25"]
    train(tmp_path / "run", *words)
    found = results(tmp_path / "run")
    assert found["eval_ratio_to_mean_color"] is found["eval_ratio_to_neighbor_average"] is None
    assert found["eval_masked_mse"] > 0
    assert "step 2: eval_ratio_to_mean_color, eval_ratio_to_neighbor_average cannot be told" in caplog.text
    assert "times that of" not in ModelCard.load(tmp_path / "run" / "README.md").text
    assert {"eval_ratio_to_mean_color": None}.items() <= log(tmp_path / "run")[2].items()


def test_a_figure_that_is_no_number_costs_no_model(tmp_path):
    with pytest.raises(UserError, match=r"not finite at step 1: .*\(the model and the other results are in"):
        train(tmp_path, "--learning_rate=1e30", "--max_train_steps=1", "--warmup_ratio=0")
    assert results(tmp_path)["eval_masked_mse"] is None and (tmp_path / "model.safetensors").is_file()
    card = model_card(tmp_path)
    assert not card.data.eval_results and "| **this model** | **no number** |" in str(card)
