"""A linear probe standardizes its features, and is saved as an ordinary classifier that does the same."""

import json

import pytest
import torch
from test_image_classification import SCRIPT, build, launch, pretrained, train, weights  # noqa: F401
from test_image_classification import SMALL as SMALL_RUN
from torch import nn
from transformers import AutoModelForImageClassification

from energy_transformer import EnergyTransformerConfig, EnergyTransformerForImageClassification
from energy_transformer.data import normalize
from energy_transformer.data.image_processing import build_image_processor
from energy_transformer.training.linear_probe import (
    StandardizedLinear,
    feature_statistics,
    folded_model,
    standardize_head,
)

SMALL = {"image_size": 8, "patch_size": 4, "hidden_size": 16, "head_dim": 4, "intermediate_size": 8, "num_labels": 3}


def test_it_begins_as_the_layer_that_it_was():
    torch.manual_seed(0)
    linear = nn.Linear(6, 3).double()
    mean, deviation = torch.randn(6).double(), torch.rand(6).double() + 0.1
    x = torch.randn(5, 6).double()
    torch.testing.assert_close(StandardizedLinear(linear, mean, deviation).double()(x), linear(x))


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_the_folded_model_is_the_same_function(head):
    torch.manual_seed(0)
    model = EnergyTransformerForImageClassification(EnergyTransformerConfig(classifier_head=head, **SMALL)).double()
    names = model.state_dict().keys()
    standardize_head(model, torch.randn(16).double(), torch.rand(16).double() + 0.1)
    with torch.no_grad():
        model.classifier[1].weight.normal_()
        pixels = torch.randn(4, 3, 8, 8).double()
        folded = folded_model(model)
        assert folded.state_dict().keys() == names and type(folded.classifier[1]) is nn.Linear
        torch.testing.assert_close(folded(pixels).logits, model(pixels).logits)
    assert isinstance(model.classifier[1], StandardizedLinear), "the model itself is trained on"


def test_the_linear_layer_reads_standardized_features(pretrained, tmp_path):  # noqa: F811
    training = build(tmp_path, f"--model_name_or_path={pretrained}", "--freeze_backbone", "--max_train_samples=300")
    model, images = training.model, training.train_loader.images
    read = []
    hook = model.classifier[1].register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    with torch.no_grad():
        model(normalize(images.__getitems__(list(range(len(images))))["image"], training.processor))
    hook.remove()
    head = model.classifier[1]
    features = (torch.cat(read) - head.mean) / head.deviation
    torch.testing.assert_close(features.mean(0), torch.zeros(features.shape[1]), atol=1e-3, rtol=0)
    torch.testing.assert_close(features.std(0, correction=0), torch.ones(features.shape[1]), atol=1e-3, rtol=0)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"classifier.1.weight", "classifier.1.bias"}


def test_a_feature_that_never_changes_does_no_harm():
    torch.manual_seed(0)
    model = EnergyTransformerForImageClassification(EnergyTransformerConfig(**SMALL))
    nn.init.zeros_(model.classifier[0].weight)

    class Images:
        def __len__(self):
            return 7

        def __getitems__(self, rows):
            return {"image": torch.randint(256, (len(rows), 3, 8, 8), dtype=torch.uint8)}

    statistics = feature_statistics(model, Images(), build_image_processor((8, 8)), torch.device("cpu"))
    standardize_head(model, *statistics)
    with torch.no_grad():
        assert model(torch.randn(2, 3, 8, 8)).logits.isfinite().all()


def test_a_probe_is_saved_as_a_classifier_with_the_figures_that_were_measured(pretrained, tmp_path):  # noqa: F811
    words = [f"--model_name_or_path={pretrained}", "--freeze_backbone", "--checkpointing_steps=4", "--ema_decay=0.5"]
    results = train(tmp_path / "one", *words)
    ordinary = AutoModelForImageClassification.from_pretrained(tmp_path / "one")
    assert weights(tmp_path / "one").keys() == ordinary.state_dict().keys()
    resumed = train(tmp_path / "two", *words, f"--resume_from_checkpoint={tmp_path / 'one' / 'checkpoint-4'}")
    assert resumed["eval_loss"] == results["eval_loss"]
    evaluated = train(
        tmp_path / "three", f"--model_name_or_path={tmp_path / 'one'}", "--max_train_steps=1", "--learning_rate=1e-12"
    )
    assert evaluated["eval_loss"] == pytest.approx(results["eval_loss"], rel=1e-4)
    card = (tmp_path / "one" / "README.md").read_text()
    assert "| `freeze_backbone` | True |" in card and "linear probe" in card


@pytest.mark.parametrize("config", ["multi_cpu", "fsdp"])
def test_several_processes_probe_alike(pretrained, tmp_path, config):  # noqa: F811
    words = [f"--model_name_or_path={pretrained}", "--freeze_backbone"]
    one = train(tmp_path / "one", *words)
    done = launch(
        "--config_file", f"configuration/accelerate/{config}.yaml", SCRIPT, "--cpu", *SMALL_RUN, *words,
        "--per_device_train_batch_size=8", f"--output_dir={tmp_path / 'two'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    two = json.loads((tmp_path / "two" / "all_results.json").read_text())
    assert two["eval_loss"] == pytest.approx(one["eval_loss"], rel=1e-4)
    first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
    torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-3)
