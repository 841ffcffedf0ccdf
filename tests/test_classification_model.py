"""EnergyTransformerForImageClassification: heads, pooling, losses, saving, loading, training."""

import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments

from energy_transformer import (
    EnergyTransformerConfig,
    EnergyTransformerForImageClassification,
    EnergyTransformerForMaskedImageModeling,
)

SMALL = {
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "head_dim": 6,
    "intermediate_size": 20,
    "num_steps": 3,
    "step_size": 0.5,
    "initialization": "scaled",
}


def make(**options):
    torch.manual_seed(0)
    return EnergyTransformerForImageClassification(EnergyTransformerConfig(**SMALL, **options)).eval()


@pytest.fixture
def pixel_values():
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_logits(pixel_values, head, pooling):
    model = make(num_labels=5, classifier_head=head, classifier_pooling=pooling)
    outputs = model(pixel_values, output_hidden_states=True, output_attentions=True, output_energies=True)
    state = outputs.hidden_states[-1]
    pooled = state[:, 0] if pooling == "cls" else state[:, 1:].mean(1)
    expected = torch.nn.functional.layer_norm(pooled, (16,), eps=1e-6)
    layers = [layer for layer in model.classifier if isinstance(layer, torch.nn.Linear)]
    assert len(layers) == (1 if head == "linear" else 2)
    expected = layers[0](expected)
    if head == "mlp":
        expected = layers[1](expected.relu())
    torch.testing.assert_close(outputs.logits, expected)
    assert outputs.loss is None and outputs.energies.shape == (4, 4) and len(outputs.attentions) == 3


def test_pooling_without_a_cls_token(pixel_values):
    model = make(num_labels=5, use_cls_token=False)
    outputs = model(pixel_values, output_hidden_states=True)
    torch.testing.assert_close(outputs.logits, model.classifier(outputs.hidden_states[-1].mean(1)))


def test_the_mean_leaves_padding_out(pixel_values):
    model = make(num_labels=5, classifier_pooling="mean")
    mask = torch.ones(4, 17, dtype=torch.bool)
    mask[:, 9:] = False
    outputs = model(pixel_values, attention_mask=mask, output_hidden_states=True)
    expected = outputs.hidden_states[-1][:, 1:9].mean(1)
    torch.testing.assert_close(model.energy_transformer._pool(outputs.hidden_states[-1], mask, 1), expected)
    torch.testing.assert_close(
        model.energy_transformer._pool(outputs.hidden_states[-1].masked_fill(~mask[..., None], torch.nan), mask, 1),
        expected,
    )
    torch.testing.assert_close(outputs.logits, model.classifier(expected))
    pairs = mask[:, None] & mask[..., None]
    outputs = model(pixel_values, attention_mask=pairs, output_hidden_states=True)
    torch.testing.assert_close(outputs.logits, model.classifier(outputs.hidden_states[-1][:, 1:].mean(1)))


LOSSES = {
    "single label": ({"num_labels": 5}, torch.tensor([0, 4, 2, 2]), torch.nn.functional.cross_entropy),
    "regression": ({"num_labels": 1}, torch.randn(4), lambda x, y: (x.squeeze(-1) - y).square().mean()),
    "several labels": (
        {"num_labels": 5, "problem_type": "multi_label_classification"},
        (torch.rand(4, 5) > 0.5).float(),
        torch.nn.functional.binary_cross_entropy_with_logits,
    ),
    "smoothed": (
        {"num_labels": 5, "label_smoothing": 0.1},
        torch.tensor([0, 4, 2, 2]),
        lambda x, y: -(x.log_softmax(-1) * (0.9 * torch.nn.functional.one_hot(y, 5) + 0.02)).sum(-1).mean(),
    ),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_losses(pixel_values, kind):
    options, labels, loss = LOSSES[kind]
    outputs = make(**options)(pixel_values, labels=labels)
    torch.testing.assert_close(outputs.loss, loss(outputs.logits, labels))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_over_accumulated_batches(pixel_values, smoothing):
    """`Trainer` gives the number of labels of all accumulated batches; their losses must add up to the mean."""
    model = make(num_labels=5, label_smoothing=smoothing)
    labels = torch.tensor([0, 4, 2, 2])
    whole = model(pixel_values, labels=labels).loss
    parts = [model(pixel_values[i : i + 1], labels=labels[i : i + 1], num_items_in_batch=4).loss for i in range(4)]
    torch.testing.assert_close(sum(parts), whole)


def test_smoothing_needs_one_integer_label(pixel_values):
    with pytest.raises(ValueError, match="label_smoothing needs one integer label"):
        make(num_labels=5, label_smoothing=0.1)(pixel_values, labels=torch.rand(4, 5))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"classifier_pooling": "cls", "use_cls_token": False}, "classifier_pooling='cls' needs use_cls_token=True"),
        ({"label_smoothing": 1.0}, r"label_smoothing must lie in \[0, 1\), got 1.0"),
        ({"label_smoothing": 0.1, "problem_type": "regression"}, "label_smoothing needs problem_type"),
        ({"classifier_head": "conv"}, "classifier_head"),
    ],
)
def test_impossible_configurations_are_refused(options, message):
    with pytest.raises(Exception, match=message):
        EnergyTransformerConfig(**SMALL, **options)


def test_saving_and_loading(pixel_values, tmp_path):
    labels = {"id2label": {0: "cat", 1: "dog", 2: "owl"}, "label2id": {"cat": 0, "dog": 1, "owl": 2}}
    model = make(classifier_head="mlp", **labels)
    assert model.num_labels == 3
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is EnergyTransformerForImageClassification and loaded.config.id2label[1] == "dog"
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.eval()(pixel_values).logits.equal(model(pixel_values).logits)


def test_the_checkpoint_carries_its_code(pixel_values, tmp_path):
    """It loads, with `trust_remote_code`, where the package cannot be imported."""
    model = make(num_labels=5, classifier_head="mlp")
    model.save_pretrained(tmp_path / "model")
    torch.save((pixel_values, model(pixel_values).logits), tmp_path / "expected.pt")
    program = f"""
import sys
sys.modules["energy_transformer"] = None
import torch
from transformers import AutoModelForImageClassification
pixel_values, expected = torch.load({str(tmp_path / "expected.pt")!r})
model = AutoModelForImageClassification.from_pretrained({str(tmp_path / "model")!r}, trust_remote_code=True)
assert torch.equal(model.eval()(pixel_values).logits, expected)
"""
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_fine_tuning_starts_from_a_masked_image_checkpoint(tmp_path):
    pretrained = EnergyTransformerForMaskedImageModeling(EnergyTransformerConfig(**SMALL))
    pretrained.save_pretrained(tmp_path)
    model, info = EnergyTransformerForImageClassification.from_pretrained(
        tmp_path, num_labels=7, output_loading_info=True
    )
    assert all(key.startswith("classifier.") for key in info["missing_keys"]) and info["missing_keys"]
    for name, value in model.energy_transformer.state_dict().items():
        assert value.equal(pretrained.energy_transformer.state_dict()[name]), name
    assert model.config.auto_map["AutoModelForImageClassification"].endswith("ForImageClassification")


def test_all_parameters_take_part(pixel_values):
    model = make(num_labels=5, classifier_head="mlp")
    model(pixel_values, labels=torch.tensor([0, 4, 2, 2])).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_half_precision(pixel_values):
    model = make(num_labels=5, classifier_pooling="mean").bfloat16()
    outputs = model(pixel_values.bfloat16(), labels=torch.tensor([0, 4, 2, 2]))
    assert outputs.logits.dtype == torch.bfloat16 and outputs.loss.dtype == torch.float32
    outputs.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_trainer_learns_to_tell_bright_from_dark(tmp_path):
    torch.manual_seed(0)
    labels = torch.arange(64) % 2
    images = torch.randn(64, 3, 16, 16) * 0.5 + (2 * labels - 1)[:, None, None, None]
    data = [{"pixel_values": image, "labels": int(label)} for image, label in zip(images, labels, strict=True)]
    model = make(num_labels=2)
    arguments = TrainingArguments(
        output_dir=tmp_path,
        max_steps=30,
        learning_rate=1e-2,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.1 < before
