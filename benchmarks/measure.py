"""Time, peak memory and the speed of matrix products, on a CPU or a GPU."""

import gc
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch


def machine_name(device: torch.device) -> str:
    """The GPU, or the model, the instruction set and the number of threads of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_cpu_model()}, {torch.backends.cpu.get_cpu_capability()}, {threads} thread{'s' * (threads > 1)}"


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    model = fields.get("model name", platform.machine())
    return f"{model} (family {fields.get('cpu family')}, model {fields.get('model')})"


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Of one call: CUDA events on a GPU, the clock otherwise."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000
    start_time = time.perf_counter()
    function()
    return time.perf_counter() - start_time


def interleaved(functions: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each function, after one call to warm up, one after the other in every round."""
    for function in functions.values():
        function()
    times = [{name: seconds(function, device) for name, function in functions.items()} for _ in range(rounds)]
    return {name: statistics.median(measured[name] for measured in times) for name in functions}


def peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    """The most that the tensors of a call hold, above what was held before it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = [event for event in json.loads(trace.read_text())["traceEvents"] if event["name"] == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


def available_bytes(device: torch.device) -> int:
    """Free memory of the device, or of the machine (unknown counts as endless)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    info = Path("/proc/meminfo")
    if not info.exists():
        return sys.maxsize
    return 1024 * int(next(line.split()[1] for line in info.read_text().splitlines() if "MemAvailable" in line))


def product_rate(dtype: torch.dtype, device: torch.device, rounds: int) -> float:
    """Operations a second of a large product of square matrices."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / interleaved({"product": lambda: left @ right}, max(5, rounds), device)["product"]
