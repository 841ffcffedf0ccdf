"""Graphs as tokens: where the tokens of a batch of graphs lie, and who may attend to whom.

Shapes: B graphs, n nodes of all graphs together, L tokens of all graphs together, N tokens of the largest graph,
E edges, H heads, D token width. The L tokens are the n nodes in the order in which they came and then, where there are
any, one CLS token of each graph.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .context import Edges, EnergyContext
from .sparse_attention import segment_logsumexp


@dataclass(frozen=True, eq=False)
class GraphTokens:
    """The tokens of a batch of graphs.

    Attributes:
        graphs (`torch.LongTensor` of shape `(L,)`): the graph of each token.
        slots (`torch.LongTensor` of shape `(L,)`): the place of each token in its graph; that of a CLS token is 0.
        num_graphs, num_nodes: B and n.
        width: N.
        padded: whether a descent works on tokens of shape (B, N, D), else (L, D).
    """

    graphs: Tensor
    slots: Tensor
    num_graphs: int
    num_nodes: int
    width: int
    padded: bool

    @classmethod
    def of(cls, batch: Tensor | None, nodes: Tensor, cls_token: bool, padded: bool) -> "GraphTokens":
        """Given the graph of each node, (n,), in any order (one graph when None), and the nodes (n, ·)."""
        count, device = len(nodes), nodes.device
        batch = torch.zeros(count, dtype=torch.long, device=device) if batch is None else batch
        num_graphs = int(batch.max()) + 1 if count else 1
        sizes = torch.bincount(batch, minlength=num_graphs)
        order = batch.argsort(stable=True)
        slots = torch.empty_like(order)
        slots[order] = torch.arange(count, device=device) - (sizes.cumsum(0) - sizes)[batch[order]]
        if cls_token:
            batch = torch.cat([batch, torch.arange(num_graphs, device=device)])
            slots = torch.cat([slots + 1, slots.new_zeros(num_graphs)])
        width = int(sizes.max()) + cls_token
        return cls(batch, slots, num_graphs, count, width, padded)

    @property
    def places(self) -> Tensor:
        """The place of each token in the B·N of a padded batch, (L,)."""
        return self.graphs * self.width + self.slots

    def lay(self, flat: Tensor) -> Tensor:
        """Tokens (L, ·) in the shape in which a descent works: (B, N, ·) with zeros for padding, or as they are."""
        if not self.padded:
            return flat
        empty = flat.new_zeros(self.num_graphs * self.width, flat.shape[1])
        return empty.index_copy(0, self.places, flat).view(self.num_graphs, self.width, -1)

    def flatten(self, laid: Tensor) -> Tensor:
        """The inverse of [`lay`]: (L, ·)."""
        return laid.flatten(0, 1)[self.places] if self.padded else laid

    def totals(self, by_token: Tensor) -> Tensor:
        """What each token has at each state, (B, T + 1, N) or (T + 1, L), summed over each graph: (B, T + 1)."""
        if self.padded:
            return by_token.sum(-1)
        return by_token.new_zeros(self.num_graphs, len(by_token)).index_add(0, self.graphs, by_token.mT)

    def mean_of_nodes(self, flat: Tensor) -> Tensor:
        """The mean over the nodes of each graph: (L, D) to (B, D)."""
        nodes, graphs = flat[: self.num_nodes], self.graphs[: self.num_nodes]
        sizes = torch.bincount(graphs, minlength=self.num_graphs).clamp(min=1)
        return flat.new_zeros(self.num_graphs, flat.shape[1]).index_add(0, graphs, nodes) / sizes[:, None]

    def with_cls_edges(self, edge_index: Tensor, self_loops: bool) -> Tensor:
        """The edges of the nodes, (2, E), and then those that the model adds: between each CLS token and all nodes of
        its graph in both directions, from each CLS token to itself, and with `self_loops` from each node to itself
        that has no such edge yet."""
        node = torch.arange(self.num_nodes, device=edge_index.device)
        parts = [edge_index]
        if len(self.graphs) > self.num_nodes:
            token = self.num_nodes + self.graphs[: self.num_nodes]
            alone = torch.arange(self.num_nodes, len(self.graphs), device=edge_index.device)
            parts += [torch.stack([node, token]), torch.stack([token, node]), torch.stack([alone, alone])]
        if self_loops:
            lacking = torch.ones_like(node, dtype=torch.bool)
            lacking[edge_index[0][edge_index[0] == edge_index[1]]] = False
            parts.append(node[lacking].expand(2, -1))
        return torch.cat(parts, 1)

    def context(
        self, edges: Edges, dtype: torch.dtype, backend: str, generator: torch.Generator | None
    ) -> EnergyContext:
        """What the descent of tokens of this dtype is told: the edges, or a mask and a bias of all pairs."""
        if not self.padded:
            return EnergyContext(edges=edges, generator=generator)
        sources, targets = self.places[edges.index]
        pair = targets * self.width + sources % self.width
        shape = self.num_graphs, self.width, self.width
        counts = torch.bincount(pair, minlength=self.num_graphs * self.width**2)
        tokens = torch.zeros(self.num_graphs * self.width, dtype=torch.bool, device=pair.device)
        tokens[self.places] = True
        bias = edges.bias
        if bias is not None or (counts > 1).any():  # parallel edges add up in the exponentials
            dtype = torch.promote_types(dtype, torch.float32)
            values = torch.zeros(len(pair), 1, dtype=dtype, device=pair.device) if bias is None else bias.to(dtype)
            bias = segment_logsumexp(values, pair, len(counts)).view(*shape, -1).movedim(-1, 1)
        masks = tokens.view(shape[:2]), counts.view(shape) > 0
        return EnergyContext(*masks, bias=bias, backend=backend, generator=generator)


def check_graphs(x: Tensor, edge_index: Tensor, edge_attr: Tensor | None, batch: Tensor | None, config) -> None:
    """Raises ValueError unless the inputs of a graph model fit one another and the configuration. What needs a look
    at the numbers themselves is checked on the CPU only, where it does not make a device wait."""
    if x.ndim != 2 or x.shape[1] != config.num_node_features or not x.is_floating_point():
        shape = f"(nodes, {config.num_node_features})"
        raise ValueError(f"x must be floating-point numbers of shape {shape}, got {x.dtype} {tuple(x.shape)}")
    if edge_index.ndim != 2 or len(edge_index) != 2 or edge_index.dtype != torch.long:
        given = f"{edge_index.dtype} {tuple(edge_index.shape)}"
        raise ValueError(f"edge_index must be int64 of shape (2, edges), got {given}")
    edges, features = edge_index.shape[1], config.num_edge_features
    given = None if edge_attr is None else tuple(edge_attr.shape)
    ones = given is None and config.edge_modulation and features == 1
    if not ones and given != ((edges, features) if features else None):
        wanted = f"of shape {(edges, features)}" if features else "None, as the configuration has no edge features"
        raise ValueError(f"edge_attr must be {wanted}, got {given}")
    if edge_attr is not None and not edge_attr.is_floating_point():
        raise ValueError(f"edge_attr must be floating-point numbers, got {edge_attr.dtype}")
    if batch is not None and (batch.shape != x.shape[:1] or batch.dtype != torch.long):
        raise ValueError(f"batch must be int64 of shape ({len(x)},), got {batch.dtype} {tuple(batch.shape)}")
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if batch is not None and len(batch) and int(batch.min()) < 0:
        raise ValueError(f"batch must not be negative, got {int(batch.min())}")
    if not edges:
        return
    least, most = int(edge_index.min()), int(edge_index.max())
    if least < 0 or most >= len(x):
        raise ValueError(f"edge_index must lie in [0, nodes) = [0, {len(x)}), got {least if least < 0 else most}")
    if batch is not None and bool((batch[edge_index[0]] != batch[edge_index[1]]).any()):
        raise ValueError("edge_index must not join nodes of different graphs of the batch")
