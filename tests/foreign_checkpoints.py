"""Reference files, and checkpoint files as the other implementations write them."""

import argparse
import json
from pathlib import Path

import msgpack
import numpy as np
import torch

REFERENCE = Path(__file__).parent / "reference"


def load_reference(name: str) -> dict:
    """The float64 and integer arrays of a reference file as tensors; `config` holds its settings."""
    with np.load(REFERENCE / name) as arrays:
        ref = {key: torch.from_numpy(np.array(arrays[key])) for key in arrays.files if key != "meta_json"}
        ref["config"] = json.loads(str(arrays["meta_json"]))["config"] if "meta_json" in arrays.files else {}
    return ref


def with_prefix(ref: dict, *prefixes: str) -> dict[str, torch.Tensor]:
    """The arrays whose names start with one of the prefixes, without it."""
    return {key.removeprefix(p): value for p in prefixes for key, value in ref.items() if key.startswith(p)}


def seed_state(ref: dict) -> dict[str, torch.Tensor]:
    return with_prefix(ref, "state.", "state_dict/")


lemon_state = seed_state


def flax_tree(ref: dict) -> dict:
    """The nested parameters of a flax reference file."""
    tree: dict = {}
    for name, value in with_prefix(ref, "param/", "param.").items():
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
