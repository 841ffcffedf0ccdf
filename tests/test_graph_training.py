"""Training of classifiers of graphs and nodes for real: processes, what a run leaves, resumption, mistakes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("torch_geometric")  # the extra `graphs`

from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from sklearn.metrics import f1_score, roc_auc_score
from torch_geometric.data import Data
from training_runs import ENVIRONMENT, ROOT, log, weights
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from energy_transformer.graphs.datasets import IGNORED, split_graphs
from energy_transformer.hub.finished import check_finished
from energy_transformer.training.graph_arguments import GraphClassificationArguments, NodeClassificationArguments
from energy_transformer.training.graph_evaluation import inputs_of
from energy_transformer.training.graph_training import (
    GraphClassificationTraining,
    GraphSamples,
    NodeClassificationTraining,
)
from energy_transformer.training.parsing import parse_arguments
from energy_transformer.utils.errors import UserError

TINY = "hidden_size=16,num_attention_heads=2,head_dim=8,intermediate_size=32"
OF_GRAPHS = ["--config=mutag", "--cpu", "--num_visual_samples=1", "--logging_steps=1", "--max_train_steps=6",
             f"--config_overrides={TINY},num_steps=2,num_position_features=4"]  # fmt: skip
OF_NODES = ["--config=mutag_anomalies", "--cpu", "--num_visual_samples=1", "--logging_steps=1", "--max_train_steps=4",
            "--learning_rate=1e-3", "--max_eval_samples=3",
            f"--config_overrides={TINY},num_steps=[1,1]"]  # fmt: skip
TASKS = {
    "graph": (OF_GRAPHS, GraphClassificationArguments, GraphClassificationTraining),
    "node": (OF_NODES, NodeClassificationArguments, NodeClassificationTraining),
}


def build(task, output_dir, *words):
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    options, arguments, training = TASKS[task]
    return training(parse_arguments([*options, f"--output_dir={output_dir}", *words], None, arguments))


def command(task, output_dir, *words, processes=1):
    config = ROOT / "configuration" / "accelerate" / f"{'multi_cpu' if processes > 1 else 'cpu'}.yaml"
    launch = [Path(sys.executable).with_name("accelerate"), "launch", "--config_file", config]
    script = ROOT / "scripts" / f"train_{task}_classification.py"
    return [*launch, script, *TASKS[task][0], f"--output_dir={output_dir}", *words]


def run(*words, **options):
    done = subprocess.run(
        command(*words, **options), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The results and the folder of a run of each task, in this process."""
    folder = tmp_path_factory.mktemp("runs")
    return {task: (build(task, folder / task).run(), folder / task) for task in TASKS}


@pytest.mark.parametrize("task", ["graph", pytest.param("node", marks=pytest.mark.slow)])
def test_two_processes_give_the_figures_and_weights_of_one(task, undisturbed, tmp_path):
    """Two gloo processes of half the batch: the same signs of the positions, the same loss, the same model."""
    one, folder = undisturbed[task]
    half = "--per_device_train_batch_size=16" if task == "graph" else "--per_device_train_batch_size=2"
    done = run(task, tmp_path / "two", half, processes=2)
    assert done.stdout.count("model:    ") == 1, "one process prints"
    two = json.loads((tmp_path / "two" / "all_results.json").read_text())
    assert two["num_processes"] == 2
    for name, value in one.items():
        if name.startswith("eval_"):  # a rounding may exchange two nodes of a ranking that are nearly level
            tolerance = 1e-2 if name in ("eval_average_precision", "eval_roc_auc") else 1e-4
            assert two[name] == pytest.approx(value, rel=tolerance), name
    for ours, theirs in zip(log(tmp_path / "two"), log(folder), strict=False):
        for name in {"loss", "grad_norm"} & ours.keys() & theirs.keys():
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4), (ours["step"], name)
    if task == "graph":  # of nodes, the scale before a norm has no gradient but rounding, which AdamW makes a step of
        torch.testing.assert_close(weights(tmp_path / "two"), weights(folder), atol=2e-5, rtol=1e-4)


def test_a_killed_run_that_is_resumed_ends_as_the_undisturbed_one(undisturbed, tmp_path):
    """Killed without warning as soon as a state is there; resumed by `latest`."""
    folder = tmp_path / "run"
    words = command("graph", folder, "--checkpointing_steps=2")
    with open(tmp_path / "log", "w") as output:
        started = subprocess.Popen(
            words, cwd=ROOT, env=ENVIRONMENT, stdout=output, stderr=output, start_new_session=True
        )
        end = time.monotonic() + 120
        while not (folder / "checkpoint-2" / "manifest.json").exists():
            assert started.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.02)
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()
    assert not (folder / "model.safetensors").exists(), "it was killed before its end"
    results = build("graph", folder, "--checkpointing_steps=2", "--resume_from_checkpoint=latest").run()
    whole, other = undisturbed["graph"]
    assert results["train_first_step"] >= 2 and results["train_loss"] == whole["train_loss"]
    first, second = weights(folder), weights(other)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_leaves_a_complete_folder(undisturbed):
    for task, (results, folder) in undisturbed.items():
        names = {path.name for path in folder.iterdir()}
        assert names >= {"config.json", "model.safetensors", "README.md", "all_results.json"}
        assert "preprocessor_config.json" not in names
        check_finished(folder)
        picture = Image.open(folder / "samples" / "graph_descent.png")
        picture.load()
        assert min(picture.size) > 200
        card = (folder / "README.md").read_text()
        what = "held-out graphs (MUTAG" if task == "graph" else "held-out nodes (MUTAG with anomalies"
        assert what in card and "pixel" not in card and "photo" not in card
        assert f"{results['eval_accuracy' if task == 'graph' else 'eval_macro_f1']:.4g}" in card
        assert any("graphs_per_second" in line for line in log(folder))


def test_figures_of_graphs_are_those_of_the_saved_model(undisturbed):
    """Recomputed graph by graph; what a graph gets does not depend on its batch."""
    results, folder = undisturbed["graph"]
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert model.config.id2label == {0: "not mutagenic", 1: "mutagenic"}
    held_out = split_graphs("mutag", None, False, 0.15, 0, 4).held_out
    right = [int(model(**inputs_of(graph)).logits.argmax()) == int(graph.y) for graph in held_out]
    assert len(right) == results["eval_samples"] == 29
    assert results["eval_accuracy"] == pytest.approx(sum(right) / 29)
    assert results["eval_majority_accuracy"] == pytest.approx(sum(int(g.y) == 1 for g in held_out) / 29)
    assert results["eval_linear_accuracy"] > results["eval_majority_accuracy"]


def test_figures_of_nodes_are_those_of_the_saved_model(undisturbed):
    results, folder = undisturbed["node"]
    model = AutoModelForTokenClassification.from_pretrained(folder).eval()
    held_out = split_graphs("mutag_anomalies", None, True, 0.3, 0, 0).held_out
    graphs = [held_out[place] for place in np.random.default_rng(0).permutation(len(held_out))[:3]]
    logits = torch.cat([model(**inputs_of(graph)).logits.detach() for graph in graphs]).double()
    labels = torch.cat([graph.y for graph in graphs])
    logits, labels = logits[labels != IGNORED], labels[labels != IGNORED]
    assert results["eval_roc_auc"] == pytest.approx(roc_auc_score(labels, logits[:, 1] - logits[:, 0]), rel=1e-6)
    assert results["eval_macro_f1"] == pytest.approx(f1_score(labels, logits.argmax(1), average="macro"))


def test_the_loss_of_nodes_counts_each_label_alike_and_no_held_out_node(tmp_path):
    """Over all graphs at once it is the weighted mean of torch, over the nodes of training alone."""
    training = build("node", tmp_path, "--per_device_train_batch_size=8")
    batch = next(iter(training.train_loader))
    loss = training.forward(batch, {}).loss
    logits = training.model(**inputs_of(batch)).logits
    known = batch.y != IGNORED
    rates = [1 / float((batch.y == label).sum()) for label in (0, 1)]
    expected = torch.nn.functional.cross_entropy(logits[known], batch.y[known], torch.tensor(rates))
    torch.testing.assert_close(loss, expected)


def test_samples_are_drawn_with_the_seed(tmp_path):
    words = ["--per_device_train_batch_size=4", "--max_train_samples=12", "--max_eval_samples=5"]
    training = build("graph", tmp_path, "--seed=3", *words)
    splits = split_graphs("mutag", None, False, 0.15, 3, 4)
    parts = (training.train_graphs.graphs, splits.train), (training.held_out_graphs.graphs, splits.held_out)
    for (found, whole), count in zip(parts, (12, 5), strict=True):
        drawn = np.random.default_rng(3).permutation(len(whole))[:count]
        assert len(found) == count and all(torch.equal(found[i].x, whole[drawn[i]].x) for i in range(count))


def test_the_fingerprint_of_graphs_is_that_of_their_tensors(tmp_path):
    training, graph = build("graph", tmp_path), split_graphs("mutag", None, False, 0.15, 0, 0).train[0]
    named = training.fingerprint(GraphSamples([Data(**graph.to_dict(), smiles="CC")]))  # as molecules are
    assert named == training.fingerprint(GraphSamples([graph]))
    graph.x = graph.x + 1
    assert named != training.fingerprint(GraphSamples([graph]))


def test_signs_are_drawn_for_each_graph_and_eigenvector_in_training_alone(tmp_path):
    training = build("graph", tmp_path)
    batch = next(iter(training.train_loader))
    draws = training.draw(32, torch.Generator().manual_seed(0))
    assert draws["signs"].shape == (32, 4) and set(draws["signs"].unique().tolist()) == {-1.0, 1.0}
    changed = training.augmented(batch, draws)
    for graph, (own, before) in enumerate(zip(changed.to_data_list(), batch.to_data_list(), strict=True)):
        assert torch.equal(own.positions, before.positions * draws["signs"][graph])
    held_out = next(iter(training.eval_loader))
    expected = torch.cat([graph.positions for graph in training.held_out_graphs.graphs])
    assert torch.equal(held_out.positions, expected)


def test_mistakes_are_one_line(tmp_path):
    mistakes = [
        ("graph", [f"--train_dir={tmp_path}"], "holds no mutag_A.txt: it must hold the TU files of dataset_name mutag"),
        ("graph", [f"--train_dir={tmp_path / 'none'}"], "train_dir: there is no folder .*none"),
        ("graph", ["--max_train_samples=0"], "max_train_samples must be at least 1, got 0"),
        ("node", ["--max_eval_samples=-2"], "max_eval_samples must be at least 1, got -2"),
        ("graph", ["--max_train_samples=1"], "the 1 graphs to train on have one class alone"),
        ("graph", ["--dataset_name=mutag_anomalies"], "has no label of each graph"),
        ("node", ["--dataset_name=mutag"], "has no label of each node"),
        ("graph", ["--label_smoothing=1"], r"label_smoothing must lie in \[0, 1\), got 1.0"),
        ("graph", ["--config=demo"], "--config demo is neither a file nor a recipe"),
        ("graph", [f"--config={ROOT / 'configuration/training/demo.yaml'}"], "is a recipe of masked_image_modeling"),
        ("graph", ["--per_device_train_batch_size=200"], "200 graphs a step .* only 159 training graphs"),
        ("graph", ["--config_overrides=patch_size=4"], "with a field of EnergyTransformerGraphConfig"),
    ]
    for task, words, message in mistakes:
        with pytest.raises(UserError, match=message) as error:
            build(task, tmp_path / "output", *words)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "output").exists(), "nothing was written"
