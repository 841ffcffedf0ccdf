"""Names and shapes of a foreign checkpoint against what its origin is known to write.

Every tensor of the file must have its place, every place its tensor, and the sizes must agree with each other.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch

from ..utils.errors import UserError
from .readers import ForeignFile

TRAINING_STATE = ("args", "epoch", "opt", "opt_state", "optimizer", "optimizer_state_dict", "scheduler", "step")

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


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


def split_training_state(file: ForeignFile) -> ForeignFile:
    """The same file with everything below one of `TRAINING_STATE` moved into its `training_state`."""

    def divide(values: dict) -> tuple[dict, dict]:
        state = {name: value for name, value in values.items() if name.split(".")[0] in TRAINING_STATE}
        return {name: value for name, value in values.items() if name not in state}, state

    (tensors, state), (others, plain_state) = divide(file.tensors), divide(file.others)
    return replace(file, tensors=tensors, others=others, training_state=state | plain_state)


def strip_prefix(tensors: Mapping[str, torch.Tensor], markers: str | tuple[str, ...]) -> dict[str, torch.Tensor]:
    """The names without what stands before a marker in the first name that has one, such as `params.` or `model.`.

    Raises:
        UserError: when two names become the same.
    """
    markers = (markers,) if isinstance(markers, str) else markers
    prefix = next(name[: name.index(marker)] for name in tensors for marker in markers if marker in name)
    stripped: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        short = name.removeprefix(prefix)
        if short in stripped:
            raise UserError(f"the source has two values for the key {short}: one of them is {prefix}{short}")
        stripped[short] = tensor
    return stripped


def _require_numbers(name: str, tensor: torch.Tensor) -> None:
    if tensor.is_meta or tensor.layout is not torch.strided:
        kind = "meta" if tensor.is_meta else str(tensor.layout).removeprefix("torch.")
        raise UserError(f"{name} is a {kind} tensor, expected a dense one with its numbers")
    if tensor.dtype not in DTYPES:
        raise UserError(f"{name} holds {tensor.dtype}, expected floating-point numbers of 16, 32 or 64 bits")
    if not tensor.isfinite().all():
        raise UserError(f"{name} holds NaN or infinite numbers")


def bind(
    tensors: Mapping[str, torch.Tensor], layout: Mapping[str, Slot]
) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """Put every tensor into its place.

    Returns:
        The tensors under our names, and the size that each letter of the layout stands for.

    Raises:
        UserError: naming a missing or unused key, a shape that contradicts the others, or a tensor that does not hold
            finite floating-point numbers.
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
        _require_numbers(name, tensor)
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
