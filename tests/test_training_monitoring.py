"""What a run reports, and how its parameters are grouped."""

import json
import time

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import log, train

from energy_transformer import (
    EnergyTransformerConfig,
    EnergyTransformerForImageClassification,
    EnergyTransformerForMaskedImageModeling,
)
from energy_transformer.training.arguments import CommonArguments
from energy_transformer.training.monitoring import StepTimer
from energy_transformer.training.optimization import build_optimizer, build_schedule, layer_depth
from energy_transformer.utils.errors import UserError


def test_the_log_and_the_tracker_tell_the_same(tmp_path):
    words = ["--report_to=tensorboard", "--checkpointing_steps=5", "--logging_steps=2", "--sample_steps=6"]
    train(tmp_path, *words, "--max_train_steps=8")
    train(tmp_path, *words, f"--resume_from_checkpoint={tmp_path / 'checkpoint-5'}")
    lines = log(tmp_path)
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    for line in lines:
        assert line["energy_after"] < line["energy_before"] and line["grad_norm"] > 0
        assert line["step_seconds"] == pytest.approx(line["data_wait_seconds"] + line["compute_seconds"])
    [run] = list((tmp_path / "runs").iterdir())
    events = EventAccumulator(str(run)).Reload()
    for name in ("loss", "learning_rate", "energy_before", "images_per_second"):
        told = {event.step: event.value for event in events.Scalars(name)}
        assert told == pytest.approx({line["step"]: line[name] for line in lines}, rel=1e-5), name
    assert sorted(path.name for path in (tmp_path / "samples").glob("step-*/*")).count("descent.png") == 2
    assert 0 < json.loads((tmp_path / "all_results.json").read_text())["train_data_wait_share"] < 1


def test_a_tracker_that_is_not_installed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="report_to wandb needs a package that is missing: pip install wandb"):
        train(tmp_path, "--report_to=wandb")


def test_gradient_checkpointing_is_the_same_run(tmp_path):
    train(tmp_path / "a", "--gradient_checkpointing")
    train(tmp_path / "b")
    for first, second in zip(log(tmp_path / "a"), log(tmp_path / "b"), strict=True):
        assert first["loss"] == pytest.approx(second["loss"], rel=1e-5)


OPTIONS = {
    "use_cls_token": [True, False],
    "attention_bias": [True, False],
    "hopfield_bias": [True, False],
    "learnable_beta": [True, False],
    "norm_type": ["energy_layer_norm", "layer_norm"],
    "patch_embedding": ["linear", "mlp"],
    "decoder_norm": ["energy_layer_norm", "layer_norm"],
    "hopfield_activation": ["relu", "softmax"],
    "classifier_head": ["linear", "mlp"],
}
NOT_DECAYED = ("bias", "gamma", "delta", "beta", "_token", "position_embeddings", ".bq", ".bk")


@pytest.mark.parametrize(
    "model_class", [EnergyTransformerForMaskedImageModeling, EnergyTransformerForImageClassification]
)
@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in OPTIONS.items() for value in values])
def test_each_parameter_is_in_one_group(model_class, name, value):
    sizes = {"image_size": 8, "patch_size": 4, "hidden_size": 16, "head_dim": 4, "intermediate_size": 8}
    model = model_class(EnergyTransformerConfig(num_hidden_layers=2, **sizes, **{name: value}))
    args = CommonArguments(weight_decay=0.1, learning_rate=1.0, layer_decay=0.5)
    groups = build_optimizer(model, args).param_groups
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(rates) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    matrices = {m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)}
    for full_name, parameter in model.named_parameters():
        rate, decay = rates[id(parameter)]
        depth = {"embeddings": 0, "layers.0": 1, "layers.1": 2}
        expected = next((d for part, d in depth.items() if f".{part}." in full_name), 3)
        assert layer_depth(full_name, 2) == expected and rate == 0.5 ** (3 - expected), full_name
        is_matrix = parameter in matrices or full_name.endswith((".Wq", ".Wk", "hopfield.W"))
        assert decay == (0.1 if is_matrix else 0.0), full_name
        assert not (decay and full_name.endswith(NOT_DECAYED)), full_name


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("cosine", {"min_learning_rate": 2e-4}, [0.0, 5e-4, 1e-3, 6e-4, 2e-4]),
        ("linear", {}, [0.0, 5e-4, 1e-3, 5e-4, 0.0]),
        ("constant_with_warmup", {}, [0.0, 5e-4, 1e-3, 1e-3, 1e-3]),
    ],
)
def test_the_rate_rises_and_falls_as_asked(kind, options, expected):
    args = CommonArguments(learning_rate=1e-3, num_warmup_steps=20, lr_scheduler_type=kind, **options)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    schedule, rates = build_schedule(optimizer, args, total_steps=100), []
    for _ in range(101):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert [rates[step] for step in (0, 10, 20, 60, 100)] == pytest.approx(expected, abs=1e-9)


def test_steps_are_added_up_when_the_device_has_ended_them():
    """A step returns before a GPU has done it: until `settle` the times are not known."""
    timer = StepTimer(torch.device("cpu"))
    for _ in range(3):
        with timer.step(), timer.data():
            time.sleep(0.01)
    assert (timer.steps, timer.seconds) == (3, 0.0)
    timer.settle()
    assert timer.seconds >= timer.data_seconds >= 0.03
    before = timer.seconds
    timer.settle()
    assert timer.seconds == before
