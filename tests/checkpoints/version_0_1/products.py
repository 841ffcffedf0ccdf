"""Matrix products of tokens with weights, which are nearly all that a descent computes.

For float32 on a CPU torch multiplies with a BLAS, MKL in its x86 builds, and keeps oneDNN, which it ships too, for
convolutions and half precision. Of large products oneDNN is the faster one, so they go there. Both compute in float32;
`torch.backends.mkldnn.flags(enabled=False)` leaves all of them to the BLAS.
"""

import torch
from torch.nn import functional as F

from .operators import define_operator, only_plain_operators

_LEAST_MULTIPLICATIONS = 2**26  # where both are equally fast; below 2**23 the call itself costs a third more
_LEAST_WIDTH = 512  # of what a transposed left factor is multiplied with, for it is copied first
_ONEDNN = (
    torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    and torch.backends.cpu.get_cpu_capability().startswith("AVX")
)


def _onednn_product(left, right, total):
    linear = torch.ops.mkldnn._linear_pointwise  # what graphs compiled by torch call
    if total is None:
        return linear(left, right.mT, None, "none", [], "")
    return linear.binary(left, total, right.mT, None, "add")


_onednn_operator = define_operator(
    _onednn_product,
    "(Tensor left, Tensor right, Tensor? total) -> Tensor",
    lambda left, right, total: left.new_empty(left.shape[0], right.shape[1]),
)


def _save_factors(ctx, inputs, output):
    left, right, _ = inputs
    ctx.save_for_backward(left, right)


def _backward(ctx, upstream):
    left, right = ctx.saved_tensors
    needs_left, needs_right, needs_total = ctx.needs_input_grad
    grad_left = product(upstream, right.mT) if needs_left else None
    grad_right = _gradient_of_right(left, right, upstream) if needs_right else None
    return grad_left, grad_right, upstream if needs_total else None


_onednn_operator.register_autograd(_backward, setup_context=_save_factors)


def _gradient_of_right(left, right, upstream):
    """`leftᵀ @ upstream`, laid out in memory as `right` is, so that the gradients of all steps add up quickly."""
    if right.is_contiguous():
        return product(left.mT, upstream)
    return product(upstream.mT, left).mT


def _is_large(left, right) -> bool:
    wide = right.shape[1] >= _LEAST_WIDTH or left.is_contiguous()
    return wide and left.numel() * right.shape[1] >= _LEAST_MULTIPLICATIONS


def _goes_to_onednn(left, right) -> bool:
    if not (_ONEDNN and left.is_cpu and left.dtype == right.dtype == torch.float32):
        return False
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if not traced and not _is_large(left, right):
        return False  # first of all, for the sake of small blocks; in a trace it would tie the graph to the batch
    if only_plain_operators() or torch.is_autocast_enabled("cpu") or not torch.backends.mkldnn.enabled:
        return False
    # after dynamo, a compilation works on tensors of subclasses of its own
    lowering = torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()
    if not lowering and any(type(matrix) not in (torch.Tensor, torch.nn.Parameter) for matrix in (left, right)):
        return False
    return _is_large(left, right)  # a graph for any batch is compiled anew for one on the other side of the line


def product(
    left: torch.Tensor, right: torch.Tensor, total: torch.Tensor | None = None, *, transposed: bool = False
) -> torch.Tensor:
    """`left @ right`, plus `total` when given; differentiable any number of times.

    Args:
        left (`torch.Tensor` of shape `(R, K)`).
        right (`torch.Tensor` of shape `(K, D)`), of the same dtype.
        total (`torch.Tensor` of shape `(R, D)`, *optional*).
        transposed: `right` has shape (D, K), and its transpose is meant. Of a parameter that is not transposed before,
            autocast keeps its copy in half precision for the steps to come.

    Returns:
        `torch.Tensor` of shape `(R, D)`, and no view, so that it may be changed in place.
    """
    matrix = right.mT if transposed else right
    if _goes_to_onednn(left, matrix):
        return _onednn_operator(left, matrix, total)
    if total is None:
        return F.linear(left, right) if transposed else left @ right
    if torch.compiler.is_compiling():
        return total + left @ matrix  # the compiler fuses the sum
    return torch.addmm(total, left, matrix)
