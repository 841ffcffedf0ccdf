"""Names and shapes of a foreign checkpoint against what its origin is known to write.

Every tensor of the file must have its place, every place its tensor, and the sizes must agree with each other.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from ..errors import UserError
from .readers import ForeignFile

TRAINING_STATE = ("args", "epoch", "opt", "opt_state", "optimizer", "optimizer_state_dict", "scheduler", "step")


class Slot(NamedTuple):
    """Where a tensor goes.

    Attributes:
        target: name in our model.
        sizes: its axes in the file, as letters or numbers: `"H Y D"`, `"1 1 D"`, `""` for a scalar.
        change: applied to the tensor before it is reshaped to the parameter.
    """

    target: str
    sizes: str
    change: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.contiguous


def transpose(tensor: torch.Tensor) -> torch.Tensor:
    """A flax or equinox kernel (in, out) as a `torch.nn.Linear` weight (out, in)."""
    return tensor.T.contiguous()


def split_training_state(file: ForeignFile) -> tuple[dict[str, torch.Tensor], dict[str, object], list[str]]:
    """The model's tensors; the plain values of the training state; and the names of what is left out.

    Raises:
        UserError: for a value beside the training state that is no tensor.
    """
    top_level = {name: name.split(".")[0] for name in (*file.tensors, *file.others)}
    state = {name for name, top in top_level.items() if top in TRAINING_STATE}
    unknown = [name for name in file.others if name not in state]
    if unknown:
        raise UserError(
            f"source {file.path} has an unused key: {unknown[0]} ({type(file.others[unknown[0]]).__name__})"
        )
    tensors = {name: tensor for name, tensor in file.tensors.items() if name not in state}
    return tensors, file.others, sorted({top_level[name] for name in state})


def strip_prefix(tensors: Mapping[str, torch.Tensor], marker: str) -> dict[str, torch.Tensor]:
    """The names without what stands before `marker` in the first name that has it, such as `params.` or `model.`."""
    prefix = next(name[: name.index(marker)] for name in tensors if marker in name)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def bind(
    tensors: Mapping[str, torch.Tensor], layout: Mapping[str, Slot]
) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """Put every tensor into its place.

    Returns:
        The tensors under our names, and the size that each letter of the layout stands for.

    Raises:
        UserError: naming a missing or unused key, or a shape that contradicts the others.
    """
    missing, unused = sorted(layout.keys() - tensors.keys()), sorted(tensors.keys() - layout.keys())
    if missing:
        raise UserError(f"missing key in the source: {', '.join(missing)}")
    if unused:
        raise UserError(f"unused key in the source: {', '.join(unused)}")
    state: dict[str, torch.Tensor] = {}
    sizes: dict[str, int] = {}
    first: dict[str, str] = {}
    for name, slot in layout.items():
        tensor = tensors[name]
        if not tensor.is_floating_point():
            raise UserError(f"{name} holds {tensor.dtype}, expected floating-point numbers")
        letters = slot.sizes.split()
        if len(letters) != tensor.ndim:
            raise UserError(f"{name} has shape {tuple(tensor.shape)}, expected ({', '.join(letters)})")
        for letter, size in zip(letters, tensor.shape, strict=True):
            expected = int(letter) if letter.isdigit() else sizes.setdefault(letter, size)
            first.setdefault(letter, name)
            if size != expected:
                source = "" if letter.isdigit() else f" as in {first[letter]}"
                raise UserError(
                    f"{name} has shape {tuple(tensor.shape)}, expected ({', '.join(letters)}) "
                    f"with {letter} = {expected}{source}"
                )
        state[slot.target] = slot.change(tensor)
    return state, sizes
