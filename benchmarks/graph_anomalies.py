"""How well anomalous nodes are found that were put into real molecules on purpose.

python benchmarks/graph_anomalies.py [--data b3db] [--molecules 500] [--seeds 3]

The graph is the disjoint union of so many molecules, drawn with the seed. A twentieth of its atoms is made anomalous as
the benchmark BOND defines it (`graphs/anomalies.py`): half of them in cliques of 5, half by exchanged features. Each
seed draws molecules, anomalies, the parts (40 % training, of the rest a third validates) and initial weights anew.
Networks are trained on the whole graph; the threshold of macro-F1 is the best one on the validation part, the test part
is looked at once. The isolation forest, the degree and the energy of an untrained model need no labels, but the
threshold does. No option was chosen by any figure.
"""

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path

import graph_contestants
import numpy as np
import torch
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional as F
from torch_geometric.data import Batch, Data
from torch_geometric.utils import degree, scatter

from energy_transformer.graphs.anomalies import inject_anomalies
from energy_transformer.graphs.datasets import load_graphs
from energy_transformer.training.graph_evaluation import inputs_of
from energy_transformer.utils.command_line import OneLineErrors, run_script
from energy_transformer.utils.files import write_json

RESULTS = Path(__file__).parent / "results" / "graph_anomalies"
SHARE, CLIQUE = 0.05, 5
EPOCHS, RATE = 100, 5e-3
# as in the public code of the paper: no CLS token, g + U(g), a last step of its own, a classifier that reads the input
ENERGY = {
    "hidden_size": 32, "num_attention_heads": 2, "head_dim": 16, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_steps": [2, 1], "step_size": 1.0, "residual": "normalized", "use_cls_token": False, "add_self_loops": True,
    "classifier_reads_input": True,
}  # fmt: skip
NETWORKS = {"energy transformer of nodes": ENERGY, "GCN": {"width": 64, "layers": 3, "dropout": 0.3}}
NAMES = [*NETWORKS, "isolation forest", "degree", "energy, untrained", "energy, of the classifier"]


def union(data: str, molecules: int, seed: int) -> Data:
    generator = np.random.default_rng(seed)
    graphs = load_graphs(data)
    chosen = generator.permutation(len(graphs))[:molecules]
    whole = Batch.from_data_list([graphs[place] for place in chosen])
    graph = Data(x=whole.x, edge_index=whole.edge_index)  # the features of a bond would tell it from an injected edge
    count = max(1, round(SHARE * graph.num_nodes / 2 / CLIQUE))
    return inject_anomalies(graph, count, CLIQUE, count * CLIQUE, generator)


def train(model: nn.Module, graph: Data, places: np.ndarray) -> None:
    """On the whole graph at once; each label counts alike."""
    labels = graph.y[places]
    weight = 1 / labels.bincount().float()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    model.train()
    for _ in range(EPOCHS):
        loss = F.cross_entropy(model(graph)[places], labels, weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def figures(scores: np.ndarray, labels: np.ndarray, validation: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """Of scores that are high for an anomaly."""
    candidates = np.quantile(scores[validation], np.linspace(0.5, 0.995, 100))
    found = [f1_score(labels[validation], scores[validation] > each, average="macro") for each in candidates]
    threshold = candidates[int(np.argmax(found))]
    return {
        "auc": float(roc_auc_score(labels[test], scores[test])),
        "average_precision": float(average_precision_score(labels[test], scores[test])),
        "macro_f1": float(f1_score(labels[test], scores[test] > threshold, average="macro")),
    }


@torch.no_grad()
def energies(model: nn.Module, graph: Data) -> np.ndarray:
    """Of the nodes: an anomaly is expected where the energy is high."""
    return model.model(**inputs_of(graph), output_node_energies=True).node_energies.numpy()


def scores_of(graph: Data, places: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    found = {}
    for name, options in NETWORKS.items():
        model = graph_contestants.build(name, options, graph.num_node_features, graph.num_edge_features, 2, seed)
        if name != "GCN":
            found["energy, untrained"] = energies(model.eval(), graph)
        train(model, graph, places)
        with torch.no_grad():
            found[name] = model(graph).diff(dim=1)[:, 0].numpy()
        if name != "GCN":
            found["energy, of the classifier"] = energies(model, graph)
    source, target = graph.edge_index
    degrees = degree(target, graph.num_nodes)
    neighbors = scatter(graph.x[source], target, dim_size=graph.num_nodes)
    inputs = torch.cat([graph.x, neighbors, degrees[:, None]], 1).numpy()
    found["isolation forest"] = -IsolationForest(random_state=seed).fit(inputs[places]).score_samples(inputs)
    return {**found, "degree": degrees.numpy()}


def one_seed(data: str, molecules: int, seed: int) -> dict:
    graph = union(data, molecules, seed)
    labels = graph.y.numpy()
    own, rest = train_test_split(np.arange(len(labels)), train_size=0.4, random_state=seed, stratify=labels)
    validation, test = train_test_split(rest, train_size=1 / 3, random_state=seed, stratify=labels[rest])
    scores = scores_of(graph, own, seed)
    found = {"data": data, "molecules": molecules, "seed": seed, "nodes": len(labels), "anomalies": int(labels.sum())}
    return {**found, "scores": {name: figures(scores[name], labels, validation, test) for name in NAMES}}


def write_report(folder: Path) -> None:
    runs = defaultdict(list)
    for file in sorted(folder.glob("*.json")):
        run = json.loads(file.read_text())
        runs[run["data"], run["molecules"]].append(run)
    lines = ["# Anomalous nodes\n", (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].strip()]
    for (data, molecules), of_data in runs.items():
        nodes, marked = of_data[0]["nodes"], of_data[0]["anomalies"]
        lines += [f"\n## {data}, {molecules} molecules, {len(of_data)} seeds (first: {marked} of {nodes:,} atoms)\n"]
        lines += ["| score | area under the ROC curve | average precision | macro-F1 |", "| --- | ---: | ---: | ---: |"]
        for name in NAMES:
            cells = [
                _mean([run["scores"][name][each] for run in of_data])
                for each in ("auc", "average_precision", "macro_f1")
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    (folder.parents[1] / "GRAPH_ANOMALIES.md").write_text("\n".join(lines) + "\n")


def _mean(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def main(argv: list[str]) -> None:
    parser = OneLineErrors(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="b3db", choices=["b3db", "mutag"], help="Default: b3db.")
    parser.add_argument("--molecules", type=int, default=500, help="Default: 500.")
    parser.add_argument("--seeds", type=int, default=3, help="Default: 3.")
    parser.add_argument("--output_dir", type=Path, default=RESULTS, help="Of the runs.")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for seed in range(args.seeds):
        file = args.output_dir / f"{args.data}-{args.molecules}-{seed}.json"
        if not file.exists():
            write_json(file, one_seed(args.data, args.molecules, seed))
        print(file.name, json.dumps(json.loads(file.read_text())["scores"]), flush=True)
    write_report(args.output_dir)


if __name__ == "__main__":
    run_script(main)
