"""The fused energy attention as torch operators: they compile without graph breaks and differentiate once.

The mathematics, and the layout that the kernels expect, are in [`triton_kernels`].
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from . import triton_kernels as kernels
from .tiles import tile_of, tile_of_bias, tile_of_whole

MAX_HEAD_WIDTH = 128
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def triton_attention(
    query: Tensor,
    key: Tensor,
    beta: float | Tensor,
    mask: Tensor | None = None,
    tokens: Tensor | None = None,
    attend_to_self: bool = True,
    bias: Tensor | None = None,
    causal: bool = False,
) -> tuple[Tensor, Tensor]:
    """A k and Aᵀ q, with A = softmax over the rows of β q kᵀ + bias, in memory that grows linearly with N.

    Args:
        query, key (`torch.Tensor` of shape `(..., H, N, Y)`):
            bfloat16, float16 or float32, Y at most 128. No copy is made of the layout (B, N, H, Y) seen as
            (B, H, N, Y), which is also that of the results.
        beta (`float` or `torch.Tensor` of shape `(H,)` or `(1,)`).
        mask (`torch.BoolTensor` broadcastable to `(..., N, N)`, *optional*): True where the row may attend.
        tokens (`torch.BoolTensor` broadcastable to `(..., N)`, *optional*): False for padding, neither row nor column.
        attend_to_self: False leaves the diagonal out.
        bias (`torch.FloatTensor` of shape `(..., H or 1, N, N)`, *optional*): added to the scores; finite.
        causal: a row attends to no column behind it.

    Returns:
        `A k` and `Aᵀ q` in the dtype of the queries; zero for a row without any allowed column. Products are
        accumulated in float32. Those of float32 inputs are computed in TF32 where torch allows it
        (`torch.backends.cuda.matmul.allow_tf32`), otherwise as the sum of three TF32 products, whose error is near
        that of float32.

    Raises:
        ValueError: for another dtype, device or width, and for masks that are not boolean.
        RuntimeError: when differentiated twice.
    """
    arguments = _check(query, key, beta, mask, tokens, bias)
    by_keys, by_queries, _ = attention_operator(*arguments, attend_to_self, causal)
    return by_keys.reshape(query.shape), by_queries.reshape(query.shape)


def triton_logsumexp(
    query: Tensor,
    key: Tensor,
    beta: float | Tensor,
    mask: Tensor | None = None,
    tokens: Tensor | None = None,
    attend_to_self: bool = True,
    bias: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """Row logsumexp of the scores, (..., H, N) in float32; 0 for a row without any allowed column.

    Arguments and errors as for [`triton_attention`].
    """
    arguments = _check(query, key, beta, mask, tokens, bias)
    return logsumexp_operator(*arguments, attend_to_self, causal)[0].reshape(query.shape[:-1])


def _check(query, key, beta, mask, tokens, bias):
    """The arguments of the operators: one leading axis, β of shape (H,) in float32."""
    if query.dtype not in DTYPES or key.dtype != query.dtype:
        raise ValueError(
            "the fused attention takes bfloat16, float16 and float32, the same for query and key, got "
            f'{query.dtype} and {key.dtype}; use attn_implementation "eager" or "chunked"'
        )
    if query.shape != key.shape or query.ndim < 3 or not 0 < query.shape[-1] <= MAX_HEAD_WIDTH:
        raise ValueError(
            f"query and key must have one shape (..., H, N, Y) with a head width Y of 1 to {MAX_HEAD_WIDTH}, got "
            f'{tuple(query.shape)} and {tuple(key.shape)}; use attn_implementation "eager" or "chunked"'
        )
    if query.device.type != "cuda" and isinstance(kernels.forward_rows, triton.JITFunction):
        raise ValueError(
            f"the fused attention needs a CUDA device, got tensors on {query.device}; "
            'use attn_implementation "eager" or "chunked"'
        )
    if any(given is not None and given.dtype != torch.bool for given in (mask, tokens)):
        raise ValueError("mask and tokens must be of dtype torch.bool, True where there is something to attend to")
    leading, (heads, length, _) = query.shape[:-3], query.shape[-3:]
    if not isinstance(beta, Tensor):
        beta = torch.full((heads,), beta, dtype=torch.float32, device=query.device)
    if mask is not None:
        mask = mask.expand(*leading, length, length).reshape(-1, length, length)
    if tokens is not None:
        tokens = tokens.expand(*leading, length).reshape(-1, length)
    if bias is not None and bias.ndim < 4:
        bias = bias[(None,) * (4 - bias.ndim)]
    elif bias is not None and len(leading) > 1:
        bias = bias.expand(*leading, *bias.shape[-3:]).reshape(-1, *bias.shape[-3:])
    query, key = (_with_adjacent_elements(x.reshape(-1, *x.shape[-3:])) for x in (query, key))
    return query, key, beta.float().expand(heads).contiguous(), mask, tokens, bias


def _with_adjacent_elements(matrix):
    return matrix if matrix.stride(-1) == 1 else matrix.contiguous()


def _precision():
    matmul = torch.backends.cuda.matmul
    setting = getattr(matmul, "fp32_precision", None)  # torch before 2.9 has allow_tf32 alone
    allowed = matmul.allow_tf32 if setting is None else setting == "tf32"
    return "tf32" if allowed else "tf32x3"


class _Context(NamedTuple):
    """Who attends to whom, and the bias, as the kernels take it."""

    mask: Tensor | None
    tokens: Tensor | None
    bias: Tensor | None
    attend_to_self: bool
    causal: bool

    def arguments(self, images: int, heads: int) -> list:
        """The pointers and strides."""
        masked = (None, 0, 0, 0) if self.mask is None else (self.mask.view(torch.uint8), *self.mask.stride())
        tokens = self.tokens
        padding = (None, 0) if tokens is None else (tokens.contiguous().view(torch.uint8), tokens.shape[-1])
        biased = (None, 0, 0, 0, 0)
        if self.bias is not None:
            biased = self.bias, *self.bias.expand(images, heads, *self.bias.shape[-2:]).stride()
        return [*masked, *padding, *biased]


def _padded(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


def _whole(query, backward):
    """The tile of a kernel of whole heads, or None for those in tiles."""
    images, heads, length, width = query.shape
    return tile_of_whole(length, _padded(width), query.dtype, images * heads, _capability(query), backward)


def _capability(query):
    """Of the device; that of an H100 in the interpreter."""
    return torch.cuda.get_device_capability(query.device) if query.is_cuda else (9, 0)


def _launch(kernel, matrices, vectors, context, outputs, tile, programs, extra=()):
    """Run a kernel.

    Args:
        programs: how many of them.
        extra: what the kernel takes behind the sizes.
    """
    query = matrices[0]
    images, heads, length, width = query.shape
    strided = [item for m in matrices for item in ((None, 0, 0, 0) if m is None else (m, *m.stride()[:3]))]
    if not query.numel():
        return
    with torch.cuda.device_of(query):  # Triton launches on the current device, whatever the tensors'
        kernel[(programs,)](
            *strided, *vectors, *context.arguments(images, heads), *outputs, heads, length, width, *extra,
            ATTEND_TO_SELF=context.attend_to_self, CAUSAL=int(context.causal), PRECISION=_precision(),
            WIDTH=_padded(width), BLOCK=tile.block, INNER=tile.inner, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip


def _launch_tiles(kernel, matrices, vectors, context, outputs, backward):
    """Run a kernel on a grid of one program for each tile of each head of each image."""
    images, heads, length, width = matrices[0].shape
    tile = tile_of(_padded(width), matrices[0].dtype, _capability(matrices[0]), backward)
    programs = images * heads * triton.cdiv(length, tile.block)
    _launch(kernel, matrices, vectors, context, outputs, tile, programs)


def _like(matrix):
    """An empty (B, H, N, Y) that lies in memory as (B, N, H, Y): the next projection reads it without a copy."""
    images, heads, length, width = matrix.shape
    return matrix.new_empty(images, length, heads, width).transpose(1, 2)


def _per_row(matrix):
    return matrix.new_empty(matrix.shape[:3], dtype=torch.float32)


def _forward_rows(query, key, beta, context):
    by_keys, logsumexp = _like(query), _per_row(query)
    _launch_tiles(kernels.forward_rows, (query, key), (beta,), context, (by_keys, logsumexp), False)
    return by_keys, logsumexp


def _forward_columns(query, key, beta, logsumexp, row_weights, context):
    by_queries = _like(query)
    _launch_tiles(kernels.forward_columns, (query, key), (beta, logsumexp, row_weights), context, (by_queries,), False)
    return by_queries


def _backward_bias(matrices, vectors, context):
    """dbias in float32, in the shape of the bias: no N×N matrix but it is made."""
    bias, (images, heads, length, width) = context.bias, matrices[0].shape
    grad, tile = _empty_bias(bias), tile_of_bias(_padded(width))
    of_images, of_heads = bias.shape[:2]
    programs = of_images * of_heads * triton.cdiv(length, tile.block) * triton.cdiv(length, tile.inner)
    shared = images // of_images, heads // of_heads, of_heads
    _launch(kernels.backward_bias, matrices, vectors, context, (grad,), tile, programs, shared)
    return grad


def _empty_bias(bias):
    """The gradient of a bias, which has no elements where none is wanted."""
    return torch.empty(bias.shape, dtype=torch.float32, device=bias.device)


_CONTEXT = "Tensor? mask, Tensor? tokens, Tensor? bias, bool attend_to_self, bool causal"
_INPUTS = f"Tensor query, Tensor key, Tensor beta, {_CONTEXT}"
_SAVED = f"Tensor query, Tensor key, Tensor beta, Tensor by_keys, Tensor logsumexp, {_CONTEXT}, bool with_bias"


@torch.library.custom_op(
    "energy_transformer::attention", mutates_args=(), schema=f"({_INPUTS}) -> (Tensor, Tensor, Tensor)"
)
def attention_operator(query, key, beta, *context):
    """T1, T2 and L."""
    context, tile = _Context(*context), _whole(query, False)
    if tile is None:
        by_keys, logsumexp = _forward_rows(query, key, beta, context)
        return by_keys, _forward_columns(query, key, beta, logsumexp, None, context), logsumexp
    outputs = _like(query), _like(query), _per_row(query)
    _launch(kernels.forward_whole, (query, key), (beta,), context, outputs, tile, query.shape[0] * query.shape[1])
    return outputs


@attention_operator.register_fake
def _(query, *others):
    return _like(query), _like(query), _per_row(query)


@torch.library.custom_op(
    "energy_transformer::attention_backward",
    mutates_args=(),
    schema=f"(Tensor grad_by_keys, Tensor grad_by_queries, {_SAVED}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def attention_backward_operator(grad_by_keys, grad_by_queries, query, key, beta, by_keys, logsumexp, *others):
    """dq, dk, each row's share of dβ, and dbias, empty where it is not wanted."""
    *context, with_bias = others
    context = _Context(*context)
    grads = (_with_adjacent_elements(grad_by_keys), _with_adjacent_elements(grad_by_queries))
    grad_query, grad_key, row_sums, grad_beta = _like(query), _like(query), _per_row(query), _per_row(query)
    matrices, vectors, tile = (query, key, *grads), (beta, logsumexp, row_sums), _whole(query, True)
    if tile is None:
        of_rows, outputs = (query, key, by_keys, *grads), (grad_query, row_sums, grad_beta)
        _launch_tiles(kernels.backward_rows, of_rows, (beta, logsumexp), context, outputs, True)
        _launch_tiles(kernels.backward_columns, matrices, vectors, context, (grad_key,), True)
    else:
        outputs, programs = (grad_query, grad_key, row_sums, grad_beta), query.shape[0] * query.shape[1]
        _launch(kernels.backward_whole, matrices, (beta, logsumexp), context, outputs, tile, programs)
    grad_bias = _backward_bias(matrices, vectors, context) if with_bias else beta.new_empty(0)
    return grad_query, grad_key, grad_beta, grad_bias


@attention_backward_operator.register_fake
def _(grad_by_keys, grad_by_queries, query, *others):
    return _like_gradients(query, *others)


@torch.library.custom_op("energy_transformer::logsumexp", mutates_args=(), schema=f"({_INPUTS}) -> (Tensor, Tensor)")
def logsumexp_operator(query, key, beta, *context):
    """L, and T1, which is its derivative."""
    by_keys, logsumexp = _forward_rows(query, key, beta, _Context(*context))
    return logsumexp, by_keys


@logsumexp_operator.register_fake
def _(query, *others):
    return _per_row(query), _like(query)


@torch.library.custom_op(
    "energy_transformer::logsumexp_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {_SAVED}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def logsumexp_backward_operator(grad, query, key, beta, by_keys, logsumexp, *others):
    """dq = β dL T1, dk = β Aᵀ (dL q), each row's share of dβ, and dbias = A ∘ dL, empty where it is not wanted."""
    *context, with_bias = others
    context, grad = _Context(*context), grad.contiguous()
    scaled = grad * beta[:, None]
    grad_query = _like(query).copy_(scaled[..., None] * by_keys)
    grad_key = _forward_columns(query, key, beta, logsumexp, scaled, context)
    grad_beta = grad * torch.linalg.vecdot(query.float(), by_keys.float())
    grad_bias = beta.new_empty(0)
    if with_bias:
        grad_bias = _backward_bias((query, key, None, None), (beta, logsumexp, grad), context)
    return grad_query, grad_key, grad_beta, grad_bias


@logsumexp_backward_operator.register_fake
def _(grad, query, *others):
    return _like_gradients(query, *others)


def _like_gradients(query, key, beta, by_keys, logsumexp, mask, tokens, bias, attend_to_self, causal, with_bias):
    grad_bias = _empty_bias(bias) if with_bias else beta.new_empty(0)
    return _like(query), _like(query), _per_row(query), grad_bias


def _refuse(ctx, *grads):
    raise RuntimeError(
        'the fused attention can be differentiated once only; use attn_implementation "eager" for higher derivatives'
    )


def _save(ctx, inputs, by_keys, logsumexp):
    *tensors, ctx.attend_to_self, ctx.causal = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, by_keys, logsumexp)


def _differentiate(ctx, backward, *upstream):
    """The gradients of all inputs, by an operator that takes what [`_save`] saved."""
    query, key, beta, mask, tokens, bias, by_keys, logsumexp = ctx.saved_tensors
    with_bias = bias is not None and ctx.needs_input_grad[5]
    context = mask, tokens, bias, ctx.attend_to_self, ctx.causal
    found = backward(*upstream, query, key, beta, by_keys, logsumexp, *context, with_bias)
    grad_query, grad_key, row_shares, grad_bias = found
    grad_bias = grad_bias.to(bias.dtype) if with_bias else None
    return grad_query, grad_key, row_shares.sum((0, 2)), None, None, grad_bias, None, None


def _attention_backward(ctx, grad_by_keys, grad_by_queries, _):
    query = ctx.saved_tensors[0]
    upstream = [torch.zeros_like(query) if grad is None else grad for grad in (grad_by_keys, grad_by_queries)]
    return _differentiate(ctx, attention_backward_operator, *upstream)


def _logsumexp_backward(ctx, grad, _):
    return _differentiate(ctx, logsumexp_backward_operator, grad)


attention_operator.register_autograd(
    _attention_backward, setup_context=lambda ctx, inputs, output: _save(ctx, inputs, output[0], output[2])
)
logsumexp_operator.register_autograd(
    _logsumexp_backward, setup_context=lambda ctx, inputs, output: _save(ctx, inputs, output[1], output[0])
)
attention_backward_operator.register_autograd(_refuse)
logsumexp_backward_operator.register_autograd(_refuse)
