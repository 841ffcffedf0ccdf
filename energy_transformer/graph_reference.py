"""What only the public code of the paper's graph classifier does: for its checkpoints, and to agree with its numbers.

`Lemon-cmd/energy-transformer-graph`, `src/model/core.py` and `src/graph_utils`. Not for new models, because:

- a pair without an edge is known by a score of exactly 0, but the map of the edge features has a bias: after one step
  of an optimizer nothing is exactly 0, and every token attends to every other;
- the CLS token attends to padding, so that what a graph gets depends on the batch that it is in;
- the convolution over the Gram matrix of the tokens depends on the order of the nodes.

Shapes: B graphs, N tokens of the largest graph, CLS first, E edges, K edge features, H heads, D token width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .context import EnergyContext
from .energies import BaseModernHopfield, EnergyAttention, EnergyTerm, register_energy_term
from .graph_tokens import GraphTokens


@register_energy_term("modulated_attention")
class ModulatedAttention(EnergyAttention):
    r"""Energy attention whose scores s the heads mix and the edges multiply, by â (B, N, N, H):

    $$E = -\sum_j \frac{1}{\beta_j} \sum_q \log \sum_k \exp z_{qkj}, \qquad
      z_{qkj} = \hat a_{qkj} \sum_h s_{qkh} M_{hj}, \qquad s_{qkh} = \beta_h\, q_{hq} \cdot k_{hk}$$

    Where z is exactly 0 there is no edge. â stands in `context.data["modulation"]`; without it, it is 1 for all pairs.

    Arguments as for [`EnergyAttention`]; `mixing` is M (H, H), normal with the standard deviation `scale`.
    """

    def __init__(self, *args, scale: float = 0.002, **options):
        super().__init__(*args, scale=scale, **options)
        self.mixing = nn.Parameter(torch.randn(self.n_heads, self.n_heads) * scale)

    def constants(self) -> dict[str, Tensor]:
        beta = torch.as_tensor(super().constants()["beta"], dtype=self.mixing.dtype, device=self.mixing.device)
        return {"beta": beta.expand(self.n_heads), "mixing": self.mixing}

    def _modulated(self, h: Tensor, context: EnergyContext, beta: Tensor, mixing: Tensor) -> tuple[Tensor, Tensor]:
        """z (..., H, N, N) with −inf where there is no edge, and which rows have none at all, (..., H, N, 1)."""
        query, key = self.queries_and_keys(h)
        mixed = torch.einsum("...hqk,hj->...jqk", (beta[:, None, None] * query) @ key.mT, mixing)
        modulation = context.data.get("modulation")
        modulated = mixed if modulation is None else mixed * modulation.movedim(-1, -3)
        absent = modulated == 0 if modulation is not None else torch.zeros_like(modulated, dtype=torch.bool)
        idle = absent.all(-1, keepdim=True)
        return modulated.masked_fill(absent, float("-inf")).masked_fill(idle, 0.0), idle

    def potential(self, h: Tensor, context: EnergyContext, *, beta, mixing) -> Tensor:
        """Σ_j 1/β_j logsumexp of the row of z of each token."""
        modulated, idle = self._modulated(h, context, beta, mixing)
        return (modulated.logsumexp(-1).masked_fill(idle[..., 0], 0.0) / beta[:, None]).sum(-2)

    def pull(self, h: Tensor, context: EnergyContext, *, beta, mixing) -> Tensor:
        """[R k | Rᵀ q] with R_qkh = β_h Σ_j softmax(z)_qkj / β_j â_qkj M_hj."""
        modulated, idle = self._modulated(h, context, beta, mixing)
        weights = modulated.softmax(-1).masked_fill(idle, 0.0) / beta[:, None, None]
        if (modulation := context.data.get("modulation")) is not None:
            weights = weights * modulation.movedim(-1, -3)
        weights = beta[:, None, None] * torch.einsum("...jqk,hj->...hqk", weights, mixing)
        query, key = self.queries_and_keys(h)
        return self._join(weights @ key, weights.mT @ query)

    pull_and_weights = EnergyTerm.pull_and_weights


@register_energy_term("squared_gelu_hopfield")
class SquaredGELUModernHopfield(BaseModernHopfield):
    r"""Hopfield network with the square of a GELU (in its tanh form), $E = -\tfrac12 \sum \mathrm{gelu}(h)^2$.

    Arguments as for [`BaseModernHopfield`].
    """

    def potential(self, h: Tensor, context: EnergyContext, *, beta=1.0, bias=None) -> Tensor:
        """½ Σ gelu(h)²."""
        h = beta * h if bias is None else beta * h + bias
        return 0.5 * F.gelu(h, approximate="tanh").square().sum(-1)


class EdgeModulation(nn.Module):
    """â of [`ModulatedAttention`] from edge features and tokens, and the edge features back from it.

    Args:
        config ([`EnergyTransformerGraphConfig`]).
    """

    def __init__(self, config):
        super().__init__()
        heads = config.num_attention_heads
        self.projection = nn.Linear(config.num_edge_features or 1, heads)
        convolved = config.edge_modulation == "convolution"
        self.convolution = nn.Conv2d(1, heads, 3, padding=1, bias=False) if convolved else None
        self.decoder = nn.Linear(heads, 1, bias=False) if config.adjacency_loss_weight else None

    def forward(self, tokens: Tensor, adjacency: Tensor) -> Tensor:
        """Tokens x_0 (B, N, D) and edge features (B, N, N, K) to (B, N, N, H)."""
        projected = self.projection(adjacency)
        if self.convolution is None:
            return projected
        return self.convolution((tokens @ tokens.mT).unsqueeze(1)).movedim(1, -1) * projected

    def reconstruction_loss(self, modulation: Tensor, adjacency: Tensor) -> Tensor:
        """Mean over the graphs of |Â − A|² / (number of entries of A that are not 0)."""
        error = (self.decoder(modulation) - adjacency).square().flatten(1).sum(1)
        return (error / (adjacency != 0).flatten(1).sum(1)).mean()


def padded_adjacency(edge_index: Tensor, edge_attr: Tensor | None, graphs: GraphTokens, like: Tensor) -> Tensor:
    """Edge features (B, N, N, K) in the dtype of `like`, rows for sources; parallel edges add up, and 1 for an edge
    without features. All is 1 between CLS and any token, padding too, and from padding to nodes."""
    values = like.new_ones(edge_index.shape[1], 1) if edge_attr is None else edge_attr.to(like.dtype)
    size, width = graphs.num_graphs, graphs.width
    pair = graphs.places[edge_index[0]] * width + graphs.slots[edge_index[1]]
    adjacency = like.new_zeros(size * width**2, values.shape[1]).index_add(0, pair, values)
    real = torch.zeros(size * width, dtype=torch.bool, device=like.device)
    real[graphs.places] = True
    real = real.view(size, width)
    ones = ~real[:, :, None] & real[:, None, :]
    ones[:, 0], ones[:, :, 0] = True, True
    return adjacency.view(size, width, width, -1).masked_fill(ones[..., None], 1.0)


def padded_tokens(embeddings, x: Tensor, positions: Tensor | None, graphs: GraphTokens) -> Tensor:
    """x_0 (B, N, D) by [`EnergyTransformerGraphEmbeddings`], in which padding is a node whose features are 0."""
    features = graphs.lay(F.pad(x, (0, 0, 0, graphs.num_graphs)))
    nodes = embeddings.node_embeddings(features[:, 1:])
    tokens = torch.cat([embeddings.cls_token.expand(len(nodes), 1, -1), nodes], 1)
    if positions is None or embeddings.position_embeddings is None:
        return tokens
    if positions.ndim == 2:
        positions = graphs.lay(F.pad(positions, (0, 0, 0, graphs.num_graphs)))
    return tokens + embeddings.position_embeddings(positions)
