"""Part d: the block at both sizes, in every way to compute it, beside the definition and LumenPallidium's own code."""

import functools
import statistics
from collections.abc import Callable
from dataclasses import replace

import measure
import torch
import variants

from .record import Row, Run

# What is asked first comes first, for the time may end. "graphs" are CUDA graphs, "tf32" float32 with TF32 products.
NAMES = (
    "eager bf16", "triton bf16", "chunked bf16", "naive bf16", "LumenPallidium bf16",
    "naive tf32", "LumenPallidium tf32", "eager tf32", "triton tf32",
    "naive", "LumenPallidium", "eager", "triton", "chunked",
    "eager bf16 graphs", "triton bf16 graphs", "eager bf16 compiled", "triton bf16 compiled",
)  # fmt: skip
ROUNDS = 7


def names_for(run: Run) -> list[str]:
    """Those that can run here."""
    known = {"naive", *variants.available_backends()} | ({"LumenPallidium"} if run.lumen_checkout else set())
    if not run.lumen_checkout:
        run.note("LumenPallidium is left out: give its folder as --lumen_checkout")
    names = [name for name in NAMES if name.split()[0] in known]
    return [name for name in names if not run.quick or not name.endswith(("compiled", "graphs", "tf32"))]


def size_for(run: Run, name: str) -> variants.Size:
    if run.quick:
        return replace(variants.SIZES[name], batch=2, steps=2)
    return replace(variants.SIZES[name], batch=variants.GPU_BATCH[name], steps=12)


def allow_tf32(allowed: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def step_of(block: torch.nn.Module, x: torch.Tensor, training: bool) -> Callable[[], object]:
    """A training step, for the tokens and the weights, or an inference step. Gradients are given back first, for
    those of a CUDA graph lie where the next replay writes."""
    upstream = torch.randn_like(x)

    def train():
        block.zero_grad(set_to_none=True)
        (block(x.detach().requires_grad_()).float() * upstream).mean().backward()

    @torch.no_grad()
    def infer():
        block(x)

    return train if training else infer


def median_seconds(step: Callable[[], object], device: torch.device, rounds: int) -> float:
    for _ in range(1 if rounds == 1 else 3):  # a CUDA graph is recorded at the second call
        step()
    return statistics.median(measure.seconds(step, device) for _ in range(rounds))


def measured(run: Run, name: str, size: variants.Size, training: bool, rates: dict[str, float]) -> Row:
    allow_tf32(name.endswith("tf32"))
    try:
        block = variants.build(name, size, run.device, run.lumen_checkout)
        step = step_of(block, variants.tokens(size, run.device), training)
        seconds = median_seconds(step, run.device, 1 if run.quick else ROUNDS)
        peak = measure.peak_bytes(step, run.device)
    finally:
        allow_tf32(False)
        torch.compiler.reset()
    kind = "bf16" if "bf16" in name else "tf32" if name.endswith("tf32") else "float32"
    return {
        "ms": 1000 * seconds,
        "images/s": size.batch / seconds,
        "of products in %": 100 * size.operations(training) / seconds / rates[kind],
        "of bf16 products in %": 100 * size.operations(training) / seconds / rates["bf16"],
        "memory in MiB": peak / 2**20,
    }


def product_rates(run: Run) -> dict[str, float]:
    """Operations a second of a large product of random numbers, by the type of its products."""
    rates = {}
    for kind, dtype in (("bf16", torch.bfloat16), ("tf32", torch.float32), ("float32", torch.float32)):
        allow_tf32(kind == "tf32")
        rates[kind] = measure.product_rate(dtype, run.device, ROUNDS)
        run.add("rate of a large product", kind=kind, **{"Tflop/s": rates[kind] / 1e12})
    allow_tf32(False)
    return rates


def copy_rate(run: Run) -> None:
    """Bytes a second, read and written, of a copy on the device."""
    source = torch.empty(2**20 if run.device.type == "cpu" else 2**32, dtype=torch.uint8, device=run.device).random_()
    target = torch.empty_like(source)
    seconds = median_seconds(lambda: target.copy_(source), run.device, ROUNDS)
    run.add("rate of a copy", **{"GB/s read and written": 2 * source.numel() / seconds / 1e9})


def run(run: Run) -> None:
    rates = product_rates(run)
    copy_rate(run)
    for size_name in ("ImageNet", "CIFAR"):
        size = size_for(run, size_name)
        for name in names_for(run):
            for training in (True, False):
                task = "training" if training else "inference"
                names = {"variant": name, "task": task, "batch": size.batch}
                run.attempt(
                    f"the block of the {size_name} size, {size.steps} steps",
                    names,
                    functools.partial(measured, run, name, size, training, rates),
                )
