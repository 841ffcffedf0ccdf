"""Ways to compute the energy attention, by the names that `attn_implementation` takes.

Shapes: B leading axes, H heads, N tokens, Y head width. Scores are s = β q kᵀ + bias with rows for queries, and
A = softmax over each row of s.

- `"eager"`: the definition, through the whole N×N matrix. Any device, any number of derivatives, `torch.func`, export.
- `"chunked"`: block by block in plain torch, in memory O(N). Any device; what it returns differentiates once.
- `"triton"`: the same in the fused CUDA kernels of the installed package `energy_transformer`.
- `"auto"`: eager or chunked, whichever suits a call, see [`attention_backend`].

All are functions of the same arguments:

    query, key (`torch.Tensor` of shape `(..., H, N, Y)`)
    beta (`float` or `torch.Tensor` of shape `(H,)` or `(1,)`, in float32 for half-precision queries)
    context ([`EnergyContext`]): who may attend to whom, and the bias of the scores

A row without any allowed key has weights of zero and a logsumexp of 0. Half-precision products are accumulated in
float32; softmax and logsumexp are computed in it. The scores of float16 are float32 as well, for they may pass 65504.
"""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .context import EnergyContext


class AttentionTerms(NamedTuple):
    """What a descent step needs of the attention.

    Attributes:
        pulled_by_keys: `A k`, shape (..., H, N, Y); ordinary attention whose values are the keys.
        pulled_by_queries: `Aᵀ q`, shape (..., H, N, Y); the same attention seen from the keys.
    """

    pulled_by_keys: Tensor
    pulled_by_queries: Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """float16 and bfloat16 become float32; float32 and float64 pass unchanged."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def eager_scores(query, key, beta, context: EnergyContext, rows: slice = slice(None)) -> tuple[Tensor, Tensor | None]:
    """Scores of the queries of `rows` in float32 (or float64), (..., H, R, N), and which count, or None for all."""
    if query.dtype == torch.float16:
        query, key = query.float(), key.float()
    several = isinstance(beta, Tensor) and beta.numel() > 1
    beta = beta[:, None, None] if isinstance(beta, Tensor) else beta
    if several and query.dtype != torch.bfloat16:  # the gradient of beta keeps a factor of it: queries are the smaller
        scores = (beta * query).to(key.dtype) @ key.mT
    else:
        scores = at_least_float32(query @ key.mT) * beta
    if context.bias is not None:
        scores = scores + context.bias[..., rows, :]
    allowed = context.allowed(key.shape[-2], key.device, rows)
    if allowed is None:
        return scores, None
    allowed = allowed.unsqueeze(-3)
    # a row of only -inf would give NaN, in the value and, through `where`, in the gradient
    idle = ~allowed.any(-1, keepdim=True)
    return scores.masked_fill(~allowed, float("-inf")).masked_fill(idle, 0.0), allowed


def eager_attention_weights(query, key, beta, context: EnergyContext, rows: slice = slice(None)) -> Tensor:
    """A, shape `(..., H, N, N)`; of the queries of some rows, those rows."""
    scores, allowed = eager_scores(query, key, beta, context, rows)
    weights = scores.softmax(-1)
    return weights if allowed is None else weights.masked_fill(~allowed, 0.0)


def eager_logsumexp(query, key, beta, context: EnergyContext, rows: slice = slice(None)) -> Tensor:
    """Row logsumexp of the scores, shape `(..., H, N)`; of the queries of some rows, those rows."""
    scores, allowed = eager_scores(query, key, beta, context, rows)
    sums = scores.logsumexp(-1)
    return sums if allowed is None else sums.masked_fill(~allowed.any(-1), 0.0)


def eager_attention(query, key, beta, context: EnergyContext) -> AttentionTerms:
    """Both terms of the gradient through the whole N×N matrix."""
    query, key = query.contiguous(), key.contiguous()
    weights = eager_attention_weights(query, key, beta, context).to(query.dtype)
    return AttentionTerms(weights @ key, weights.mT @ query)


# Scores in one block: on a CPU they stay in a core's second-level cache, on other devices few launches matter more.
_CPU_BLOCK, _DEVICE_BLOCK, _LEAST_ROWS = 2**18, 2**24, 32


def _block_sizes(query: Tensor) -> tuple[int, int]:
    """How many images and rows of queries (B, H, N, Y) make a block."""
    heads, count = query.shape[1:3]
    size = _CPU_BLOCK if query.device.type == "cpu" else _DEVICE_BLOCK
    rows = max(1, min(count, max(_LEAST_ROWS, size // max(heads * count, 1))))
    return max(1, size // max(heads * rows * count, 1)) if rows == count else 1, rows


def _weights_by_block(query, key, beta, context: EnergyContext) -> Iterator[tuple[slice, tuple, Tensor]]:
    """A of (B, H, N, Y) queries and keys for some images and rows at a time: the images, the block of queries, and its
    weights in float32. Each is thrown away when the next comes, so the memory does not depend on N²."""
    some, step = _block_sizes(query)
    for image in range(0, query.shape[0], some):
        images = slice(image, image + some)
        of_images = context.of_images(images, query)
        for row in range(0, query.shape[2], step):
            block = images, slice(None), slice(row, row + step)
            yield images, block, eager_attention_weights(query[block], key[images], beta, of_images, block[2])


def _zeros(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))


# A checkpoint's copy of this file, which transformers imports under another name, has operators of its own as well.
_NAMESPACE = re.sub(r"[^A-Za-z0-9_]", "_", f"_{__name__}")
_INPUTS = (
    "Tensor query, Tensor key, Tensor beta, Tensor? tokens, Tensor? pairs, Tensor? bias, bool causal, bool to_self"
)


# operators, which `torch.compile` calls and does not look into, so that it does not unroll the blocks
@torch.library.custom_op(f"{_NAMESPACE}::attention", mutates_args=(), schema=f"({_INPUTS}) -> (Tensor, Tensor)")
def _attention(query, key, beta, *context):
    by_keys, by_queries = torch.empty_like(query), _zeros(query)
    for images, block, weights in _weights_by_block(query, key, beta, EnergyContext(*context)):
        weights = weights.to(query.dtype)
        by_keys[block] = weights @ key[images]
        by_queries[images] += weights.mT @ query[block]
    return by_keys, by_queries.to(query.dtype)


@torch.library.custom_op(
    f"{_NAMESPACE}::attention_backward",
    mutates_args=(),
    schema=f"(Tensor by_keys, Tensor by_queries, {_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _attention_backward(by_keys, by_queries, query, key, beta, *context):
    """Gradients of q, k, beta and bias, given those of T1 = A k and T2 = Aᵀ q, G1 and G2:

    dA = G1 kᵀ + q G2ᵀ,  dS = A ∘ (dA − rowsum(A ∘ dA))
    dq = β dS k + A G2,  dk = β dSᵀ q + Aᵀ G1,  dβ = Σ q ∘ (dS k),  dbias = dS
    """
    of_call, by_head = EnergyContext(*context), beta[:, None, None]
    grad_query, grad_key, grad_beta = torch.empty_like(query), _zeros(query), torch.zeros_like(beta)
    grad_bias = beta.new_zeros(0) if of_call.bias is None else _zeros(of_call.bias)
    for images, block, weights in _weights_by_block(query, key, beta, of_call):
        rows, keys = query[block], key[images]
        grad_scores = at_least_float32(by_keys[block] @ keys.mT)
        grad_scores += rows @ by_queries[images].mT
        grad_scores *= weights
        grad_scores.addcmul_(weights, grad_scores.sum(-1, keepdim=True), value=-1)
        if of_call.bias is not None:
            part = grad_bias[images if len(grad_bias) > 1 else slice(None), :, block[2]]
            part += grad_scores.sum_to_size(part.shape)
        weights, grad_scores = weights.to(query.dtype), grad_scores.to(query.dtype)
        through_scores = at_least_float32(grad_scores @ keys)
        grad_beta += (rows * through_scores).sum((0, 2, 3)).sum_to_size(beta.shape)
        grad_query[block] = through_scores * by_head + weights @ by_queries[images]
        grad_key[images] += grad_scores.mT @ (by_head * rows).to(query.dtype)
        grad_key[images] += weights.mT @ by_keys[block]
    return grad_query, grad_key.to(key.dtype), grad_beta, grad_bias


@_attention.register_fake
def _(query, key, *_):
    return torch.empty_like(query), torch.empty_like(key)


@_attention_backward.register_fake
def _(by_keys, by_queries, query, key, beta, tokens, pairs, bias, *_):
    return (
        torch.empty_like(query),
        torch.empty_like(key),
        torch.empty_like(beta),
        _zeros(beta[:0] if bias is None else bias),
    )


def _save_inputs(ctx, inputs, output):
    *tensors, ctx.causal, ctx.to_self = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, *upstream):
    upstream = (gradient.contiguous() for gradient in upstream)
    *inputs, bias = ctx.saved_tensors
    query, key, beta, of_bias = _attention_backward(*upstream, *inputs, bias, ctx.causal, ctx.to_self)
    return query, key, beta, None, None, None if bias is None else of_bias.to(bias.dtype), None, None


def _refuse(ctx, *upstream):
    raise RuntimeError(
        "the chunked attention can be differentiated once only: use attn_implementation='eager' for a second "
        "derivative through a descent"
    )


_attention.register_autograd(_differentiate, setup_context=_save_inputs)
_attention_backward.register_autograd(_refuse, setup_context=lambda ctx, inputs, output: None)


def _flat(tensor: Tensor | None, leads: torch.Size, ndim: int) -> Tensor | None:
    """With one leading axis for the images in place of `leads`, of length 1 where it is the same for all of them."""
    if tensor is None:
        return None
    if tensor.ndim <= ndim and (len(leads) < 2 or tensor.ndim < ndim):
        return tensor[(None,) * (ndim - tensor.ndim)]
    inner = tensor.shape[1 - ndim :]
    return tensor.expand(*leads, *inner).reshape(-1, *inner)


def chunked_attention(query, key, beta, context: EnergyContext) -> AttentionTerms:
    """Both terms block by block, with a backward that computes the weights again. Nothing of N×N is ever held."""
    if not isinstance(beta, Tensor):
        beta = torch.full((1,), beta, dtype=torch.promote_types(query.dtype, torch.float32), device=query.device)
    leads = query.shape[:-3]
    masks = [_flat(context.tokens, leads, 2), _flat(context.pairs, leads, 3), _flat(context.bias, leads, 4)]
    # copies, or the backward pass would keep all that they are views of
    query_and_key = (matrix.reshape(leads.numel(), *matrix.shape[-3:]).contiguous() for matrix in (query, key))
    found = _attention(*query_and_key, beta, *masks, context.causal, context.attend_to_self)
    return AttentionTerms(*(term.view(query.shape) for term in found))


def chunked_logsumexp(query, key, beta, context: EnergyContext) -> Tensor:
    """As [`eager_logsumexp`], for some rows at a time, whose scores are computed again for a gradient."""
    _, step = _block_sizes(query.flatten(0, -4) if query.ndim > 3 else query[None])
    slices = [slice(row, row + step) for row in range(0, max(query.shape[-2], 1), step)]
    sums = [
        checkpoint(eager_logsumexp, query[..., rows, :], key, beta, context, rows, use_reentrant=False)
        for rows in slices
    ]
    return torch.cat(sums, -1)


class AttentionBackend(NamedTuple):
    """Two functions of the arguments above: [`AttentionTerms`], and the row logsumexp (..., H, N) for the energy."""

    attention: Callable[..., AttentionTerms]
    logsumexp: Callable[..., Tensor]


_BACKENDS = {
    "eager": AttentionBackend(eager_attention, eager_logsumexp),
    "chunked": AttentionBackend(chunked_attention, chunked_logsumexp),
}
ATTENTION_BACKENDS = ("auto", "eager", "chunked", "triton")
# On an accelerator, as many scores of a call at most are computed at once: there, launches cost more than memory.
_FEW_SCORES = 2**22


def check_attention_backend(name: str) -> None:
    """Raises ValueError when `name` is none of [`ATTENTION_BACKENDS`], or cannot run on this machine."""
    if name not in ATTENTION_BACKENDS:
        raise ValueError(f"attn_implementation must be one of {', '.join(ATTENTION_BACKENDS)}, got {name!r}")
    if name == "triton" and name not in _BACKENDS:
        try:
            from energy_transformer.kernels import fused_attention

            _BACKENDS[name] = AttentionBackend(*fused_attention())
        except ImportError as error:
            lacking = f"attn_implementation='triton' needs the package energy-transformer, and triton: {error}"
            raise ValueError(f"{lacking}; use 'auto', 'chunked' or 'eager'") from error


def attention_backend(name: str, query: Tensor, bias: Tensor | None = None) -> AttentionBackend:
    """The backend of that name for these queries (..., H, N, Y) and this bias of the scores.

    `"auto"` is eager where only that can serve (`torch.func`, forward-mode differentiation, export) and for a few
    tokens on an accelerator, chunked otherwise. No fused kernel is chosen before a measurement on a device shows
    that it pays.

    Raises:
        ValueError: for a backend that cannot run here, or under `torch.func` or forward-mode differentiation.
    """
    if name == "eager":
        return _BACKENDS["eager"]
    transformed = is_transformed(query) or (bias is not None and is_transformed(bias))
    if name == "auto":
        scores = query.numel() // max(query.shape[-1], 1) * query.shape[-2]
        few = query.device.type != "cpu" and scores <= _FEW_SCORES
        return _BACKENDS["eager" if few or transformed or _is_exporting() else "chunked"]
    check_attention_backend(name)
    if transformed:
        raise ValueError(
            f"attn_implementation={name!r} knows no torch.func and no forward-mode differentiation; use 'auto' or "
            "'eager'"
        )
    return _BACKENDS[name]


def is_transformed(tensor: Tensor) -> bool:
    """Whether a transform of `torch.func` or forward-mode differentiation is at work on it."""
    if torch.compiler.is_compiling():  # the compiler cannot look into tensors
        return _saved_tensors_are_fixed()
    if torch.func.debug_unwrap(tensor) is not tensor:
        return True
    return torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None


def is_eager(tensor: Tensor) -> bool:
    """Whether nothing looks on but autograd: neither a compiler, nor a tracer, nor `torch.func`."""
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing() or is_transformed(tensor))


@torch.compiler.assume_constant_result
def _saved_tensors_are_fixed() -> bool:
    """Whether hooks on what autograd saves are refused, as they are where `torch.func` differentiates."""
    try:
        with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, lambda saved: saved):
            return False
    except RuntimeError:
        return True


def _is_exporting() -> bool:
    """Whether a graph is being made that must run without our operators."""
    if torch.jit.is_tracing():
        return True
    if hasattr(torch.compiler, "is_exporting"):  # torch 2.7 and newer
        return torch.compiler.is_exporting()
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()
