"""Anomalies that are put into a graph on purpose, for data in which nobody has marked any.

The two kinds are those of the benchmark BOND (Liu et al. 2022, arXiv 2206.10071, section 3.2). They are easier than
anomalies in nature: a clique shows in the degrees alone.
"""

import numpy as np
import torch
from torch_geometric.data import Data
from torch_geometric.utils import sort_edge_index

_CANDIDATES = 50  # nodes among which the most unlike one is looked for


def inject_anomalies(
    graph: Data, cliques: int, clique_size: int, attributes: int, generator: np.random.Generator
) -> Data:
    """A copy of an undirected graph with anomalous nodes: `y` (n,) is 1 at them and 0 elsewhere.

    *Structural*: `cliques` times `clique_size` nodes are drawn, and each joined to all others of its clique. *Of the
    attributes*: `attributes` other nodes get the features of the node that is most unlike them, by Euclidean distance,
    among 50 drawn ones. New edges have features of 0; those that were there stay as they were.

    Raises:
        ValueError: for a negative number, cliques of fewer than 2 nodes, or when there are not so many nodes.
    """
    for name, value, least in (("cliques", cliques, 0), ("clique_size", clique_size, 2), ("attributes", attributes, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    wanted = cliques * clique_size + attributes
    if wanted > graph.num_nodes:
        raise ValueError(f"cliques, clique_size and attributes ask for {wanted} of {graph.num_nodes} nodes")
    chosen = torch.from_numpy(generator.permutation(graph.num_nodes)[:wanted])
    labels = torch.zeros(graph.num_nodes, dtype=torch.long)
    labels[chosen] = 1
    joined = chosen[: cliques * clique_size].view(cliques, clique_size)
    edges, values = _with_cliques(graph, joined)
    features = graph.x.clone()
    for node in chosen[cliques * clique_size :].tolist():
        others = torch.from_numpy(generator.choice(graph.num_nodes, min(_CANDIDATES, graph.num_nodes), replace=False))
        distance = (graph.x[others] - graph.x[node]).norm(dim=1)
        features[node] = graph.x[others[distance.argmax()]]
    return Data(x=features, edge_index=edges, edge_attr=values, y=labels)


def _with_cliques(graph: Data, joined: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Edges and their features, with those between all nodes of each row of `joined` that were not there."""
    size = joined.shape[1]
    first, second = (~torch.eye(size, dtype=torch.bool)).nonzero().T
    new = torch.stack([joined[:, first].flatten(), joined[:, second].flatten()])
    known, wanted = (source * graph.num_nodes + target for source, target in (graph.edge_index, new))
    new = new[:, ~torch.isin(wanted, known)]
    edges = torch.cat([graph.edge_index, new], 1)
    values = graph.edge_attr
    if values is not None:
        values = torch.cat([values, values.new_zeros(new.shape[1], *values.shape[1:])])
    return sort_edge_index(edges, values, graph.num_nodes)
