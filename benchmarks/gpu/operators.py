"""Part d: one call of the attention, A k and Aᵀ q of (B, H, N, Y) queries and keys, forward and backward.

Beside it, what is to be had: torch's flash attention of (q, k, v = k), whose gradient with respect to v for the
upstream gradient q is Aᵀ q, but which has no second backward, and the operators of two packages for energies, which
compute A k alone (ebt's for two streams of tokens at once).
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from variants import available_backends

from energy_transformer.attention_backends import attention_backend
from energy_transformer.context import EnergyContext

from .blocks import median_seconds
from .record import Row, Run

Attention = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
SHAPES = {
    "ImageNet": (256, 12, 197, 64),
    "ImageNet, 256 tokens": (256, 12, 256, 64),
    "CIFAR": (1024, 8, 64, 32),
    "long": (2, 12, 4096, 64),
}


def ours(name: str) -> Attention:
    def terms(query, key):
        return attention_backend(name, query).attention(query, key, query.shape[-1] ** -0.5, EnergyContext())

    return terms


FUSED = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]


def _fused(query: Tensor):
    """The context in which torch takes none but fused attention; on a CPU it has no backward of its own."""
    return sdpa_kernel(FUSED if query.device.type == "cuda" else [SDPBackend.MATH])


def flash(query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    """A k alone."""
    with _fused(query):
        return (F.scaled_dot_product_attention(query, key, key),)


def flash_both(query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    """A k, and Aᵀ q through the backward pass of the same attention."""
    value = key.detach().requires_grad_()
    with torch.enable_grad(), _fused(query):
        by_keys = F.scaled_dot_product_attention(query.detach(), key.detach(), value)
        (by_queries,) = torch.autograd.grad(by_keys, value, query.detach())
    return by_keys.detach(), by_queries


def jvp_flash(query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    attention = importlib.import_module("jvp_flash_attention.jvp_attention").attention
    return (attention(query, key, key),)


def ebt_flash(query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    attention = importlib.import_module("ebt_flash_attention.ebt_attention").EBTAttn.fwd
    return attention(query, key, key, query, key, key)


def in_tiles(query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    """The kernels in tiles, also where those of whole heads would be taken."""
    from energy_transformer.kernels import tiles

    with tiles.pinned(whole=False):
        return ours("triton")(query, key)


# what they compute, and whether it can be differentiated
WAYS: dict[str, tuple[Attention, str, bool]] = {
    "triton": (ours("triton"), "A k, Aᵀ q", True),
    "triton in tiles": (in_tiles, "A k, Aᵀ q", True),
    "eager": (ours("eager"), "A k, Aᵀ q", True),
    "chunked": (ours("chunked"), "A k, Aᵀ q", True),
    "flash attention": (flash, "A k", True),
    "flash attention and its backward": (flash_both, "A k, Aᵀ q", False),
}
PACKAGES: dict[str, tuple[Attention, str, bool]] = {
    "jvp_flash_attention": (jvp_flash, "A k", True),
    "ebt_flash_attention": (ebt_flash, "A k of two streams", True),
}


def inputs(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Queries and keys as the model has them: (B, N, H, Y) seen as (B, H, N, Y)."""
    images, heads, length, width = shape
    made = torch.randn(images, length, 2, heads, width, device=device).to(dtype)
    query, key = (tensor.transpose(1, 2) for tensor in made.unbind(2))
    return query, key


def measured(way: Attention, shape, dtype: torch.dtype, differentiable: bool, run: Run) -> Row:
    query, key = inputs(shape, dtype, run.device)
    rounds = 1 if run.quick else 21
    with torch.no_grad():
        exact = ours("eager")(*(tensor[:1].double() for tensor in (query, key)))
        found = way(query, key)
        error = max(
            ((have[:1].double() - want).norm() / want.norm()).item() for have, want in zip(found, exact, strict=False)
        )
        row = {"forward in ms": 1000 * median_seconds(lambda: way(query, key), run.device, rounds), "error": error}
    if differentiable:
        query, key = query.detach().requires_grad_(), key.detach().requires_grad_()
        upstream = [torch.randn_like(tensor) for tensor in way(query, key)]

        def both():
            torch.autograd.grad(way(query, key), (query, key), upstream)

        row["forward and backward in ms"] = 1000 * median_seconds(both, run.device, rounds)
    return row


def run(run: Run) -> None:
    names = {"eager", *available_backends()}
    known = {way: found for way, found in WAYS.items() if way.split()[0] in {*names, "flash"}}
    for dtype in (torch.bfloat16,) if run.quick else (torch.bfloat16, torch.float32):
        for shape in SHAPES:
            add_rows(run, known, shape, dtype)


def run_packages(run: Run) -> None:
    """In bfloat16 alone, for ebt's tries dozens of kernels for each shape; jvp's needs whole tiles of 32 tokens."""
    for name, way in PACKAGES.items():
        if importlib.util.find_spec(name) is None:
            run.note(f"the package {name} is missing: `make gpu-wheels` fetches it, --wheels takes it along")
            continue
        for shape in ("ImageNet, 256 tokens", "long", "CIFAR"):
            add_rows(run, {name: way}, shape, torch.bfloat16)


def add_rows(run: Run, ways: dict[str, tuple[Attention, str, bool]], shape_name: str, dtype: torch.dtype) -> None:
    images, heads, length, width = SHAPES[shape_name]
    shape = (1, 2, min(length, 64), width) if run.quick else (images, heads, length, width)
    for way, (function, terms, differentiable) in ways.items():
        names = {"shape": shape_name, "(B, H, N, Y)": shape, "way": way, "computes": terms}
        measure = functools.partial(measured, function, shape, dtype, differentiable, run)
        run.attempt(f"one attention in {dtype}", names, measure)
