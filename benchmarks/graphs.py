"""How well an Energy Transformer classifies graphs, beside message passing of its size and simpler answers.

python benchmarks/graphs.py --task mutag [--models "energy transformer"] [--seeds 3]

Stratified 10-fold cross-validation, for each seed with other folds and initial weights. All networks have the same
batches, optimizer and schedule, and a fixed number of epochs: the last weights are tested, and no test fold is looked
at before. The options of `RECIPES` were chosen with `--choose`: there, a ninth of the training folds validates, and the
folds are those of another seed. The graphs of a data set are few, so the graphs that validated then are in test folds
now; a choice between a handful of options learns little from that, but not nothing. Some options of the energy
transformer's first recipe came from halves of the whole data set, so they have seen the test folds, and more of its
options were tried than of GIN's: the comparison favors it a little.

A run is a file that is written after each fold, and goes on where it stopped.
"""

import argparse
import functools
import hashlib
import json
import statistics
import time
from pathlib import Path
from typing import Any

import graph_contestants
import numpy as np
import torch
from graph_report import write_report
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from transformers import get_cosine_schedule_with_warmup

from energy_transformer.graphs.datasets import load_graphs, with_positions
from energy_transformer.graphs.molecules import load_b3db
from energy_transformer.training.graph_evaluation import sums_of_graph
from energy_transformer.training.optimization import is_decayed
from energy_transformer.utils.command_line import OneLineErrors, run_script
from energy_transformer.utils.files import write_json

RESULTS = Path(__file__).parent / "results" / "graphs"
SELECTION_SEED = 100
FOLDS = 10
NETWORKS = ("energy transformer", "GIN")
MODELS = (*NETWORKS, "linear", "majority")
_ENERGY = {
    "hidden_size": 64, "num_attention_heads": 4, "head_dim": 16, "intermediate_size": 256, "num_hidden_layers": 1,
    "num_steps": 4, "step_size": 0.5, "initialization": "paper", "hopfield_initializer_range": 0.125,
    "num_position_features": 8, "learnable_beta": True,
}  # fmt: skip
_TRAINING = {"epochs": 60, "batch": 32, "rate": 5e-3, "weight_decay": 0.05}
# of each task and network: the options of the model and of its training
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "mutag": {
        "energy transformer": {"model": _ENERGY, **_TRAINING},
        "GIN": {"model": {"width": 64, "layers": 3, "dropout": 0.5}, **_TRAINING},
    },
    # not chosen: those of mutag
    "cuneiform": {
        "energy transformer": {"model": _ENERGY, **_TRAINING},
        "GIN": {"model": {"width": 64, "layers": 3, "dropout": 0.5}, **_TRAINING},
    },
    "b3db": {
        "energy transformer": {"model": _ENERGY, **_TRAINING, "epochs": 10, "batch": 64},
        "GIN": {"model": {"width": 64, "layers": 3, "dropout": 0.5}, **_TRAINING, "epochs": 10, "batch": 64},
    },
}


@functools.cache
def load(task: str, folder: str | None) -> list[Data]:
    """Graphs whose columns that are no categories have mean 0 and variance 1, over all graphs alike."""
    if task == "b3db":
        return load_b3db()
    graphs = load_graphs("mutag") if task == "mutag" else load_graphs("Cuneiform", folder)
    for name in ("x", "edge_attr"):
        values = torch.cat([graph[name] for graph in graphs])
        numbers = ((values != 0) & (values != 1)).any(0)
        for graph in graphs:
            scaled = (graph[name] - values.mean(0)) / values.std(0)
            graph[name] = torch.where(numbers, scaled, graph[name])
    return graphs


def train(model: torch.nn.Module, graphs: list[Data], recipe: dict, seed: int) -> float:
    """Train in place; the processor's seconds that it took."""
    torch.manual_seed(seed)
    named = list(model.named_parameters())
    groups = [
        {"params": [p for name, p in named if is_decayed(name, p)], "weight_decay": recipe["weight_decay"]},
        {"params": [p for name, p in named if not is_decayed(name, p)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe["rate"])
    loader = DataLoader(graphs, recipe["batch"], shuffle=True, drop_last=True)
    steps = recipe["epochs"] * len(loader)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 10, steps)
    model.train()
    start = time.process_time()
    for _ in range(recipe["epochs"]):
        for batch in loader:
            loss = F.cross_entropy(model(batch), batch.y, label_smoothing=recipe.get("label_smoothing", 0.0))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return time.process_time() - start


@torch.no_grad()
def accuracy(model: torch.nn.Module, graphs: list[Data]) -> float:
    model.eval()
    right = [model(batch).argmax(1) == batch.y for batch in DataLoader(graphs, 256)]
    return float(torch.cat(right).double().mean())


def of_network(name: str, recipe: dict, train_graphs: list[Data], test_graphs: list[Data], seed: int) -> dict:
    labels = 1 + max(int(graph.y) for graph in [*train_graphs, *test_graphs])
    first = train_graphs[0]
    edges = first.num_edge_features
    model = graph_contestants.build(name, recipe["model"], first.num_node_features, edges, labels, seed)
    seconds = train(model, train_graphs, recipe, seed)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    found = {"accuracy": accuracy(model, test_graphs), "train_accuracy": accuracy(model, train_graphs)}
    return {**found, "seconds": seconds, "parameters": parameters}


def of_baseline(name: str, train_graphs: list[Data], test_graphs: list[Data]) -> dict:
    labels, answers = (np.array([int(graph.y) for graph in graphs]) for graphs in (train_graphs, test_graphs))
    if name == "majority":
        return {"accuracy": float((answers == np.bincount(labels).argmax()).mean()), "parameters": 0}
    inputs, others = (torch.cat([sums_of_graph(g) for g in graphs]).numpy() for graphs in (train_graphs, test_graphs))
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=10_000)).fit(inputs, labels)
    weights = linear[-1].coef_.size + linear[-1].intercept_.size
    return {"accuracy": float(linear.score(others, answers)), "parameters": int(weights)}


def one_run(file: Path, task: str, name: str, recipe: dict, graphs: list[Data], seed: int, choose: bool, folds: int):
    """The first `folds` of the ten folds of a seed, each of which is written down when it is done."""
    found = {"task": task, "model": name, "seed": seed, "part": "validation" if choose else "test", "recipe": recipe}
    found |= {"torch": torch.__version__, "folds": []}
    if file.exists():
        found = json.loads(file.read_text())
        if found["recipe"] != recipe:
            raise SystemExit(f"{file} was made with another recipe: delete it, or name another --output_dir")
    labels = np.array([int(graph.y) for graph in graphs])
    parts = StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(labels, labels)
    for number, (own, test) in enumerate(parts):
        if number < len(found["folds"]) or number >= folds:
            continue
        if choose:
            own, test = train_test_split(own, test_size=1 / 9, random_state=seed, stratify=labels[own])
        train_graphs, test_graphs = ([graphs[place] for place in places] for places in (own, test))
        if name in NETWORKS:
            result = of_network(name, recipe, train_graphs, test_graphs, seed * FOLDS + number)
        else:
            result = of_baseline(name, train_graphs, test_graphs)
        found["folds"].append({**result, "train": len(own), "test": len(test)})
        write_json(file, found)
    mean = statistics.fmean(fold["accuracy"] for fold in found["folds"])
    print(f"{task}, {name}, seed {seed}: {found['part']} {mean:.4f} over {len(found['folds'])} folds", flush=True)


def main(argv: list[str]) -> None:
    parser = OneLineErrors(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", nargs="+", default=list(RECIPES), choices=RECIPES, help="Default: all.")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS, help="Default: all.")
    parser.add_argument("--seeds", type=int, default=3, help="Of folds and initial weights (default: 3).")
    parser.add_argument("--folds", type=int, default=FOLDS, help="So many of the ten folds of each seed.")
    parser.add_argument("--data_dir", help="The folder with the TU files of Cuneiform; downloaded when not given.")
    parser.add_argument("--choose", metavar="JSON", help="Options in place of the recipe's; validates, tests nothing.")
    parser.add_argument("--output_dir", type=Path, default=RESULTS, help="Of the runs; the page lies beside it.")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    for task in args.task:
        for name in args.models:
            recipe = RECIPES[task].get(name, {})
            seeds, slug = range(args.seeds), name.replace(" ", "_")
            if args.choose is not None:
                changes = json.loads(args.choose)
                recipe = {**recipe, **changes, "model": {**recipe["model"], **changes.get("model", {})}}
                seeds, slug = [SELECTION_SEED], f"choice-{slug}-{hashlib.sha256(args.choose.encode()).hexdigest()[:8]}"
            graphs = load(task, args.data_dir)
            if positions := recipe.get("model", {}).get("num_position_features"):
                graphs = [with_positions(graph, positions) for graph in graphs]
            for seed in seeds:
                file = args.output_dir / task / f"{slug}-{seed}.json"
                file.parent.mkdir(parents=True, exist_ok=True)
                one_run(file, task, name, recipe, graphs, seed, args.choose is not None, args.folds)
    if args.choose is None:
        write_report(args.output_dir)


if __name__ == "__main__":
    run_script(main)
