"""The energy attention along the edges of a graph, in memory linear in the number of edges.

Shapes: N tokens, E edges, H heads, Y head width. An edge leads from a key (source) to a query (target), and the softmax
A of a query runs over the edges that lead to it; parallel edges count each.

Everything of E entries has one number a head. Rows of Y numbers are gathered for some edges at a time and summed into
the N tokens at once, by two operations that are each other's derivatives, so that any number of derivatives is as
sparse as the attention itself:

    products   w_e = ⟨a_target(e), b_source(e)⟩        sums   o_n = Σ_{e leads to n} w_e v_source(e)
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .attention_backends import AttentionBackend, AttentionTerms, at_least_float32
from .context import EnergyContext

# Numbers gathered at once: on a CPU they stay in a core's cache, on other devices few launches matter more.
_CPU_BLOCK, _DEVICE_BLOCK = 2**18, 2**24


def _parts(edges: Tensor, rows: Tensor) -> Iterator[slice]:
    """The edges, some at a time, for rows of the size of those of (N, H, Y)."""
    block = _CPU_BLOCK if rows.device.type == "cpu" else _DEVICE_BLOCK
    size = max(1, block // max(1, rows.shape[1:].numel()))
    return (slice(start, start + size) for start in range(0, len(edges), size))


class EdgeProducts(torch.autograd.Function):
    """⟨a_i, b_j⟩ of each edge and head: a, b (N, H, Y) and the places i, j (E,) of the ends, to (E, H), in float32 for
    half precision."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor, of_a: Tensor, of_b: Tensor) -> Tensor:
        products = a.new_empty(len(of_a), a.shape[1], dtype=torch.promote_types(a.dtype, torch.float32))
        for part in _parts(of_a, a):
            products[part] = torch.linalg.vecdot(a[of_a[part]], b[of_b[part]])
        return products

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, weights):
        a, b, of_a, of_b = ctx.saved_tensors
        return EdgeSums.apply(weights, b, of_b, of_a), EdgeSums.apply(weights, a, of_a, of_b), None, None


class EdgeSums(torch.autograd.Function):
    """Σ w_e v_j over the edges to each token i: w (E, H), v (N, H, Y) and the places j, i (E,), to (N, H, Y)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weights: Tensor, values: Tensor, origin: Tensor, destination: Tensor) -> Tensor:
        sums = torch.zeros_like(values, dtype=weights.dtype, memory_format=torch.contiguous_format)
        for part in _parts(origin, values):
            sums.index_add_(0, destination[part], weights[part, :, None] * values[origin[part]])
        return sums.to(values.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        weights, values, origin, destination = ctx.saved_tensors
        of_weights = EdgeProducts.apply(gradient, values, destination, origin)
        return of_weights, EdgeSums.apply(weights, gradient, destination, origin), None, None


def segment_logsumexp(values: Tensor, segments: Tensor, count: int) -> Tensor:
    """Of the values (E, H) of each of `count` segments, (count, H); 0 for a segment without any. `segments` (E,)."""
    index = segments[:, None].expand_as(values)
    top = values.detach().new_full((count, values.shape[1]), float("-inf")).scatter_reduce(0, index, values, "amax")
    top = top.detach().masked_fill(top.isinf(), 0.0)
    sums = torch.zeros_like(top).index_add(0, segments, (values - top[segments]).exp())
    return top + sums.masked_fill(sums == 0, 1.0).log()


def _scores(query: Tensor, key: Tensor, beta, context: EnergyContext) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (E, H) of queries and keys (N, H, Y), and the places of the keys and queries (E,)."""
    index, bias, clamp = context.edges
    if not context.attend_to_self:
        between = index[0] != index[1]
        index, bias = index[:, between], None if bias is None else bias[between]
    sources, targets = index
    scores = EdgeProducts.apply(query, key, targets, sources) * beta
    scores = scores if bias is None else scores + bias
    return scores if clamp is None else scores.clamp(-clamp, clamp), sources, targets


def _by_token(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """From (H, N, Y) to (N, H, Y), rows of which are contiguous."""
    return query.transpose(0, 1).contiguous(), key.transpose(0, 1).contiguous()


def edge_attention(query: Tensor, key: Tensor, beta, context: EnergyContext) -> AttentionTerms:
    """Both terms of the gradient, (H, N, Y) each, along the edges of the context."""
    query, key = _by_token(query, key)
    scores, sources, targets = _scores(query, key, beta, context)
    weights = (scores - segment_logsumexp(scores, targets, len(query))[targets]).exp()
    by_keys = EdgeSums.apply(weights, key, sources, targets)
    by_queries = EdgeSums.apply(weights, query, targets, sources)
    return AttentionTerms(by_keys.transpose(0, 1), by_queries.transpose(0, 1))


def edge_logsumexp(query: Tensor, key: Tensor, beta, context: EnergyContext) -> Tensor:
    """Row logsumexp of the scores, (H, N); 0 for a token that no edge leads to."""
    scores, _, targets = _scores(*_by_token(query, key), beta, context)
    return segment_logsumexp(at_least_float32(scores), targets, query.shape[1]).mT


EDGE_BACKEND = AttentionBackend(edge_attention, edge_logsumexp)
