"""What FSDP2 needs beside a launch file."""

import os

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin


def is_sharded(accelerator: Accelerator) -> bool:
    return accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


def shard_on_cpu(accelerator: Accelerator) -> None:
    """Turn on the FSDP2 of a launch file on the CPU too, where Accelerate would silently take DDP in its place."""
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if asked and accelerator.distributed_type == DistributedType.MULTI_CPU:
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        for state in (PartialState(), accelerator.state):
            state.distributed_type = DistributedType.FSDP


def scalars_to_vectors(model: torch.nn.Module) -> set[str]:
    """Make each scalar parameter one of shape (1,), since `fully_shard` takes no scalars; returns their names."""
    names = set()
    for prefix, module in model.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.ndim == 0:
                vector = torch.nn.Parameter(parameter.detach().reshape(1), parameter.requires_grad)
                setattr(module, name, vector)
                names.add(f"{prefix}.{name}".removeprefix("."))
    return names


def vectors_to_scalars(weights: dict[str, torch.Tensor], names: set[str]) -> dict[str, torch.Tensor]:
    """The weights in the shapes that the model has by itself."""
    return {name: weight.reshape(()) if name in names else weight for name, weight in weights.items()}
