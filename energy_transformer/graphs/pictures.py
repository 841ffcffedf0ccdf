"""Graphs drawn along their descent: nodes by their energy, edges by the attention that they carry."""

import importlib.util
from typing import Any

import networkx
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from torch_geometric.data import Batch, Data
from torch_geometric.utils import softmax, to_networkx

from ..graph_tokens import GraphTokens
from ..inspection.pictures import Picture
from ..training.graph_evaluation import inputs_of

_COLUMNS = 5  # states of the descent that are shown
_SMALL = 60  # nodes
_NO_EDGES = "no attention along edges is drawn of a model with attention_qk_norm or without the term 'attention'"


@torch.no_grad()
def node_energies(model: Any, graph: Data, num_steps: int) -> torch.Tensor:
    """The energy of each node (n,) after `num_steps` of each block, that of the last block."""
    batch = Batch.from_data_list([graph]).to(model.device)
    return model(**inputs_of(batch), output_node_energies=True, num_steps=num_steps).node_energies.float().cpu()


@torch.no_grad()
def edge_attention(model: Any, graph: Data) -> torch.Tensor:
    """How much the target of each edge attends to its source at the end of the descent, the mean over the heads (E,).

    What is missing to 1 over the edges to a node goes to the edges that the model adds, such as that of the CLS token.

    Raises:
        ValueError: for a model whose last block has no plain attention.
    """
    core, layer = model.base_model, model.base_model.layers[-1]
    term = getattr(layer, "attention", None)
    if term is None or term.norm_groups:
        raise ValueError(_NO_EDGES)
    batch = Batch.from_data_list([graph]).to(model.device)
    tokens = model(**inputs_of(batch)).last_hidden_state
    graphs = GraphTokens.of(batch.batch, batch.x, model.config.use_cls_token, False)
    source, target = graphs.with_cls_edges(batch.edge_index, model.config.add_self_loops)
    query, key = term.queries_and_keys(term.project(layer.norm(tokens)))
    beta = torch.as_tensor(term.constants()["beta"]).reshape(-1, 1)
    scores = ((query[:, target] * key[:, source]).sum(-1) * beta).T
    if core.edge_bias is not None:
        scores[: graph.num_edges] += core.edge_bias(batch.edge_attr)
    return softmax(scores, target, num_nodes=len(tokens))[: graph.num_edges].mean(1).float().cpu()


def descent_figure(model: Any, graphs: list[Data]) -> Picture:
    """A row for each graph: its nodes colored by their energy at the states of the descent, and, where the last block
    has a plain attention, its edges as wide as the attention that they carry; at the left, the drawing of a molecule
    with `smiles` where RDKit is installed."""
    model.eval()
    steps = np.unique(np.linspace(0, model.base_model.steps_of_layers(None)[-1], _COLUMNS).round().astype(int)).tolist()
    drawn = any("smiles" in graph for graph in graphs) and importlib.util.find_spec("rdkit") is not None
    energies = [torch.stack([node_energies(model, graph, step) for step in steps]) for graph in graphs]
    picture = Picture(2.2 * (len(steps) + drawn), 2.2 * len(graphs), {"energies": torch.cat(energies, 1)})
    axes = picture.subplots(len(graphs), len(steps) + drawn, squeeze=False)
    for row, graph, values in zip(axes, graphs, energies, strict=True):
        if drawn:
            _draw_molecule(row[0], graph)
        places = _places(graph)
        widths = _widths(model, graph)
        for number, (axis, step) in enumerate(zip(row[drawn:], steps, strict=True)):
            shown = _draw_graph(axis, graph, places, values[number], values, widths)
            axis.set_title(f"step {step}: {values[number].sum():.4g}", fontsize=8)
        picture.colorbar(shown, ax=row[-1])
    picture.suptitle("energy of the nodes, and of the graph's nodes together", fontsize=9)
    return picture


def _widths(model: Any, graph: Data) -> np.ndarray:
    """In points, of each edge; all alike where no attention can be told."""
    try:
        return 0.3 + 6 * edge_attention(model, graph).numpy()
    except ValueError:
        return np.ones(graph.num_edges)


def _places(graph: Data) -> dict[int, np.ndarray]:
    """By distances along the edges; of larger graphs, which may have several parts, by springs."""
    drawn = to_networkx(graph, to_undirected=True)
    if graph.num_nodes <= _SMALL and networkx.is_connected(drawn):
        return networkx.kamada_kawai_layout(drawn)
    return networkx.spring_layout(drawn, seed=0)


def _draw_graph(axis: Axes, graph: Data, places: dict, values: torch.Tensor, scale: torch.Tensor, widths: np.ndarray):
    points = np.array([places[node] for node in range(graph.num_nodes)])
    lines = points[graph.edge_index.T.numpy()]
    axis.add_collection(LineCollection(lines, linewidths=widths, colors="0.6", zorder=1))
    shown = axis.scatter(*points.T, c=values, vmin=float(scale.min()), vmax=float(scale.max()), s=28, zorder=2)
    axis.set_aspect("equal")
    axis.set_axis_off()
    return shown


def _draw_molecule(axis: Axes, graph: Data) -> None:
    from rdkit import Chem
    from rdkit.Chem import Draw

    if "smiles" in graph and (found := Chem.MolFromSmiles(graph.smiles)) is not None:
        axis.imshow(Draw.MolToImage(found, size=(300, 300)))
    axis.set_axis_off()
