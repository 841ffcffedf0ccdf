"""Held-out figures of graph and node classifiers, and the baselines that say what they are worth."""

from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch_geometric.data import Data
from torch_geometric.utils import degree, scatter

from ..graphs.datasets import IGNORED


def inputs_of(graph: Data) -> dict[str, Any]:
    """What a model takes of a graph or a batch of graphs."""
    given = graph.edge_attr, graph.batch, graph.get("positions")
    names = ("edge_attr", "batch", "positions")
    return {"x": graph.x, "edge_index": graph.edge_index, **dict(zip(names, given, strict=True))}


@torch.no_grad()
def collect_logits(model: Any, loader: DataLoader, of_nodes: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, C) and labels (N,) of all graphs or labeled nodes in the order of the data, on every process."""
    model.eval()
    found: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    for batch in loader:
        logits = model(**inputs_of(batch)).logits.float().cpu()
        sizes = batch.ptr.diff().tolist() if of_nodes else [1] * batch.num_graphs
        parts = zip(batch.number.tolist(), logits.split(sizes), batch.y.cpu().split(sizes), strict=True)
        found += parts
    by_number = {number: (logits, labels) for number, logits, labels in gather_object(found)}  # some come twice
    logits, labels = (torch.cat(parts) for parts in zip(*(by_number[n] for n in sorted(by_number)), strict=True))
    return logits[labels != IGNORED], labels[labels != IGNORED]


def graph_figures(
    logits: torch.Tensor, labels: torch.Tensor, names: tuple[str, ...], majority: int
) -> dict[str, float]:
    """Accuracy over all and of each label that occurs, loss, and the accuracy of always the label `majority`."""
    right = logits.argmax(1) == labels
    of_labels = {f"eval_accuracy_{names[label]}": float(right[labels == label].double().mean()) for label in
                 labels.unique().tolist()}  # fmt: skip
    return {
        "eval_accuracy": float(right.double().mean()),
        "eval_loss": float(F.cross_entropy(logits.double(), labels)),
        **of_labels,
        "eval_majority_accuracy": float((labels == majority).double().mean()),
    }


def node_figures(logits: torch.Tensor, labels: torch.Tensor, majority: int) -> dict[str, float]:
    """Accuracy, the mean F1 of the labels and the loss; of two labels also the area under the curve of the receiver
    and the average precision for the second one."""
    predicted = logits.argmax(1)
    results = {
        "eval_macro_f1": float(f1_score(labels, predicted, average="macro")),
        "eval_accuracy": float((predicted == labels).double().mean()),
        "eval_loss": float(F.cross_entropy(logits.double(), labels)),
        "eval_majority_accuracy": float((labels == majority).double().mean()),
        "eval_majority_macro_f1": float(f1_score(labels, np.full(len(labels), majority), average="macro")),
    }
    if logits.shape[1] == 2 and len(labels.unique()) == 2:
        score = (logits[:, 1] - logits[:, 0]).double()
        results["eval_roc_auc"] = float(roc_auc_score(labels, score))
        results["eval_average_precision"] = float(average_precision_score(labels, score))
    return results


def linear_accuracy(train: list[Data], held_out: list[Data], of_nodes: bool) -> float:
    """Accuracy of a logistic regression that knows no more of a graph than the sums of the features of its nodes and
    edges; of a node, its own features, those sums over its neighbors, and its degree."""
    (inputs, labels), (others, answers) = (_sums(graphs, of_nodes) for graphs in (train, held_out))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000)).fit(inputs, labels)
    return float(model.score(others, answers))


def _sums(graphs: list[Data], of_nodes: bool) -> tuple[np.ndarray, np.ndarray]:
    rows = torch.cat([_sums_of_nodes(graph) if of_nodes else sums_of_graph(graph) for graph in graphs])
    labels = torch.cat([graph.y for graph in graphs])
    known = labels != IGNORED
    return rows[known].double().numpy(), labels[known].numpy()


def sums_of_graph(graph: Data) -> torch.Tensor:
    """The numbers of its nodes and edges and the sums of their features, (1, F + K + 2)."""
    edges = graph.edge_attr if graph.edge_attr is not None else torch.zeros(graph.num_edges, 0)
    counts = torch.tensor([graph.num_nodes, graph.num_edges])
    return torch.cat([graph.x.sum(0), edges.sum(0), counts])[None]


def _sums_of_nodes(graph: Data) -> torch.Tensor:
    source, target = graph.edge_index
    neighbors = scatter(graph.x[source], target, dim_size=graph.num_nodes)
    return torch.cat([graph.x, neighbors, degree(target, graph.num_nodes)[:, None]], 1)
