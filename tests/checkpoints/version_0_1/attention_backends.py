"""Ways to compute the energy attention, by the names that `attn_implementation` takes.

Shapes: B leading axes, H heads, N tokens, Y head width. Scores are s = beta q kᵀ with rows for queries, and
A = softmax over each row of s.

- `"eager"`: the definition, through the whole N×N matrix. Any device, any number of derivatives, `torch.func`, export.
- `"chunked"`: block by block in plain torch, in memory O(N). Any device; what it returns differentiates once.
- `"triton"`: the same in the fused CUDA kernels of the installed package `energy_transformer`.
- `"auto"`: the best of them for a call, see [`attention_backend`].

All are functions of the same arguments:

    query, key (`torch.Tensor` of shape `(..., H, N, Y)`)
    beta (`float` or `torch.Tensor` of shape `(H,)` or `(1,)`, in float32 for half-precision queries)
    mask (`torch.BoolTensor` broadcastable to `(..., N, N)`, *optional*): True where the row may attend to the column
    tokens (`torch.BoolTensor` of shape `(..., N)`, *optional*): False for padding, which is neither row nor column
    attend_to_self (`bool`): False leaves the diagonal out

A row without any allowed key has weights of zero and a logsumexp of 0. Half-precision products are accumulated in
float32, softmax and logsumexp are computed in it.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from .operators import define_operator, only_plain_operators


class AttentionTerms(NamedTuple):
    """What a descent step needs of the attention.

    Attributes:
        pulled_by_keys: `A k`, shape (..., H, N, Y); ordinary attention whose values are the keys.
        pulled_by_queries: `Aᵀ q`, shape (..., H, N, Y); the same attention seen from the keys.
    """

    pulled_by_keys: torch.Tensor
    pulled_by_queries: torch.Tensor


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """float16 and bfloat16 become float32; float32 and float64 pass unchanged."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def allowed_pairs(query, mask=None, tokens=None, attend_to_self=True, rows: slice = slice(None)):
    """True where a row of `rows` may attend to a column: broadcastable to `(..., R, N)`, or None for everywhere."""
    count = query.shape[-2]
    allowed = None if mask is None else mask.expand(*mask.shape[:-2], count, count)[..., rows, :]
    if tokens is not None:
        real = tokens[..., rows, None] & tokens[..., None, :]
        allowed = real if allowed is None else allowed & real
    if not attend_to_self:
        positions = torch.arange(count, device=query.device)
        others = positions[rows, None] != positions
        allowed = others if allowed is None else allowed & others
    return allowed


def eager_scores(query, key, beta, allowed=None):
    """Scores `beta q kᵀ` in float32 (or float64), shape (..., H, N, N); `-inf` where `allowed` is False."""
    if isinstance(beta, torch.Tensor):
        beta = beta[:, None, None]
    scores = at_least_float32((beta * query).to(key.dtype) @ key.transpose(-1, -2))
    return scores if allowed is None else scores.masked_fill(~allowed.unsqueeze(-3), float("-inf"))


def eager_attention_weights(query, key, beta, mask=None, tokens=None, attend_to_self=True):
    """A, shape `(..., H, N, N)`; a row without any allowed key is zero."""
    allowed = allowed_pairs(query, mask, tokens, attend_to_self)
    scores = eager_scores(query, key, beta, allowed)
    if allowed is None:
        return scores.softmax(-1)
    # a row of only -inf would give NaN, in the value and, through `where`, in the gradient
    idle = ~allowed.any(-1, keepdim=True).unsqueeze(-3)
    return scores.masked_fill(idle, 0.0).softmax(-1).masked_fill(~allowed.unsqueeze(-3), 0.0)


def eager_logsumexp(query, key, beta, mask=None, tokens=None, attend_to_self=True):
    """Row logsumexp of the scores, shape `(..., H, N)`; 0 for a row without any allowed key."""
    allowed = allowed_pairs(query, mask, tokens, attend_to_self)
    scores = eager_scores(query, key, beta, allowed)
    if allowed is None:
        return scores.logsumexp(-1)
    idle = ~allowed.any(-1, keepdim=True).unsqueeze(-3)
    return scores.masked_fill(idle, 0.0).logsumexp(-1).masked_fill(idle.squeeze(-1), 0.0)


def eager_attention(query, key, beta, mask=None, tokens=None, attend_to_self=True, weights=None) -> AttentionTerms:
    """Both terms of the gradient through the whole N×N matrix, `weights` (computed when None)."""
    if weights is None:
        weights = eager_attention_weights(query, key, beta, mask, tokens, attend_to_self)
    weights = weights.to(query.dtype)
    return AttentionTerms(weights @ key, weights.transpose(-1, -2) @ query)


# Scores in one block: on a CPU they stay in a core's second-level cache, on other devices few launches matter more.
_CPU_BLOCK, _DEVICE_BLOCK, _LEAST_ROWS = 2**18, 2**24, 32


class _Blocks:
    """The weights A of (B, H, N, Y) queries and keys in blocks of several images, heads and rows, each a batch of
    matrices (P, R, N). Each is thrown away when the next comes, so the memory does not depend on N²."""

    def __init__(self, query, key, beta, mask, tokens, attend_to_self):
        leads, (self.heads, self.count, _) = query.shape[:-3], query.shape[-3:]
        self.query, self.key = self.flat(query), self.flat(key)
        self.scaled = (beta[:, None, None] * self.query).to(query.dtype)
        self.attend_to_self = attend_to_self
        self.mask = mask if mask is None else self._of_images(mask, leads, (self.count, self.count))
        self.tokens = tokens if tokens is None else self._of_images(tokens, leads, (self.count,))

    @staticmethod
    def flat(tensor: torch.Tensor) -> torch.Tensor:
        """One leading axis, and contiguous heads."""
        return tensor.reshape(-1, *tensor.shape[-3:]).contiguous()

    def _of_images(self, mask, leads, shape):
        return mask.expand(*leads, *shape).reshape(len(self.query), *shape)

    def _slices(self) -> Iterator[tuple[slice, slice, slice]]:
        images, heads, count = len(self.query), self.heads, self.count
        size = _CPU_BLOCK if self.query.device.type == "cpu" else _DEVICE_BLOCK
        rows = min(count, max(_LEAST_ROWS, size // count))
        some_heads = min(heads, max(1, size // (rows * count)))
        some_images = max(1, size // (heads * rows * count)) if some_heads == heads else 1
        for image in range(0, images, some_images):
            for head in range(0, heads, some_heads):
                for row in range(0, count, rows):
                    yield slice(image, image + some_images), slice(head, head + some_heads), slice(row, row + rows)

    def scores(self) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice, slice], torch.Tensor, torch.Tensor]]:
        """For each block the indices of its columns and of its rows, its scores, and what is not allowed (or None)."""
        for images, heads, rows in self._slices():
            columns = images, heads
            block = (*columns, rows)
            scores = at_least_float32(self.scaled[block] @ self.key[columns].mT)
            allowed = allowed_pairs(
                self.query,
                None if self.mask is None else self.mask[images],
                None if self.tokens is None else self.tokens[images],
                self.attend_to_self,
                rows,
            )
            forbidden = None if allowed is None else ~allowed.unsqueeze(-3)
            yield columns, block, scores if forbidden is None else scores.masked_fill_(forbidden, -torch.inf), forbidden

    def weights(self) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice, slice], torch.Tensor]]:
        """For each block the indices of its columns and of its rows, and A in float32 or float64."""
        for columns, block, scores, forbidden in self.scores():
            weights = scores.softmax(-1)
            yield columns, block, weights if forbidden is None else weights.masked_fill_(forbidden, 0.0)


def _zeros(tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """`total += left @ right` for one batch of matrices, in place where the precision is the same."""
    if total.dtype == left.dtype and total.is_contiguous():
        total.flatten(0, 1).baddbmm_(left.flatten(0, 1), right.flatten(0, 1))
    else:
        total += left @ right


def _chunked_terms(blocks: _Blocks, pulling: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """`A k` and `Aᵀ pulling`."""
    by_keys, by_rows = torch.empty_like(blocks.key), _zeros(blocks.key)
    for columns, block, weights in blocks.weights():
        weights = weights.to(dtype)
        by_keys[block] = weights @ blocks.key[columns]
        _add_product(by_rows[columns], weights.mT, pulling[block])
    return by_keys, by_rows


def _chunked_attention(query, key, beta, mask, tokens, attend_to_self):
    blocks = _Blocks(query, key, beta, mask, tokens, attend_to_self)
    by_keys, by_queries = _chunked_terms(blocks, blocks.query, query.dtype)
    return by_keys.view(query.shape), by_queries.to(query.dtype).view(query.shape)


def _chunked_attention_backward(upstream_keys, upstream_queries, query, key, beta, mask, tokens, attend_to_self):
    """Gradients of q, k and beta, given those of T1 = A k and T2 = Aᵀ q, G1 and G2:

    dA = G1 kᵀ + q G2ᵀ,  dS = A ∘ (dA − rowsum(A ∘ dA))
    dq = β dS k + A G2,  dk = β dSᵀ q + Aᵀ G1,  dβ = Σ q ∘ (dS k)
    """
    blocks = _Blocks(query, key, beta, mask, tokens, attend_to_self)
    dtype, by_head = query.dtype, beta[:, None, None]
    upstream_keys, upstream_queries = blocks.flat(upstream_keys), blocks.flat(upstream_queries)
    grad_query, grad_key = torch.empty_like(blocks.query), _zeros(blocks.key)
    grad_beta = torch.zeros_like(beta)
    for columns, block, weights in blocks.weights():
        rows, keys = blocks.query[block], blocks.key[columns]
        grad_scores = at_least_float32(upstream_keys[block] @ keys.mT)
        _add_product(grad_scores, rows, upstream_queries[columns].mT)
        grad_scores *= weights
        grad_scores.addcmul_(weights, grad_scores.sum(-1, keepdim=True), value=-1)
        weights, grad_scores = weights.to(dtype), grad_scores.to(dtype)
        through_scores = at_least_float32(grad_scores @ keys)
        grad_beta[block[1]] += (rows * through_scores).sum((0, 2, 3))
        grad_query[block] = through_scores * by_head[block[1]] + weights @ upstream_queries[columns]
        _add_product(grad_key[columns], grad_scores.mT, blocks.scaled[block])
        _add_product(grad_key[columns], weights.mT, upstream_keys[block])
    return grad_query.view(query.shape), grad_key.to(dtype).view(key.shape), grad_beta


def _chunked_logsumexp(query, key, beta, mask, tokens, attend_to_self):
    blocks = _Blocks(query, key, beta, mask, tokens, attend_to_self)
    rows = _zeros(blocks.query[..., 0])
    for _, block, scores, forbidden in blocks.scores():
        value = scores.logsumexp(-1)
        rows[block] = value if forbidden is None else value.masked_fill_(value.isneginf(), 0.0)
    return rows.view(query.shape[:-1])


def _chunked_logsumexp_backward(upstream, query, key, beta, mask, tokens, attend_to_self):
    """dq = β G ∘ (A k),  dk = β Aᵀ (G ∘ q),  dβ = Σ G (q · A k)."""
    blocks = _Blocks(query, key, beta, mask, tokens, attend_to_self)
    upstream = upstream.reshape(blocks.query.shape[:-1]).unsqueeze(-1)
    by_keys, by_rows = _chunked_terms(blocks, (upstream * blocks.query).to(query.dtype), query.dtype)
    grad_query = upstream * by_keys
    grad_beta = (grad_query * blocks.query).sum((0, 2, 3))
    by_head = beta[:, None, None]
    grad_query, grad_key = (by_head * grad_query).to(query.dtype), (by_head * by_rows).to(key.dtype)
    return grad_query.view(query.shape), grad_key.view(key.shape), grad_beta


_ARGUMENTS = "Tensor query, Tensor key, Tensor beta, Tensor? mask, Tensor? tokens, bool attend_to_self"


def _like_inputs(query, key, beta):
    return query.new_empty(query.shape), key.new_empty(key.shape), torch.empty_like(beta)


def _rows_like(query, *_):
    return query.new_empty(query.shape[:-1], dtype=torch.promote_types(query.dtype, torch.float32))


# operators, so that torch.compile does not unroll the blocks
_attention_operator = define_operator(
    _chunked_attention,
    f"({_ARGUMENTS}) -> (Tensor, Tensor)",
    lambda q, k, *_: (q.new_empty(q.shape), k.new_empty(k.shape)),
)
_attention_backward_operator = define_operator(
    _chunked_attention_backward,
    f"(Tensor upstream_keys, Tensor upstream_queries, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
    lambda g1, g2, q, k, beta, *_: _like_inputs(q, k, beta),
)
_logsumexp_operator = define_operator(_chunked_logsumexp, f"({_ARGUMENTS}) -> Tensor", _rows_like)
_logsumexp_backward_operator = define_operator(
    _chunked_logsumexp_backward,
    f"(Tensor upstream, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
    lambda g, q, k, beta, *_: _like_inputs(q, k, beta),
)


def _save_inputs(ctx, inputs, output):
    *tensors, ctx.attend_to_self = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_once(operator, backward_operator):
    def backward(ctx, *upstream):
        return *backward_operator(*upstream, *ctx.saved_tensors, ctx.attend_to_self), None, None, None

    def refuse(ctx, *upstream):
        raise RuntimeError(
            "the chunked attention can be differentiated once only: use attn_implementation='eager' for a second "
            "derivative through a descent"
        )

    operator.register_autograd(backward, setup_context=_save_inputs)
    backward_operator.register_autograd(refuse, setup_context=lambda ctx, inputs, output: None)


_differentiate_once(_attention_operator, _attention_backward_operator)
_differentiate_once(_logsumexp_operator, _logsumexp_backward_operator)


def _beta_of_heads(beta, query: torch.Tensor) -> torch.Tensor:
    if not isinstance(beta, torch.Tensor):
        beta = torch.full((1,), beta, dtype=torch.promote_types(query.dtype, torch.float32), device=query.device)
    return beta.expand(query.shape[-3])


def chunked_attention(query, key, beta, mask=None, tokens=None, attend_to_self=True) -> AttentionTerms:
    """Both terms block by block, with a backward that computes the weights again. Nothing of N×N is ever held."""
    beta = _beta_of_heads(beta, query)
    return AttentionTerms(*_attention_operator(query, key, beta, mask, tokens, attend_to_self))


def chunked_logsumexp(query, key, beta, mask=None, tokens=None, attend_to_self=True) -> torch.Tensor:
    """As [`eager_logsumexp`], block by block."""
    return _logsumexp_operator(query, key, _beta_of_heads(beta, query), mask, tokens, attend_to_self)


class AttentionBackend(NamedTuple):
    """Two functions of the arguments above: [`AttentionTerms`], and the row logsumexp (..., H, N) for the energy."""

    attention: Callable[..., AttentionTerms]
    logsumexp: Callable[..., torch.Tensor]


_BACKENDS = {
    "eager": AttentionBackend(eager_attention, eager_logsumexp),
    "chunked": AttentionBackend(chunked_attention, chunked_logsumexp),
}
ATTENTION_BACKENDS = ("auto", "eager", "chunked", "triton")


def _triton_is_there() -> bool:
    """Whether the kernels are installed; they import this file, so it imports them on first use."""
    if "triton" not in _BACKENDS:
        try:
            from energy_transformer.kernels import triton_attention, triton_logsumexp
        except ImportError:
            return False
        _BACKENDS["triton"] = AttentionBackend(triton_attention, triton_logsumexp)
    return True


def check_attention_backend(name: str) -> None:
    """Raises ValueError when `name` is none of [`ATTENTION_BACKENDS`], or cannot run on this machine."""
    if name not in ATTENTION_BACKENDS:
        raise ValueError(f"attn_implementation must be one of {', '.join(ATTENTION_BACKENDS)}, got {name!r}")
    if name == "triton" and not (torch.cuda.is_available() and _triton_is_there()):
        lacking = "the packages energy-transformer and triton" if torch.cuda.is_available() else "a CUDA device"
        raise ValueError(f"attn_implementation='triton' needs {lacking}; use 'auto', 'chunked' or 'eager'")


def attention_backend(name: str, query: torch.Tensor) -> AttentionBackend:
    """The backend of that name for these queries.

    `"auto"` is eager where only that can serve (`torch.func`, forward-mode differentiation, export); else triton for
    head widths of at most 128 in at most float32 on CUDA, where it is installed; else chunked.
    """
    if name == "auto":
        fits = query.is_cuda and query.shape[-1] <= 128 and query.dtype != torch.float64
        fused = fits and _triton_is_there()
        name = "eager" if only_plain_operators() else "triton" if fused else "chunked"
    check_attention_backend(name)
    return _BACKENDS[name]
