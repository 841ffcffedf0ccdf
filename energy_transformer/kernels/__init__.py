"""Fused kernels for CUDA devices, each held to the eager form by `tests/test_kernels.py`."""

import importlib.util

if importlib.util.find_spec("triton") is None:
    raise ImportError(
        "the fused energy attention needs the package triton (pip install triton); "
        'use attn_implementation "eager" or "chunked" without it'
    )

from .energy_attention import triton_attention, triton_logsumexp

__all__ = ["triton_attention", "triton_logsumexp"]
