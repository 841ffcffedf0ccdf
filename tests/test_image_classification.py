"""Training of classifiers for real: processes, the folder that a run leaves, fine-tuning, resumption, mistakes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, ViTMAEConfig, pipeline

from energy_transformer import EnergyTransformerConfig, EnergyTransformerForMaskedImageModeling
from energy_transformer.data import normalize
from energy_transformer.data.demo import PHOTOGRAPHS, load_demo_dataset, photograph
from energy_transformer.data.image_processing import load_image_processor
from energy_transformer.training.image_classification import ImageClassificationTraining, load_with_new_head
from energy_transformer.training.image_classification_arguments import ImageClassificationArguments
from energy_transformer.training.parsing import parse_arguments
from energy_transformer.utils.errors import UserError

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "train_image_classification.py"
DEMO = ROOT / "configuration" / "training" / "demo_classification.yaml"
SMALL = [
    "--max_train_samples=64", "--max_eval_samples=41", "--per_device_train_batch_size=16",
    "--per_device_eval_batch_size=16", "--max_train_steps=6", "--num_visual_samples=3",
]  # fmt: skip
MIXED = ["--mixup_alpha=0.8", "--cutmix_alpha=1.0", "--label_smoothing=0.1"]


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def build(output_dir, *words):
    AcceleratorState._reset_state(reset_partial_state=True)
    args = parse_arguments([*SMALL, f"--output_dir={output_dir}", *words], DEMO, ImageClassificationArguments)
    return ImageClassificationTraining(args)


def train(output_dir, *words):
    return build(output_dir, *words).run()


def launch(*words):
    command = [Path(sys.executable).with_name("accelerate"), "launch", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of one process as a user starts it, and what it printed."""
    folder = tmp_path_factory.mktemp("run") / "output"
    config = "configuration/accelerate/cpu.yaml"
    done = launch("--config_file", config, SCRIPT, *SMALL, "--eval_steps=3", f"--output_dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A masked-image checkpoint of the recipe's model."""
    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(3)
    config = EnergyTransformerConfig(**yaml.safe_load(DEMO.read_text())["config_overrides"])
    EnergyTransformerForMaskedImageModeling(config).save_pretrained(folder)
    return folder


def test_leaves_a_complete_folder(finished):
    folder, done = finished
    assert f"model:    {folder}\n" in done.stdout and "step 3: held-out accuracy" in done.stdout
    for name in ("model  ", "majority label", "linear classifier of pixels"):
        assert name in done.stdout
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.json", "model.safetensors", "preprocessor_config.json", "all_results.json", "samples"}
    assert {path.name for path in (folder / "samples").iterdir()} == {"confusion_matrix.png", "predictions.png"}
    for path in (folder / "samples").iterdir():
        picture = Image.open(path)
        picture.load()
        assert min(picture.size) > 200
    results = json.loads((folder / "all_results.json").read_text())
    assert results["eval_samples"] == 41 and results["train_steps"] == 6
    assert results["arguments"]["label_smoothing"] == 0.1


def test_figures_are_those_of_the_saved_model(finished):
    """Accuracy, per label and over all, recomputed image by image; and the majority of the training labels."""
    folder, _ = finished
    results = json.loads((folder / "all_results.json").read_text())
    model = AutoModelForImageClassification.from_pretrained(folder)
    assert list(model.config.id2label.values()) == list(PHOTOGRAPHS) and model.config.label2id["rocket"] == 7
    demo = load_demo_dataset()
    held_out = demo["test"].shuffle(seed=0).select(range(41))
    train_labels = demo["train"].shuffle(seed=0).select(range(64))["label"]
    pixels = torch.stack([torch.from_numpy(photo_array(row["image"])) for row in held_out])
    with torch.no_grad():
        predicted = model(normalize(pixels, load_image_processor(folder))).logits.argmax(-1).tolist()
    true = list(held_out["label"])
    right = [guess == label for guess, label in zip(predicted, true, strict=True)]
    assert results["eval_accuracy"] == pytest.approx(sum(right) / 41)
    for label, name in enumerate(PHOTOGRAPHS):
        own = [r for r, t in zip(right, true, strict=True) if t == label]
        assert results.get(f"eval_accuracy_{name}") == (pytest.approx(sum(own) / len(own)) if own else None)
    majority = max(set(train_labels), key=list(train_labels).count)
    assert results["eval_majority_accuracy"] == pytest.approx(true.count(majority) / 41)
    assert results["eval_majority_accuracy"] < results["eval_pixel_probe_accuracy"] <= 1


def photo_array(image):
    return np.asarray(image).transpose(2, 0, 1).copy()


def test_the_pipeline_names_the_labels(finished):
    folder, _ = finished
    classify = pipeline("image-classification", model=str(folder), image_processor=load_image_processor(folder))
    answers = classify(Image.fromarray(photograph("rocket.jpg")[:64, :64]), top_k=8)
    assert {answer["label"] for answer in answers} == set(PHOTOGRAPHS)
    assert sum(answer["score"] for answer in answers) == pytest.approx(1, abs=1e-4)


def test_two_processes_give_the_accuracy_and_weights_of_one(tmp_path):
    """Two gloo processes of half the batch, with mixing: the same model to rounding, so the same accuracy."""
    done = launch(
        "--config_file", "configuration/accelerate/multi_cpu.yaml", SCRIPT, "--cpu", *SMALL, *MIXED,
        "--per_device_train_batch_size=8", f"--output_dir={tmp_path / 'two'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("model:    ") == 1, "one process prints"
    two = json.loads((tmp_path / "two" / "all_results.json").read_text())
    one = train(tmp_path / "one", *MIXED)
    assert two["num_processes"] == 2
    for name, value in one.items():
        if name.startswith("eval_"):
            assert two[name] == pytest.approx(value, rel=1e-4), name
    torch.testing.assert_close(weights(tmp_path / "two"), weights(tmp_path / "one"), atol=2e-5, rtol=1e-4)


def test_a_resumed_run_ends_where_the_unbroken_one_does(tmp_path):
    options = [*MIXED, "--max_train_steps=7", "--checkpointing_steps=5"]
    whole = train(tmp_path / "whole", *options)
    resumed = train(tmp_path / "resumed", *options, f"--resume_from_checkpoint={tmp_path / 'whole' / 'checkpoint-5'}")
    assert resumed["train_loss"] == whole["train_loss"] and resumed["eval_accuracy"] == whole["eval_accuracy"]
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "resumed")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_best_state_is_the_most_accurate_one(tmp_path):
    """Pictures on the way, before the first evaluation too; the end has the figures of the best saved state."""
    words = ["--max_train_steps=12", "--learning_rate=5e-3", "--checkpointing_steps=3", "--eval_steps=3"]
    results = train(tmp_path, *words, "--sample_steps=2", "--load_best_model_at_end")
    lines = [json.loads(line) for line in next(tmp_path.glob("*.jsonl")).read_text().splitlines()]
    accuracies = [line["eval_accuracy"] for line in lines if "eval_accuracy" in line]
    assert len(accuracies) >= 3 and results["eval_accuracy"] >= max(accuracies)
    assert (tmp_path / "samples" / "step-2" / "predictions.png").is_file()
    assert not (tmp_path / "samples" / "step-2" / "confusion_matrix.png").exists(), "nothing evaluated yet"
    assert (tmp_path / "samples" / "step-4" / "confusion_matrix.png").is_file()


def test_learns_to_tell_the_photographs_apart(tmp_path):
    results = train(tmp_path, "--max_train_samples=800", "--max_train_steps=60", "--learning_rate=5e-3")
    assert results["eval_accuracy"] > results["eval_majority_accuracy"] + 0.2


def test_only_the_head_is_new(pretrained, tmp_path, capfd):
    training = build(tmp_path / "output", f"--model_name_or_path={pretrained}")
    assert f"the head (8 labels) is new, everything else is that of {pretrained}" in capfd.readouterr().out
    loaded, given = training.model.state_dict(), weights(pretrained)
    backbone = [name for name in loaded if name.startswith("energy_transformer.")]
    assert backbone and all(torch.equal(loaded[name], given[name]) for name in backbone)
    assert {name for name in loaded if name not in given} == {
        f"classifier.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")
    }


def test_a_frozen_backbone_stays_as_it_was(pretrained, tmp_path):
    train(tmp_path, f"--model_name_or_path={pretrained}", "--freeze_backbone")
    before, after = weights(pretrained), weights(tmp_path)
    backbone = [name for name in after if name.startswith("energy_transformer.")]
    assert backbone and all(torch.equal(before[name], after[name]) for name in backbone)
    assert after["classifier.1.bias"].abs().max() > 0, "the head moved from its zeros"


def test_a_classifier_keeps_its_head_for_the_same_labels_and_loses_it_for_others(finished):
    folder, _ = finished
    config = AutoModelForImageClassification.from_pretrained(folder).config
    model, new = load_with_new_head(str(folder), config)
    assert new == [] and torch.equal(model.classifier[1].weight, weights(folder)["classifier.1.weight"])
    config.id2label = {0: "a", 1: "b"}
    _, new = load_with_new_head(str(folder), config)
    assert new == ["classifier.1.bias", "classifier.1.weight"]


def test_the_loss_is_that_of_the_model(tmp_path):
    """Without mixing it is the model's own with label smoothing; with it, cross entropy with the mixed labels."""
    training = build(tmp_path, *MIXED)
    batch = next(iter(training.train_loader))
    batch["label"] = batch["label"].clone()
    draws = training.draw(16, torch.Generator().manual_seed(0))
    mixed = training.forward(batch, draws)
    pixel_values = normalize(batch["image"], training.processor)
    values, targets = training.mixer(pixel_values, batch["label"], 8, draws["mix"])
    log_probabilities = training.model(values).logits.log_softmax(-1)
    smooth = 0.9 * targets + 0.1 / 8
    torch.testing.assert_close(mixed.loss, -(smooth * log_probabilities).sum(-1).mean())
    training.mixer = None
    own = training.model(pixel_values, labels=batch["label"]).loss
    torch.testing.assert_close(training.forward(batch, draws).loss, own)


def test_a_folder_of_labeled_images(tmp_path):
    for name, file in (("cup", "coffee.png"), ("rocket", "rocket.jpg")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(12):
            crop = photograph(file)[index * 20 : index * 20 + 40, 100:140]
            Image.fromarray(crop).save(tmp_path / "images" / name / f"{index}.png")
    words = [f"--train_dir={tmp_path / 'images'}", "--per_device_train_batch_size=4", "--train_val_split=0.25"]
    results = train(tmp_path / "output", *words)
    assert results["eval_samples"] == 6
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "output")
    assert model.config.id2label == {0: "cup", 1: "rocket"}


def write_parquet(path, labels, feature):
    """An image of its own shade for each label."""
    rows = [
        {"image": datasets.Image().encode_example(Image.new("RGB", (32, 32), (number * 6 % 256, label % 256, 90))),
         "label": label}
        for number, label in enumerate(labels)
    ]  # fmt: skip
    features = datasets.Features({"image": datasets.Image(), "label": feature})
    datasets.Dataset.from_list(rows, features).to_parquet(path)
    return path


def test_a_stream_of_labeled_images(tmp_path):
    """With a column of names, and with one of numbers that leaves some out; resumed, it goes on as it would have."""
    for name, feature, ids in (
        ("names", datasets.ClassLabel(names=["a", "b"]), (0, 1)),
        ("numbers", datasets.Value("int64"), (1003, 20755)),
    ):
        path = write_parquet(tmp_path / f"{name}.parquet", [ids[number % 2] for number in range(40)], feature)
        words = [f"--train_dir={path}", f"--validation_dir={path}", "--streaming", "--max_eval_samples=20",
                 "--label_column_name=label", "--shuffle_buffer_size=10",
                 "--per_device_train_batch_size=8"]  # fmt: skip
        whole = train(tmp_path / name, *words, "--checkpointing_steps=3")
        assert whole["eval_majority_accuracy"] == 0.5 and "eval_pixel_probe_accuracy" not in whole
        expected = {0: "a", 1: "b"} if name == "names" else {0: "1003", 1: "20755"}
        assert AutoModelForImageClassification.from_pretrained(tmp_path / name).config.id2label == expected
    resume = f"--resume_from_checkpoint={tmp_path / 'numbers' / 'checkpoint-3'}"
    resumed = train(tmp_path / "resumed", *words, resume)
    assert resumed["train_loss"] == whole["train_loss"]


MEMORY = """
import resource, sys
from energy_transformer.commands.train import image_classification as main
main(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_many_classes_take_the_memory_of_their_weights(tmp_path):
    """20,000 labels of which two occur: a matrix of all took 22 GB."""
    count = 20_000
    feature = datasets.ClassLabel(names=[f"label {number}" for number in range(count)])
    path = write_parquet(tmp_path / "data.parquet", [(0, count - 1)[number % 2] for number in range(40)], feature)
    words = [f"--train_dir={path}", *SMALL, "--max_train_steps=2", "--per_device_train_batch_size=8", "--cpu",
             f"--output_dir={tmp_path / 'output'}", f"--config={DEMO}"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEMORY, *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 2500
    assert (tmp_path / "output" / "samples" / "confusion_matrix.png").is_file()


def folder_without_labels(folder):
    folder.mkdir()
    for index in range(4):
        Image.fromarray(photograph("coffee.png")[: 40 + index, :40]).save(folder / f"{index}.png")


def test_mistakes_are_one_line(tmp_path, pretrained):
    folder_without_labels(tmp_path / "images")
    ViTMAEConfig(image_size=32, patch_size=4).save_pretrained(tmp_path / "vit")
    foreign = tmp_path / "foreign"
    EnergyTransformerForMaskedImageModeling.from_pretrained(pretrained).save_pretrained(foreign)
    tensors = {name.replace("hopfield", "other"): tensor for name, tensor in weights(foreign).items()}
    save_file(tensors, foreign / "model.safetensors", metadata={"format": "pt"})
    mistakes = [
        ([f"--train_dir={tmp_path / 'images'}"], "no column with labels"),
        (["--label_column_name=lable"], "there is no column 'lable'"),
        (["--freeze_backbone"], "freeze_backbone needs model_name_or_path"),
        (["--mixup_alpha=1", "--per_device_train_batch_size=15"], "an even per_device_train_batch_size, got 15"),
        (["--cutmix_alpha=-1"], "cutmix_alpha must not be negative, got -1.0"),
        (["--label_smoothing=1"], r"label_smoothing must lie in \[0, 1\), got 1.0"),
        ([f"--model_name_or_path={tmp_path / 'vit'}"], "is no Energy Transformer: vit_mae"),
        ([f"--model_name_or_path={foreign}"], "does not fit the model: it has no energy_transformer.layers.0.hopfield"),
        ([f"--model_name_or_path={pretrained}", "--config_overrides=hidden_size=32"], "has another shape of energy_tr"),
    ]
    for words, message in mistakes:
        with pytest.raises(UserError, match=message) as error:
            train(tmp_path / "output", *words)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "output").exists(), "nothing was written"


def test_the_script_prints_a_mistake_on_one_line(tmp_path):
    command = [sys.executable, SCRIPT, "--label_column_name=lable", f"--output_dir={tmp_path / 'output'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: label_column_name: there is no column 'lable'")
