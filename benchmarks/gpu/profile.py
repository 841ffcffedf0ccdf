"""Part f: the time of a step by operator and kernel, and how many launches it is."""

import functools

import torch
import variants
from torch.profiler import ProfilerActivity

from .blocks import median_seconds, size_for, step_of
from .record import Run

NAMES = ("eager bf16", "triton bf16", "eager bf16 compiled", "eager bf16 graphs", "triton bf16 graphs")
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernelEx", "cudaGraphLaunch")
STEPS = 3


def profiled(run: Run, name: str, size_name: str, training: bool) -> dict:
    """Adds a table of the kernels of a step; the launches of one."""
    size = size_for(run, size_name)
    block = variants.build(name, size, run.device, None)
    step = step_of(block, variants.tokens(size, run.device), training)
    seconds = median_seconds(step, run.device, 1 if run.quick else 5)
    on_device = run.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_device
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(STEPS):
            step()
        if on_device:
            torch.cuda.synchronize()
    events = profile.key_averages()
    task = "training" if training else "inference"
    _add_kernels(run, f"{size_name}, {name}, {task}, a step", events, on_device)
    torch.compiler.reset()
    counts = {event.key: event.count / STEPS for event in events if event.key in LAUNCHES}
    return {"ms": 1000 * seconds, "launches": sum(counts.values()), "of graphs": counts.get("cudaGraphLaunch", 0.0)}


def _add_kernels(run: Run, table: str, events, on_device: bool) -> None:
    def own_time(event) -> float:  # in microseconds
        return event.self_device_time_total if on_device else event.self_cpu_time_total

    if on_device:  # the kernels themselves, not the operators that launched them
        events = [event for event in events if event.device_type != torch.autograd.DeviceType.CPU]
        events = [event for event in events if not event.key.startswith("##")]  # the graphs around them
    total = sum(own_time(event) for event in events) or 1.0
    for event in sorted(events, key=own_time, reverse=True)[: 5 if run.quick else 14]:
        run.add(
            table,
            kernel=event.key[:80],
            calls=event.count / STEPS,
            ms=own_time(event) / 1000 / STEPS,
            **{"of all in %": 100 * own_time(event) / total},
        )


def run(run: Run) -> None:
    known = set(variants.available_backends())
    for name in NAMES:
        if name.split()[0] not in known or (run.quick and name.endswith(("compiled", "graphs"))):
            continue
        for size_name in ("ImageNet", "CIFAR"):
            for training in (True,) if run.quick or name.endswith("compiled") else (True, False):
                names = {"size": size_name, "variant": name, "training": training}
                run.attempt("launches of a step", names, functools.partial(profiled, run, name, size_name, training))
