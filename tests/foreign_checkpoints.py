"""Checkpoint files as the other implementations write them."""

import argparse

import msgpack
import numpy as np
import torch
from reference_numbers import under


def lumen_state(ref: dict) -> dict[str, torch.Tensor]:
    return under(ref, "state.", "state_dict/")


lemon_state = lumen_state


def flax_tree(ref: dict) -> dict:
    """The nested parameters of a flax reference file."""
    tree: dict = {}
    for name, value in under(ref, "param/", "param.").items():
        *path, last = name.split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value.numpy()
    return tree


def flax_bytes(tree: dict) -> bytes:
    """What `flax.serialization.to_bytes` makes of nested dicts of arrays; a tensor stands for a bfloat16 array."""

    def extension(value):
        if isinstance(value, torch.Tensor):
            data = value.view(torch.int16).numpy().tobytes()
            return msgpack.ExtType(1, msgpack.packb((tuple(value.shape), "bfloat16", data)))
        if isinstance(value, np.ndarray | np.generic):
            array = np.asarray(value)
            code = 1 if isinstance(value, np.ndarray) else 3
            return msgpack.ExtType(code, msgpack.packb((array.shape, array.dtype.name, array.tobytes())))
        if isinstance(value, complex):
            return msgpack.ExtType(2, msgpack.packb((value.real, value.imag)))
        raise TypeError(type(value))

    return msgpack.packb(tree, default=extension, strict_types=True)


def lemon_training_file(state: dict[str, torch.Tensor], **args) -> dict:
    """What Lemon-cmd's `train.py` saves."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=10)
    return {
        "epoch": 3,
        "model": state,
        "scheduler": scheduler.state_dict(),
        "opt": optimizer.state_dict(),
        "args": argparse.Namespace(**args),
    }
