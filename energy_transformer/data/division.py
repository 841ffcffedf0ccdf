"""How the rows of a stream are divided over its readers, also where their number changes in the middle of an epoch.

The rows of an epoch are cut into *pieces*: shards, or every n-th row of a shard where there are fewer shards than
processes. The pieces are shuffled and dealt out like cards, so that each is read by one reader; the next epoch goes on
with the reader whose turn it is, so that none is ever more than a piece ahead.

What a reader has used of an epoch is told by its [`Place`]. Another number of readers can therefore deal out what is
left of the epochs that are under way, to the row; the epochs after them are dealt out anew.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, replace
from itertools import chain, zip_longest
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Piece:
    """Rows of a shard that one reader reads: those from `first` on whose number leaves the rest `part` when divided by
    `parts`, but for the `used` ones."""

    shard: int
    is_group: bool = False  # one of the stream's row groups, where its files were too few
    part: int = 0
    parts: int = 1
    first: int = 0
    used: tuple[int, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where a reader stands in its pieces of an epoch: the first row of the chunk that it shuffles, by the piece's
    number and its own, and the rows that it has used of the chunk, by shard and number."""

    epoch: int = 0
    piece: int = 0
    row: int = 0
    used: tuple[tuple[int, int], ...] = ()

    @classmethod
    def restored(cls, epoch: int, piece: int, row: int, used: list) -> "Place":
        """From what JSON makes of its fields."""
        return cls(epoch, piece, row, tuple((shard, number) for shard, number in used))


@dataclass(frozen=True)
class Division:
    """Which pieces each reader has in each epoch.

    Args:
        seed: decides the order of each epoch.
        num_shards, is_group, parts: the pieces of an epoch that is divided from its beginning.
        num_readers: over which it is divided.
        left: the pieces of epochs that were under way when this division began.
    """

    seed: int
    num_shards: int
    is_group: bool
    parts: int
    num_readers: int
    left: dict[int, list[Piece]] = field(default_factory=dict)

    def pieces(self, epoch: int, reader: int) -> list[Piece]:
        """Those of a reader, in their order."""
        dealt = self.left.get(epoch)
        if dealt is None:
            numbers = np.random.default_rng((self.seed, epoch)).permutation(self.num_shards * self.parts).tolist()
            dealt = [Piece(n // self.parts, self.is_group, n % self.parts, self.parts) for n in numbers]
        return dealt[(reader - epoch * len(dealt)) % self.num_readers :: self.num_readers]

    def rest(self, epoch: int, reader: int, place: Place) -> list[Piece]:
        """What a reader that stands at `place` has still to read in an epoch."""
        pieces = self.pieces(epoch, reader)
        if place.epoch != epoch:
            return pieces if place.epoch < epoch else []
        rest = []
        for number, piece in enumerate(pieces[place.piece :]):
            first = piece.first if number else max(piece.first, place.row)
            used = (*piece.used, *(row for shard, row in place.used if shard == piece.shard))
            rest.append(replace(piece, first=first, used=tuple(row for row in used if row >= first)))
        return rest

    def continued(self, old: "Division", places: Sequence[Place]) -> tuple["Division", list[Place]]:
        """This division from where the readers of `old` stand on, each at its place; and the places of its readers."""
        if replace(old, left={}) == replace(self, left={}):
            return old, list(places)
        epochs = {place.epoch for place in places}
        first, left = min(epochs), {}
        for epoch in range(first, max(epochs | old.left.keys()) + 1):
            rests = [old.rest(epoch, reader, place) for reader, place in enumerate(places)]
            in_turn = chain.from_iterable(zip_longest(*rests))  # as evenly dealt as they were
            left[epoch] = [piece for piece in in_turn if piece is not None]
        return replace(self, left=left), [Place(first)] * self.num_readers

    def state_dict(self, epoch: int) -> dict[str, Any]:
        """For JSON; of what is left only that of `epoch` and later."""
        left = [[each, [astuple(piece) for piece in pieces]] for each, pieces in self.left.items() if each >= epoch]
        return {**vars(self), "left": left}

    @classmethod
    def restored(cls, states: Sequence[dict[str, Any]]) -> "Division":
        """From the states of all its processes, of which each knows what is left for its own readers."""
        left = {
            epoch: [Piece(*numbers, used=tuple(used)) for *numbers, used in pieces]
            for state in states
            for epoch, pieces in state["left"]
        }
        return cls(**{**states[0], "left": left})
