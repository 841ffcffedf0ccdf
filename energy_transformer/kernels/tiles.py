"""Which tiles the kernels work in: those that compile without spilling registers, until a device says what is fastest.

`make gpu PARTS=h` measures them and others; [`pinned`] is how.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """A program's share of an attention.

    Attributes:
        block: rows that it computes at a time (or columns).
        inner: columns (or rows) that it goes over at a time; in the kernels of whole heads, all there can be.
        warps, stages: of Triton's compiler.
    """

    block: int
    inner: int
    warps: int
    stages: int


class Choice(NamedTuple):
    """Tiles that are pinned, and whether whole heads are computed by one program; None where nothing is."""

    forward: Tile | None = None
    backward: Tile | None = None
    whole: bool | None = None


_pinned = Choice()
_LONGEST = 256  # of the heads that one program computes


@contextmanager
def pinned(forward: Tile | None = None, backward: Tile | None = None, whole: bool | None = None) -> Iterator[None]:
    """Compute with these tiles meanwhile; `whole` chooses the kernels of whole heads, or those in tiles."""
    global _pinned
    before, _pinned = _pinned, Choice(forward, backward, whole)
    try:
        yield
    finally:
        _pinned = before


def tile_of(width: int, dtype: torch.dtype, capability: tuple[int, int], backward: bool) -> Tile:
    """That of a head width, 16 to 128 and a power of 2: the largest found that ptxas compiles without spilling.

    float32 alone spills, at a width above 64.
    """
    given = _pinned.backward if backward else _pinned.forward
    if given is not None and not _pinned.whole:
        return given
    if dtype == torch.float32:
        return Tile(64, 32, 4, 2) if width <= 32 or (width <= 64 and not backward) else Tile(16, 32, 4, 2)
    if capability < (9, 0) or (width == 128 and backward):
        return Tile(32, 32, 8 if width == 128 and not backward else 4, 2)
    if width == 128:
        return Tile(64, 32, 8, 2)
    return Tile(64, 32 if backward and width == 64 else 64, 4, 2)


def tile_of_bias(width: int) -> Tile:
    """That of the bias's gradient, which holds what it sums up beside the weights."""
    return Tile(16, 32, 4, 1) if width == 128 else Tile(32, 32, 4, 2)


def tile_of_whole(
    length: int, width: int, dtype: torch.dtype, heads: int, capability: tuple[int, int], backward: bool
) -> Tile | None:
    """That of a program for each of `heads` heads with `length` tokens; None where they are computed in tiles.

    It is for half precision, for a whole float32 head spills, and where the heads are enough for every multiprocessor.
    """
    inner = 64 if length <= 64 else _LONGEST
    if _pinned.whole is not None:
        given = _pinned.backward if backward else _pinned.forward
        return (given or Tile(32, inner, 8, 1)) if _pinned.whole and length <= _LONGEST else None
    if dtype == torch.float32 or width > 64 or length > _LONGEST:
        return None
    if inner == 64:
        block = 32 if backward and width == 64 else 64
        return Tile(block, inner, 4, 1) if width <= 32 or capability >= (9, 0) else None
    if backward or width != 64 or capability < (9, 0) or heads < 128:
        return None
    return Tile(32 if capability < (10, 0) else 64, inner, 8, 1)
