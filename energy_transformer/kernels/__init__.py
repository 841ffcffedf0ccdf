"""Fused kernels for CUDA devices, each held to the eager form by `tests/test_kernels.py`.

They import nothing of the package; `attention_backends` imports them when their backend is asked for by name.
"""

import importlib.util
from collections.abc import Callable

import torch

if importlib.util.find_spec("triton") is None:
    raise ImportError("the package triton is missing (pip install triton)")

from .energy_attention import triton_attention, triton_logsumexp


def fused_attention() -> tuple[Callable, Callable]:
    """Both terms of the attention's gradient, and its logsumexp, as functions of queries, keys, beta and a context.

    Raises:
        ImportError: where the kernels cannot run: without a CUDA device, on AMD's, and on those older than compute
            capability 8.0.
    """
    if not torch.cuda.is_available():
        raise ImportError("there is no CUDA device")
    if torch.version.hip is not None:
        raise ImportError("the kernels were made for NVIDIA devices, and this is one of AMD")
    if torch.cuda.get_device_capability() < (8, 0):
        raise ImportError("the kernels need a device of compute capability 8.0 or newer")
    return _of_context(triton_attention), _of_context(triton_logsumexp)


def _of_context(kernel: Callable) -> Callable:
    def run(query, key, beta, context):
        masks = context.pairs, context.tokens, context.attend_to_self
        return kernel(query, key, beta, *masks, context.bias, context.causal)

    return run


__all__ = ["fused_attention", "triton_attention", "triton_logsumexp"]
