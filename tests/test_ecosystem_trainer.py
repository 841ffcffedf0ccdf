"""transformers' Trainer and pipelines on the demo photographs."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    Trainer,
    TrainingArguments,
    pipeline,
)

from energy_transformer import EnergyTransformerConfig, EnergyTransformerForMaskedImageModeling
from energy_transformer.data.demo import load_demo_dataset, photograph
from energy_transformer.data.image_processing import build_image_processor, load_image_processor

PROCESSOR = build_image_processor((32, 32))


@pytest.fixture(scope="module")
def crops():
    """Splits of {"pixel_values", "labels"}, made as they are read."""

    def prepare(rows):
        return {**PROCESSOR(rows["image"], return_tensors="pt"), "labels": rows["label"]}

    splits = load_demo_dataset()
    return {
        name: splits[name].select(range(count)).with_transform(prepare) for name, count in (("train", 64), ("test", 32))
    }


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    config = EnergyTransformerConfig(
        image_size=32,
        patch_size=4,
        hidden_size=32,
        num_attention_heads=2,
        head_dim=16,
        intermediate_size=64,
        num_steps=2,
        step_size=1.0,
        initialization="scaled",
    )
    EnergyTransformerForMaskedImageModeling(config).save_pretrained(tmp_path / "checkpoint")
    PROCESSOR.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def arguments(folder, **options):
    return TrainingArguments(
        str(folder),
        per_device_train_batch_size=8,
        per_device_eval_batch_size=20,
        learning_rate=3e-3,
        logging_steps=1,
        report_to=[],
        remove_unused_columns=False,
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )


def without_labels(rows):
    return {"pixel_values": torch.stack([torch.as_tensor(row["pixel_values"]) for row in rows])}


def masked_image_trainer(checkpoint, crops, folder, **options):
    """No mask is given: in training the model draws them, in evaluation they are fixed. As for ViTMAE, the name of the
    images is that of the labels, so that `evaluate` finds the loss."""
    return Trainer(
        AutoModelForMaskedImageModeling.from_pretrained(checkpoint),
        arguments(folder, label_names=["pixel_values"], **options),
        train_dataset=crops["train"],
        eval_dataset=crops["test"],
        data_collator=without_labels,
        processing_class=PROCESSOR,
    )


def losses(trainer):
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def test_masked_image_modeling(checkpoint, crops, tmp_path):
    trainer = masked_image_trainer(checkpoint, crops, tmp_path / "run", max_steps=24, save_steps=12)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    assert after < 0.8 * before and trainer.evaluate()["eval_loss"] == after
    trainer.save_model(tmp_path / "final")
    loaded = AutoModelForMaskedImageModeling.from_pretrained(tmp_path / "final")
    for (name, saved), value in zip(trainer.model.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(saved, value), name
    assert load_image_processor(str(tmp_path / "final")).size == PROCESSOR.size

    resumed = masked_image_trainer(checkpoint, crops, tmp_path / "resumed", max_steps=24, save_steps=12)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-12"))
    assert losses(resumed) == losses(trainer)
    for (name, value), expected in zip(resumed.model.named_parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(value, expected), f"{name} of a resumed run is not that of the unbroken one"


def test_masked_image_modeling_with_checkpointing_accumulation_and_predictions(checkpoint, crops, tmp_path):
    trainer = masked_image_trainer(
        checkpoint, crops, tmp_path, max_steps=4, gradient_accumulation_steps=2, gradient_checkpointing=True
    )
    trainer.compute_metrics = lambda result: {
        "shown": len(result.predictions[0]),
        "hidden": result.predictions[1].mean(),
    }
    trainer.args.prediction_loss_only = False
    trainer.train()
    found = trainer.evaluate()
    assert found["eval_shown"] == 32 and found["eval_hidden"] == pytest.approx(100 / 196, abs=0.01)


def accuracy(result):
    return {"accuracy": float((result.predictions.argmax(-1) == result.label_ids).mean())}


def classification_trainer(checkpoint, crops, folder):
    names = load_demo_dataset()["train"].features["label"].names
    model = AutoModelForImageClassification.from_pretrained(
        checkpoint,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    return Trainer(
        model,
        arguments(folder, max_steps=40, save_steps=20),
        train_dataset=crops["train"],
        eval_dataset=crops["test"],
        compute_metrics=accuracy,
        processing_class=PROCESSOR,
    )


def test_classification_and_its_pipeline(checkpoint, crops, tmp_path):
    torch.manual_seed(0)
    trainer = classification_trainer(checkpoint, crops, tmp_path / "run")
    before = trainer.evaluate(crops["train"])
    trainer.train()
    after = trainer.evaluate(crops["train"])
    assert after["eval_loss"] < 0.8 * before["eval_loss"] and after["eval_accuracy"] > before["eval_accuracy"]
    trainer.save_model(tmp_path / "final")
    resumed = classification_trainer(checkpoint, crops, tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-20"))
    assert losses(resumed) == losses(trainer)

    picture = Image.fromarray(photograph("coffee.png"))  # 600 by 400 pixels
    found = pipeline("image-classification", model=str(tmp_path / "final"))(picture, top_k=8)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "final")
    with torch.no_grad():
        scores = model(**PROCESSOR(picture, return_tensors="pt")).logits.softmax(-1)[0]
    expected = {model.config.id2label[index]: score.item() for index, score in enumerate(scores)}
    assert {row["label"]: row["score"] for row in found} == pytest.approx(expected, abs=1e-6)
    assert found[0]["label"] == max(expected, key=expected.get)


def test_features_of_a_masked_image_checkpoint(checkpoint):
    picture = Image.fromarray(photograph("coffee.png"))
    model = AutoModel.from_pretrained(checkpoint)
    with torch.no_grad():
        expected = model(**PROCESSOR(picture, return_tensors="pt"))
    extract = pipeline("image-feature-extraction", model=str(checkpoint))
    np.testing.assert_allclose(extract(picture), expected.last_hidden_state.numpy(), atol=1e-6)
    np.testing.assert_allclose(extract(picture, pool=True), expected.pooler_output.numpy(), atol=1e-6)
