"""What a run ran on, in words."""

import platform
from pathlib import Path

import torch


def device_name(device: torch.device) -> str:
    """Name of a GPU or of the processor, such as "NVIDIA H100 80GB HBM3"; the device's type where it is not known."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _processor_name() or device.type


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
