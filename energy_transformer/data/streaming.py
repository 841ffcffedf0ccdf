"""Images of a dataset that is read front to back: divided over processes and workers, shuffled, resumable to the image,
also by another number of them.

A *reader* is one worker of one process. [`division`] says what each of them reads in each epoch; one with fewer rows is
in the next epoch sooner.

A reader shuffles rows chunk by chunk: while the images of one chunk are used, the next is read. Its place is therefore
a few numbers. The shuffle buffer of `datasets` is not used, because its content is lost when a stream is resumed, and
neither its division over processes, by which each reads all rows where their number does not divide the shards'.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import Any

import datasets
import numpy as np
import pyarrow
import torch
from accelerate.utils import gather_object, send_to_device
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers.image_processing_backends import PilBackend

from ..utils.errors import UserError, first_line
from ..utils.interruption import leave_signals_to_parent
from .decoding import ImageDecoder
from .division import Division, Piece, Place
from .images import NAMED, OnBrokenImage
from .labels import Labels
from .pixels import MAX_IMAGE_PIXELS, with_bytes

logger = logging.getLogger(__name__)
_ROWS = 32  # read at a time
_EMPTY_EPOCHS = 100  # in which a reader finds nothing before it gives up


class ImageStream(IterableDataset):
    """Endless batches {"image": uint8 (B, C, H, W)}, and "label" (B,) where a column of them is named.

    Yields (batch, the [`Place`] after it, what is wrong with each broken image passed over on the way), for a
    `DataLoader` with `batch_size=None`; its workers divide the stream.

    Args:
        stream: a `datasets.IterableDataset`.
        image_column: its column of images.
        processor: from `image_processing.build_image_processor`.
        batch_size: images of a batch.
        label_column: its column of labels, numbers; or its [`labels.Labels`].
        buffer_size: rows that a reader shuffles at a time; it holds so many undecoded images in memory.
        seed: decides the order.
        on_broken_image: "skip" or "error".
        process, num_processes: which part of the stream is read.
        max_image_pixels: an image of more is broken.
        crop, draft: see [`decoding.ImageDecoder`].
        by_group: whether row groups are divided where there are fewer files than readers.

    Raises:
        UserError: for a broken image, if `on_broken_image` is "error"; when the stream cannot be read, or a reader
            finds no image.
    """

    def __init__(
        self,
        stream: datasets.IterableDataset,
        image_column: str,
        processor: PilBackend,
        batch_size: int,
        label_column: str | Labels | None = None,
        buffer_size: int = 1000,
        seed: int = 0,
        on_broken_image: OnBrokenImage = "skip",
        process: int = 0,
        num_processes: int = 1,
        max_image_pixels: int = MAX_IMAGE_PIXELS,
        crop: tuple[float, float] | None = None,
        draft: bool = False,
        by_group: bool = True,
    ):
        self.labels = label_column if isinstance(label_column, Labels) else None
        column = label_column.column if isinstance(label_column, Labels) else label_column
        columns = [image_column] if column is None else [image_column, column]
        self.stream = stream.select_columns(columns).cast_column(image_column, datasets.Image(decode=False))
        self.image_column, self.label_column = image_column, column
        self.is_cropped = crop is not None
        self._decode = ImageDecoder(processor, max_image_pixels, crop, draft)
        self.batch_size, self.buffer_size = batch_size, buffer_size
        self.seed = seed
        self.on_broken_image = on_broken_image
        self.process, self.num_processes = process, num_processes
        self.by_group = by_group
        self.division = Division(seed, self.stream.num_shards, False, 1, 1)
        self.places = [Place()]  # where each worker of this process begins
        self.first_worker = 0  # the one that makes the first batch
        self.num_broken = 0
        self.reasons: list[str] = []

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], Place, list[str]]]:
        info = get_worker_info()
        number, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        worker = (number + self.first_worker) % num_workers
        reader = self.process * num_workers + worker
        images, labels, broken = [], [], []
        last_good = self.places[worker].epoch
        for place, row in self._shuffled(self.places[worker], reader):
            try:
                key = (self.seed, place.epoch, *place.used[-1])
                images.append(self._decode(row[self.image_column], f"in epoch {place.epoch}", key))
            except UserError as error:
                if self.on_broken_image == "error":
                    raise
                if place.epoch > last_good + 1:
                    raise UserError(f"none of the images of a whole epoch can be read: {error}") from error
                broken.append(str(error))
                continue
            last_good = place.epoch
            if self.label_column:
                labels.append(self._label(row[self.label_column]))
            if len(images) == self.batch_size:
                batch = {"image": torch.stack(images)}
                if self.label_column:
                    batch["label"] = torch.tensor(labels)
                yield batch, place, broken
                images, labels, broken = [], [], []

    def divide(self, num_workers: int) -> int:
        """Let so many workers of each process read (0: the process itself), or fewer, so that none reads rows that it
        does not use: returns how many. What is read in vain nevertheless is told in one line."""
        per_process, shards, is_group = max(num_workers, 1), self.stream.num_shards, False
        if shards < self.num_processes * per_process and self._groups.num_shards > shards:
            shards, is_group = self._groups.num_shards, True
        most = max(shards // self.num_processes, 1)
        parts = -(-self.num_processes // shards)
        if per_process > most:
            self._tell(f"{shards} shards are for {most} reading workers of a process, not dataloader_num_workers")
            num_workers = per_process = most
        if parts > 1:
            self._tell(f"{shards} shards for {self.num_processes} processes: each row is read {parts} times")
        self.division = Division(self.seed, shards, is_group, parts, self.num_processes * per_process)
        return num_workers

    @cached_property
    def _groups(self) -> datasets.IterableDataset:
        """The stream, of which each row group is a shard where its format has them."""
        return self.stream.reshard() if self.by_group and hasattr(self.stream, "reshard") else self.stream

    def begin(self, division: Division, places: list[Place], first_worker: int) -> None:
        """Let the next iteration begin at these places of this process's workers, with a batch of the `first_worker`
        of them."""
        self.division, self.places, self.first_worker = division, places, first_worker
        if any(piece.is_group for pieces in division.left.values() for piece in pieces):
            _ = self._groups  # found once, not by each worker

    def _tell(self, what: str) -> None:
        if self.process == 0:
            logger.warning("streaming: %s; write the dataset in more files or row groups", what)

    def _label(self, value: Any) -> int:
        return self.labels.number(value, self.stream.features[self.label_column]) if self.labels else value

    def broken_images(self) -> tuple[int, list[str]]:
        """How often a broken image was passed over, and what is wrong with the first few."""
        return self.num_broken, self.reasons

    def add_broken(self, count: int, reasons: list[str]) -> None:
        """Count broken images, and keep the first few reasons."""
        self.num_broken += count
        self.reasons = [*self.reasons, *reasons][:NAMED]

    def _shuffled(self, place: Place, reader: int) -> Iterator[tuple[Place, dict[str, Any]]]:
        """The reader's rows in their shuffled order, each with the place after it."""
        empty = 0
        while True:
            rows = self._rows(place, reader)
            chunk = list(islice(rows, self.buffer_size))
            empty = 0 if chunk else empty + 1
            if empty > _EMPTY_EPOCHS:
                raise UserError(f"streaming: there is no image for reader {reader + 1} of {self.division.num_readers}")
            while chunk:
                first = replace(chunk[0][0], used=())
                generator = np.random.default_rng((self.seed, reader, first.epoch, first.piece, first.row))
                shuffled = [chunk[number] for number in reversed(generator.permutation(len(chunk)))]
                del shuffled[len(shuffled) - len(place.used) :]
                following: list = []
                chunk.clear()  # the rows in use and those read ahead are together no more than the buffer
                while shuffled:
                    following.extend(islice(rows, 1))
                    own, row = shuffled.pop()
                    place = replace(first, used=place.used + own.used)
                    yield place, row
                following.extend(islice(rows, self.buffer_size - len(following)))
                chunk, place = following, replace(place, used=())
            place = Place(place.epoch + 1)

    def _rows(self, place: Place, reader: int) -> Iterator[tuple[Place, dict[str, Any]]]:
        """The reader's rows from a place to the end of its epoch, each with its own place, in which it is `used`."""
        pieces = self.division.pieces(place.epoch, reader)
        first_row = place.row
        for number in range(place.piece, len(pieces)):
            piece = pieces[number]
            used = {*piece.used}
            for row, example in self._read(piece, max(piece.first, first_row)):
                if row % piece.parts == piece.part and row not in used:
                    yield Place(place.epoch, number, row, ((piece.shard, row),)), example
            first_row = 0

    def _read(self, piece: Piece, first_row: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """The rows of a shard from `first_row` on, with their numbers. (Iterating a `datasets.IterableDataset` by
        batches does not divide it over the workers once more.)"""
        stream = self._groups if piece.is_group else self.stream
        rows = stream.shard(num_shards=stream.num_shards, index=piece.shard)
        try:
            number = first_row
            for batch in rows.skip(first_row).iter(batch_size=_ROWS):
                columns = batch.values()
                for values in zip(*columns, strict=True):
                    row = dict(zip(batch, values, strict=True))
                    yield number, {**row, self.image_column: with_bytes(row[self.image_column])}
                    number += 1
        except (OSError, pyarrow.ArrowException, datasets.exceptions.DatasetsError) as error:
            reason = first_line(error)
            raise UserError(f"streaming: shard {piece.shard} cannot be read beyond row {number}: {reason}") from error


class StreamLoader:
    """Endless batches of an [`ImageStream`] on a device, with a state that continues them exactly.

    Args:
        images: the stream, as this process reads it.
        num_workers: processes that read and decode, or fewer, see [`ImageStream.divide`]; 0: this one.
        device: where the batches go.
    """

    steps_per_epoch = None

    def __init__(self, images: ImageStream, num_workers: int = 0, device: torch.device | str = "cpu"):
        self.images, self.device = images, torch.device(device)
        self.num_workers = images.divide(num_workers)
        self._division = images.division
        self._places = [Place()] * max(self.num_workers, 1)
        self._worker = 0  # that makes the next batch

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        self.images.begin(self._division, list(self._places), self._worker)
        loader = DataLoader(
            self.images,
            batch_size=None,
            num_workers=self.num_workers,
            worker_init_fn=leave_signals_to_parent,
            pin_memory=self.device.type == "cuda",
        )
        for batch, place, broken in loader:
            self._places[self._worker] = place
            self._worker = (self._worker + 1) % len(self._places)
            self.images.add_broken(len(broken), broken)
            yield send_to_device(batch, self.device, non_blocking=True)

    def gather_broken_images(self) -> None:
        """Let `images.broken_images()` tell what all processes have found; called by all of them."""
        found = gather_object([self.images.broken_images()])
        self.images.num_broken, self.images.reasons = 0, []
        for count, reasons in found:
            self.images.add_broken(count, reasons)

    def state_dict(self) -> dict[str, Any]:
        """The position behind the last batch that was yielded, however far the workers have read ahead."""
        return {
            "worker": self._worker,
            "places": [vars(place).copy() for place in self._places],
            "division": self._division.state_dict(min(place.epoch for place in self._places)),
            "broken": list(self.images.broken_images()),
        }

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        """Continue from there when iterated next: in the very order by as many readers, otherwise with the rows of
        the epoch that were not used.

        Args:
            states: those of all processes that saved, in their order.
        """
        process, per_process = self.images.process, len(self._places)
        old = Division.restored([state["division"] for state in states])
        saved = [Place.restored(**place) for state in states for place in state["places"]]
        self._division, places = self._division.continued(old, saved)
        self._places = places[process * per_process : (process + 1) * per_process]
        self._worker = states[min(process, len(states) - 1)]["worker"] % per_process
        self.images.num_broken, self.images.reasons = 0, []
        for state in states[process :: self.images.num_processes]:
            self.images.add_broken(*state["broken"])
