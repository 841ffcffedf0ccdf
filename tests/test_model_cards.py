"""The card of a run says what the run was, in metadata that the Hub takes and in code that runs."""

import json
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, get_session
from huggingface_hub.repocard import metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from PIL import Image
from transformers import pipeline

from energy_transformer import EnergyTransformerConfig, EnergyTransformerForImageClassification
from energy_transformer.conversion import convert_checkpoint
from energy_transformer.data.image_processing import build_image_processor
from energy_transformer.hub.cards import address_card, model_card, write_card
from energy_transformer.utils.errors import UserError

ROOT = Path(__file__).parents[1]
COMMON = {
    "eval_samples": 588,
    "train_steps": 8000,
    "train_samples": 3210,
    "train_seconds": 216.09,
    "train_samples_per_second": 592.3,
    "num_parameters": 35060,
    "num_processes": 2,
    "device": "cpu",
    "device_name": "Some processor",
    "torch": "2.13.0",
    "transformers": "5.23.0",
}
MASKED = COMMON | {
    "eval_masked_mse": 0.005698905229407074,
    "eval_mean_color_mse": 0.016217715515044893,
    "eval_neighbor_average_mse": 0.007588580477479555,
}
ARGUMENTS = {"dataset_name": "demo", "train_dir": None, "output_dir": "/home/me/out", "learning_rate": 0.006, "seed": 3}


def finish(folder, model, results, **arguments):
    """What training leaves, as far as a card is concerned."""
    model.save_pretrained(folder)
    size = model.config.image_height_width
    build_image_processor(size).save_pretrained(folder)
    (folder / "samples").mkdir()
    for name in ("energy", "reconstructions"):
        (folder / "samples" / f"{name}.png").write_bytes(b"")
    (folder / "all_results.json").write_text(json.dumps(results | {"arguments": ARGUMENTS | arguments}))
    return folder


@pytest.fixture
def masked(tmp_path, small_model):
    return finish(tmp_path / "run", small_model, MASKED)


@pytest.fixture
def classified(tmp_path):
    config = EnergyTransformerConfig(
        image_size=16, patch_size=4, hidden_size=16, num_attention_heads=2, head_dim=8, intermediate_size=16,
        num_steps=2, id2label={0: "cat", 1: "ship"}, label2id={"cat": 0, "ship": 1},
    )  # fmt: skip
    model = EnergyTransformerForImageClassification(config)
    return finish(tmp_path / "run", model, COMMON | {"eval_accuracy": 0.75}, dataset_name="uoft-cs/cifar10")


def validate(hub, card):
    """As `ModelCard.validate` does, which before huggingface-hub 2 asks another server than HF_ENDPOINT."""
    answer = get_session().post(f"{hub.url}/api/validate-yaml", json={"repoType": "model", "content": str(card)})
    assert answer.status_code == 200, answer.text


def test_metadata(hub, masked):
    card = model_card(masked, "alice/model", license="mit")
    validate(hub, card)
    card.save(masked / "README.md")
    data = metadata_load(masked / "README.md")
    assert data["license"] == "mit" and data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "image-feature-extraction" and "masked-image-modeling" in data["tags"]
    assert "datasets" not in data  # the photographs are no dataset of the Hub
    name, results = model_index_to_eval_results(data["model-index"])
    assert name == "model"
    assert [(result.metric_type, result.metric_value) for result in results] == [("mse", 0.0056989)]


def test_text(masked):
    text = str(model_card(masked, "alice/model"))
    for part in (
        "35,060 parameters", "588 held-out images", "| **this model** | **0.005699** |",
        "| mean color of the visible pixels | 0.01622 |", "0.351 times that of the mean color",
        "0.751 times that of the distance-weighted average", "(samples/reconstructions.png)", "(samples/energy.png)",
        "| `learning_rate` | 0.006 |", "| `seed` | 3 |", "2 processes on Some processor, 216 s of training",
        "trained on 3,210 images of 16×24 pixels", "A demonstration",
    ):  # fmt: skip
        assert part in text, part
    for part in ("/home/me", str(masked), "None", "{{", "{%", "samples/descent.png"):
        assert part not in text, part


def code_blocks(card):
    return re.findall(r"```python\n(.*?)```", str(card), re.DOTALL)


def test_the_code_of_the_card_runs(masked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30), "red").save("photo.jpg")
    without_package, with_package = code_blocks(model_card(masked, str(masked)))
    assert str(masked) in without_package and str(masked) in with_package
    namespace: dict = {}
    exec(without_package, namespace)
    assert namespace["outputs"].reconstruction.shape == (1, 3, 16, 24)
    exec(with_package, namespace)
    assert torch.isfinite(namespace["result"].energies).all()


def test_the_code_of_a_classifier_runs(classified, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30), "red").save("photo.jpg")
    card = model_card(classified, str(classified))
    assert card.data.pipeline_tag == "image-classification" and card.data.datasets == ["uoft-cs/cifar10"]
    assert card.data.eval_results[0].metric_value == 0.75
    assert "datasets/uoft-cs/cifar10)" in str(card) and "A demonstration" not in str(card)
    without_package, with_package = code_blocks(card)
    namespace: dict = {"pipeline": pipeline}
    exec(without_package, namespace)
    assert namespace["logits"].shape == (1, 2)
    exec(with_package, namespace)
    assert {answer["label"] for answer in namespace["classify"]("photo.jpg")} == {"cat", "ship"}


def test_a_local_folder_is_not_named(tmp_path, small_model):
    results = MASKED | {"eval_mean_color_mse": 0.0}  # images of one color
    text = str(model_card(finish(tmp_path / "run", small_model, results, train_dir="/home/me/secret")))
    assert "a local folder of images" in text and "secret" not in text


def test_what_is_special_about_a_run_is_told(tmp_path, small_model):
    small_model.config.norm_pix_loss, small_model.config.mask_type = True, "scatter_or_block"
    results = MASKED | {"train_first_step": 500}
    text = str(model_card(finish(tmp_path / "run", small_model, results, validation_dir="/home/me/other")))
    assert "hidden, scattered over the image or in blocks." in text
    assert "those of the hidden patches were estimated from the visible ones" in text
    assert "s of training after it was resumed at step 500" in text
    assert "from the same source" not in text


def test_the_results_of_another_program_make_no_card(masked):
    (masked / "all_results.json").write_text(json.dumps({"eval_loss": 1.0}))
    with pytest.raises(UserError, match=r"lacks what this package writes, \w+$"):
        model_card(masked)


def test_the_name_of_the_repository_is_filled_in_once_it_is_known(masked):
    write_card(masked, license="mit")
    address_card(masked, "alice/model")
    card = ModelCard.load(masked / "README.md")
    assert 'from_pretrained("alice/model"' in card.text and card.data.license == "mit"
    edited = str(card).replace("A demonstration", "Edited")
    (masked / "README.md").write_text(edited)
    address_card(masked, "bob/model")
    assert (masked / "README.md").read_text() == edited


@pytest.mark.parametrize(("name", "reason"), [("all_results.json", "it has no all_results.json"), ("config.json", "")])
def test_a_run_that_has_not_finished_has_no_card(masked, name, reason):
    (masked / name).unlink()
    with pytest.raises(UserError, match=f"is not the folder of a finished run: {reason}"):
        model_card(masked)


def test_a_converted_checkpoint_shares_the_metadata(hub, tmp_path):
    convert_checkpoint(ROOT / "tests" / "reference" / "jax_flax_masked_image.msgpack", tmp_path / "converted")
    card = ModelCard.load(tmp_path / "converted" / "README.md")
    validate(hub, card)
    assert card.data.pipeline_tag == "image-feature-extraction" and "masked-image-modeling" in card.data.tags


def test_the_template_is_shown_at_the_top():
    template = ROOT / "energy_transformer" / "hub" / "model_card_template.md"
    assert (ROOT / "model_cards" / "template.md").resolve() == template.resolve()
