"""Part c: a model trained by every backend in every precision, and how far its loss is from what a seed changes."""

import functools
import itertools
import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor
from variants import available_backends

from energy_transformer import EnergyTransformerConfig, EnergyTransformerForMaskedImageModeling

from .record import Row, Run

# from what must hold to what takes long: every graph is compiled anew
MODES = {
    "float32": {},
    "bf16 autocast": {"autocast": torch.bfloat16},
    "bf16 weights": {"weights": torch.bfloat16},
    "fp16 autocast, scaled": {"autocast": torch.float16, "scaled": True},
    "bf16 compiled": {"autocast": torch.bfloat16, "compiled": "default"},
    "bf16 CUDA graphs": {"autocast": torch.bfloat16, "compiled": "reduce-overhead"},
    "float32 compiled": {"compiled": "default"},
}


@dataclass
class Task:
    """The model and its training, small enough for some twenty runs."""

    steps: int
    batch: int
    dim: int = 128
    descent: int = 4

    def config(self) -> EnergyTransformerConfig:
        return EnergyTransformerConfig(
            image_size=32, patch_size=4, hidden_size=self.dim, num_attention_heads=4, head_dim=32,
            intermediate_size=4 * self.dim, num_steps=self.descent, step_size=0.5, initialization="scaled",
        )  # fmt: skip


def batches(task: Task, seed: int, device: torch.device):
    """Smooth images (B, 3, 32, 32) and masks (B, 64), without an end, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        coarse = torch.randn(task.batch, 3, 5, 5, generator=generator)
        images = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic")
        yield images.to(device), (torch.rand(task.batch, 64, generator=generator) < 0.5).to(device)


def losses(task: Task, backend: str, seed: int, device, autocast=None, weights=None, scaled=False, compiled=None):
    """The loss of every step, (steps,), and the milliseconds of a later step."""
    torch.manual_seed(seed)
    model = EnergyTransformerForMaskedImageModeling(task.config()).to(device, weights).train()
    model.set_attn_implementation(backend)
    called = torch.compile(model, mode=compiled) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(device.type, enabled=scaled)
    found: list[Tensor] = []
    started = time.perf_counter()
    for number, (images, mask) in enumerate(itertools.islice(batches(task, seed, device), task.steps)):
        if number == task.steps // 2:
            _wait(device)
            started = time.perf_counter()
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            loss = called(images.to(weights), bool_masked_pos=mask).loss
        scaler.scale(loss).backward()
        found.append(loss.detach().clone())  # a CUDA graph writes the next one in its place
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
    _wait(device)
    seconds = (time.perf_counter() - started) / (task.steps - task.steps // 2)
    torch.compiler.reset()
    return torch.stack(found).float().cpu(), 1000 * seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def end_of(curve: Tensor) -> float:
    return curve[-max(1, len(curve) // 10) :].mean().item()


def run(run: Run) -> None:
    task = Task(steps=8, batch=4, dim=32, descent=2) if run.quick else Task(steps=200, batch=64)
    curves = [losses(task, "eager", seed, run.device)[0] for seed in range(3 if run.quick else 5)]
    ends = [end_of(curve) for curve in curves]
    spread = max(ends) - min(ends)
    for seed, (curve, end) in enumerate(zip(curves, ends, strict=True)):
        run.add("eager in float32, by seed", seed=seed, first=curve[0].item(), end=end)
    run.note(f"a run passes when its end is at most {spread:.4g} from that of eager in float32, as far as seeds differ")
    run.note(f"standard deviation over seeds: {statistics.stdev(ends):.4g}")
    for (mode, options), backend in itertools.product(MODES.items(), available_backends()):
        if run.quick and "compiled" in options:
            continue
        measure = functools.partial(compare, task, backend, options, curves[0], spread, run.device)
        run.attempt("losses", {"mode": mode, "backend": backend}, measure)


def compare(task: Task, backend: str, options: dict, reference: Tensor, spread: float, device) -> Row:
    started = time.perf_counter()
    curve, milliseconds = losses(task, backend, 0, device, **options)
    end, away = end_of(curve), (curve - reference).abs()
    passed = bool(curve.isfinite().all()) and abs(end - end_of(reference)) <= spread
    return {
        "end": end,
        "from eager float32": end - end_of(reference),
        "largest of a step": away.max().item(),
        "ms a step": milliseconds,
        "seconds": time.perf_counter() - started,
        "result": "passed" if passed else "failed",
    }
