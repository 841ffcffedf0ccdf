"""The fused energy attention as torch operators: they compile without graph breaks and differentiate once.

The mathematics, and the layout that the kernels expect, are in [`triton_kernels`].
"""

import torch
import triton
from torch import Tensor

from . import triton_kernels as kernels

MAX_HEAD_WIDTH = 128
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def triton_attention(
    query: Tensor,
    key: Tensor,
    beta: float | Tensor,
    mask: Tensor | None = None,
    tokens: Tensor | None = None,
    attend_to_self: bool = True,
) -> tuple[Tensor, Tensor]:
    """A k and Aᵀ q, with A = softmax over the rows of β q kᵀ, in memory that grows linearly with N.

    Args:
        query, key (`torch.Tensor` of shape `(..., H, N, Y)`):
            bfloat16, float16 or float32, Y at most 128. No copy is made of the layout (B, N, H, Y) seen as
            (B, H, N, Y), which is also that of the results.
        beta (`float` or `torch.Tensor` of shape `(H,)` or `(1,)`).
        mask (`torch.BoolTensor` broadcastable to `(..., N, N)`, *optional*): True where the row may attend.
        tokens (`torch.BoolTensor` broadcastable to `(..., N)`, *optional*): False for padding, neither row nor column.
        attend_to_self: False leaves the diagonal out.

    Returns:
        `A k` and `Aᵀ q` in the dtype of the queries; zero for a row without any allowed column. Products are
        accumulated in float32. Those of float32 inputs are computed in TF32 where torch allows it
        (`torch.backends.cuda.matmul.allow_tf32`), otherwise as the sum of three TF32 products, whose error is near
        that of float32.

    Raises:
        ValueError: for another dtype, device or width, and for masks that are not boolean.
        RuntimeError: when differentiated twice.
    """
    arguments = _check(query, key, beta, mask, tokens)
    by_keys, by_queries, _ = attention_operator(*arguments, attend_to_self)
    return by_keys.reshape(query.shape), by_queries.reshape(query.shape)


def triton_logsumexp(
    query: Tensor,
    key: Tensor,
    beta: float | Tensor,
    mask: Tensor | None = None,
    tokens: Tensor | None = None,
    attend_to_self: bool = True,
) -> Tensor:
    """Row logsumexp of the scores, (..., H, N) in float32; 0 for a row without any allowed column.

    Arguments and errors as for [`triton_attention`].
    """
    arguments = _check(query, key, beta, mask, tokens)
    return logsumexp_operator(*arguments, attend_to_self)[0].reshape(query.shape[:-1])


def _check(query, key, beta, mask, tokens):
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
    query, key = (_with_adjacent_elements(x.reshape(-1, *x.shape[-3:])) for x in (query, key))
    return query, key, beta.float().expand(heads).contiguous(), mask, tokens


def _with_adjacent_elements(matrix):
    return matrix if matrix.stride(-1) == 1 else matrix.contiguous()


def _tile(width, dtype, backward):
    """Rows and inner columns of a tile (or columns and inner rows), warps and stages.

    The largest that ptxas compiles for sm_90 without spilling registers; float32 alone spills, at Y > 64.
    """
    if dtype == torch.float32:
        return (64, 32, 4, 2) if width <= 32 or (width <= 64 and not backward) else (16, 32, 4, 2)
    if width == 128:
        return 64, 32, 8, 2
    return 64, 32 if backward and width == 64 else 64, 4, 2


def _precision():
    matmul = torch.backends.cuda.matmul
    setting = getattr(matmul, "fp32_precision", None)  # torch before 2.9 has allow_tf32 alone
    allowed = matmul.allow_tf32 if setting is None else setting == "tf32"
    return "tf32" if allowed else "tf32x3"


def _launch(kernel, matrices, vectors, mask, tokens, outputs, attend_to_self, backward):
    """Run a kernel on a grid of one program for each tile of each head of each image."""
    images, heads, length, width = matrices[0].shape
    padded = max(16, triton.next_power_of_2(width))
    block, inner, warps, stages = _tile(padded, matrices[0].dtype, backward)
    strided = [item for matrix in matrices for item in (matrix, *matrix.stride()[:3])]
    masked = (None, 0, 0, 0) if mask is None else (mask.view(torch.uint8), *mask.stride())
    padding = (None, 0) if tokens is None else (tokens.contiguous().view(torch.uint8), length)
    programs = images * heads * triton.cdiv(length, block)
    if not programs:
        return
    with torch.cuda.device_of(matrices[0]):  # Triton launches on the current device, whatever the tensors'
        kernel[(programs,)](
            *strided, *vectors, *masked, *padding, *outputs, heads, length, width,
            ATTEND_TO_SELF=attend_to_self, PRECISION=_precision(), WIDTH=padded, BLOCK=block, INNER=inner,
            num_warps=warps, num_stages=stages,
        )  # fmt: skip


def _like(matrix):
    """An empty (B, H, N, Y) that lies in memory as (B, N, H, Y): the next projection reads it without a copy."""
    images, heads, length, width = matrix.shape
    return matrix.new_empty(images, length, heads, width).transpose(1, 2)


def _per_row(matrix):
    return matrix.new_empty(matrix.shape[:3], dtype=torch.float32)


def _forward_rows(query, key, beta, mask, tokens, attend_to_self):
    by_keys, logsumexp = _like(query), _per_row(query)
    outputs = (by_keys, logsumexp)
    _launch(kernels.forward_rows, (query, key), (beta,), mask, tokens, outputs, attend_to_self, False)
    return outputs


def _forward_columns(query, key, beta, logsumexp, row_weights, mask, tokens, attend_to_self):
    by_queries = _like(query)
    vectors = (beta, logsumexp, row_weights)
    _launch(kernels.forward_columns, (query, key), vectors, mask, tokens, (by_queries,), attend_to_self, False)
    return by_queries


@torch.library.custom_op("energy_transformer::attention", mutates_args=())
def attention_operator(
    query: Tensor, key: Tensor, beta: Tensor, mask: Tensor | None, tokens: Tensor | None, attend_to_self: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """T1, T2 and L."""
    by_keys, logsumexp = _forward_rows(query, key, beta, mask, tokens, attend_to_self)
    by_queries = _forward_columns(query, key, beta, logsumexp, None, mask, tokens, attend_to_self)
    return by_keys, by_queries, logsumexp


@attention_operator.register_fake
def _(query, key, beta, mask, tokens, attend_to_self):
    return _like(query), _like(query), _per_row(query)


@torch.library.custom_op("energy_transformer::attention_backward", mutates_args=())
def attention_backward_operator(
    grad_by_keys: Tensor,
    grad_by_queries: Tensor,
    query: Tensor,
    key: Tensor,
    beta: Tensor,
    mask: Tensor | None,
    tokens: Tensor | None,
    by_keys: Tensor,
    logsumexp: Tensor,
    attend_to_self: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and each row's share of dβ."""
    grads = (_with_adjacent_elements(grad_by_keys), _with_adjacent_elements(grad_by_queries))
    grad_query, grad_key, row_sums, grad_beta = _like(query), _like(query), _per_row(query), _per_row(query)
    matrices, outputs = (query, key, by_keys, *grads), (grad_query, row_sums, grad_beta)
    _launch(kernels.backward_rows, matrices, (beta, logsumexp), mask, tokens, outputs, attend_to_self, True)
    matrices, vectors = (query, key, *grads), (beta, logsumexp, row_sums)
    _launch(kernels.backward_columns, matrices, vectors, mask, tokens, (grad_key,), attend_to_self, True)
    return grad_query, grad_key, grad_beta


@attention_backward_operator.register_fake
def _(grad_by_keys, grad_by_queries, query, *others):
    return _like(query), _like(query), _per_row(query)


@torch.library.custom_op("energy_transformer::logsumexp", mutates_args=())
def logsumexp_operator(
    query: Tensor, key: Tensor, beta: Tensor, mask: Tensor | None, tokens: Tensor | None, attend_to_self: bool
) -> tuple[Tensor, Tensor]:
    """L, and T1, which is its derivative."""
    by_keys, logsumexp = _forward_rows(query, key, beta, mask, tokens, attend_to_self)
    return logsumexp, by_keys


@logsumexp_operator.register_fake
def _(query, key, beta, mask, tokens, attend_to_self):
    return _per_row(query), _like(query)


@torch.library.custom_op("energy_transformer::logsumexp_backward", mutates_args=())
def logsumexp_backward_operator(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    beta: Tensor,
    mask: Tensor | None,
    tokens: Tensor | None,
    by_keys: Tensor,
    logsumexp: Tensor,
    attend_to_self: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq = β dL T1, dk = β Aᵀ (dL q), and each row's share of dβ."""
    grad = grad.contiguous()
    scaled = grad * beta[:, None]
    grad_query = _like(query).copy_(scaled[..., None] * by_keys)
    grad_key = _forward_columns(query, key, beta, logsumexp, scaled, mask, tokens, attend_to_self)
    return grad_query, grad_key, grad * torch.linalg.vecdot(query.float(), by_keys.float())


@logsumexp_backward_operator.register_fake
def _(grad, query, *others):
    return _like(query), _like(query), _per_row(query)


def _refuse(ctx, *grads):
    raise RuntimeError(
        'the fused attention can be differentiated once only; use attn_implementation "eager" for higher derivatives'
    )


def _save(ctx, inputs, by_keys, logsumexp):
    *tensors, ctx.attend_to_self = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, by_keys, logsumexp)


def _grads(query, key, row_shares):
    return query, key, row_shares.sum((0, 2)), None, None, None


def _attention_backward(ctx, grad_by_keys, grad_by_queries, _):
    query = ctx.saved_tensors[0]
    grads = [torch.zeros_like(query) if grad is None else grad for grad in (grad_by_keys, grad_by_queries)]
    return _grads(*attention_backward_operator(*grads, *ctx.saved_tensors, ctx.attend_to_self))


def _logsumexp_backward(ctx, grad, _):
    return _grads(*logsumexp_backward_operator(grad, *ctx.saved_tensors, ctx.attend_to_self))


attention_operator.register_autograd(
    _attention_backward, setup_context=lambda ctx, inputs, output: _save(ctx, inputs, output[0], output[2])
)
logsumexp_operator.register_autograd(
    _logsumexp_backward, setup_context=lambda ctx, inputs, output: _save(ctx, inputs, output[1], output[0])
)
attention_backward_operator.register_autograd(_refuse)
logsumexp_backward_operator.register_autograd(_refuse)
