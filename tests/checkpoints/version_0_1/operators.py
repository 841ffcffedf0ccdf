"""Operators of our own, which `torch.compile` calls and does not look into, and where they cannot be called."""

import re
from collections.abc import Callable

import torch

# A checkpoint's copy of this file, which transformers imports under another name, has operators of its own as well.
_NAMESPACE = re.sub(r"[^A-Za-z0-9_]", "_", f"_{__name__}")


def define_operator(function: Callable, schema: str, fake: Callable):
    """`function` as an operator of that schema; `fake` gives the shapes and dtypes of what it returns."""
    name = f"{_NAMESPACE}::{function.__name__.lstrip('_')}"
    operator = torch.library.custom_op(name, function, mutates_args=(), schema=schema)
    operator.register_fake(fake)
    return operator


def _not_by_dynamo() -> bool:
    return not torch.compiler.is_dynamo_compiling()


# torch before 2.7 cannot tell a strict export from a compilation
_is_exporting = getattr(torch.compiler, "is_exporting", _not_by_dynamo)


def only_plain_operators() -> bool:
    """Whether torch's own operators alone will do: within a transform of `torch.func`, forward-mode differentiation,
    or an export to a graph without our code."""
    if torch.compiler.is_compiling():
        return _is_exporting() or torch._C._are_functorch_transforms_active()
    forward_mode = torch.autograd.forward_ad._current_level >= 0
    return forward_mode or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()
