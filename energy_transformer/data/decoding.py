"""From the files of images to uint8 tensors of the processor's size."""

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import datasets
import numpy as np
import torch
from accelerate.utils import tqdm
from torch.utils.data import DataLoader, Dataset
from transformers.image_processing_backends import PilBackend

from ..utils.console import is_terminal
from ..utils.errors import UserError
from .augmentation import crop_boxes
from .pixels import (
    MAX_IMAGE_PIXELS,
    Box,
    broken_images_are_named,
    load_image,
    open_image,
    output_size,
    read_pixels,
    resize_to_tensor,
    upright_size,
)

_BATCH = 64


@dataclass(frozen=True)
class ImageDecoder:
    """From {"bytes", "path"} to uint8 (C, H, W).

    Args:
        processor: from `image_processing.build_image_processor`.
        max_image_pixels: an image of more is broken.
        crop: least and greatest share of the area that a random crop keeps, which is cut from the image as it is in the
            file and then resized; None for what the processor takes.
        draft: decode a JPEG to a fraction of its size where that is large enough, which is faster, and differs from
            what the processor makes of it by a few gray levels.
    """

    processor: PilBackend
    max_image_pixels: int = MAX_IMAGE_PIXELS
    crop: tuple[float, float] | None = None
    draft: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.processor.image_mean), *output_size(self.processor)

    def __call__(self, source: dict | None, where: str, key: Sequence[int] = ()) -> torch.Tensor:
        """Decode an image; `key` decides its crop.

        Raises:
            UserError: when there is none or it is broken; names the file, or else `where`.
        """
        if source is None or (source.get("bytes") is None and source.get("path") is None):
            raise UserError(f"there is no image {where}")
        channels, limit = self.shape[0], self.max_image_pixels
        if self.crop is None and not self.draft:
            return resize_to_tensor(load_image(source, channels, where, limit), self.processor)
        with broken_images_are_named(source.get("path") or where):
            image = open_image(source, limit)
            size = upright_size(image)
            part = self._part(size[0] / size[1], key)
            image = read_pixels(image, channels, limit, self._least_size(size, part))
            return resize_to_tensor(image, self.processor, part and _in_pixels(part, image.size))

    def _part(self, aspect: float, key: Sequence[int]) -> Box | None:
        """The random crop of an image of this width over height, in shares of the image."""
        if self.crop is None:
            return None
        area, ratio, x, y = torch.from_numpy(np.random.default_rng(key).random((4, 1)))
        _, height, width = self.shape
        boxes = crop_boxes(area, ratio, x, y, self.crop, aspect * height / width)
        left, top, wide, high = (share.item() for share in boxes)
        return left, top, left + wide, top + high

    def _least_size(self, size: tuple[int, int], part: Box | None) -> tuple[int, int] | None:
        """Width and height at which an image of this size is large enough for the part that is cut from it."""
        if not self.draft:
            return None
        left, top, right, bottom = part or (0, 0, 1, 1)
        _, height, width = self.shape
        return math.ceil(width / (right - left)), math.ceil(height / (bottom - top))


def _in_pixels(part: Box, size: tuple[int, int]) -> Box:
    left, top, right, bottom = (share * side for share, side in zip(part, size * 2, strict=True))
    return left, top, min(right, size[0]), min(bottom, size[1])


class Decoder(Dataset):
    """The rows of a split as uint8 (C, H, W), one by one or in batches for a `DataLoader`."""

    def __init__(self, split: datasets.Dataset, image_column: str, decode: ImageDecoder):
        self.split = split.select_columns(image_column).cast_column(image_column, datasets.Image(decode=False))
        self.image_column = image_column
        self.decode_image = decode

    def __len__(self) -> int:
        return len(self.split)

    def decode(self, row: int, key: Sequence[int] = ()) -> torch.Tensor:
        """Raises:
        UserError: for a missing or broken image, which it names.
        """
        where = f"of row {row} in column {self.image_column!r}"
        return self.decode_image(self.split[row][self.image_column], where, key)

    def __getitems__(self, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 (B, C, H, W), black where an image is broken, and which are, (B,)."""
        images = torch.zeros(len(rows), *self.decode_image.shape, dtype=torch.uint8)
        broken = torch.zeros(len(rows), dtype=torch.bool)
        for place, row in enumerate(rows):
            try:
                images[place] = self.decode(row)
            except UserError:
                broken[place] = True
        return images, broken

    def batches(self, rows: Sequence[int], num_workers: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """These rows in their order, as `__getitems__` returns them, decoded by so many processes (0: this one)."""
        loader = DataLoader(self, batch_size=_BATCH, sampler=rows, num_workers=num_workers, collate_fn=_as_it_is)
        with tqdm(
            total=len(rows), desc="decoding images", unit="image", leave=False, disable=not is_terminal()
        ) as progress:
            for images, broken in loader:
                yield images, broken
                progress.update(len(images))

    def digests(self) -> np.ndarray:
        """What tells each row's image from every other, (N,) of 32 hexadecimal digits.

        That of the bytes; of a file its path, size, inode, and times of writing and of any change, which tell also of
        a file that was replaced by one with the same name and time."""
        found: list[bytes] = []
        for batch in self.split.iter(_BATCH):
            found.extend(map(_digest, batch[self.image_column]))
        return np.array(found, dtype="S32")


def _as_it_is(batch):
    return batch


def _digest(source: dict | None) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    if source is not None and source.get("bytes") is not None:
        digest.update(b"bytes")
        digest.update(source["bytes"])
    elif source is not None and source.get("path") is not None:
        try:
            status = os.stat(source["path"])
            told = (status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
        except (OSError, ValueError):
            told = ()
        digest.update(repr((source["path"], told)).encode(errors="surrogateescape"))
    return digest.hexdigest().encode()


def find_broken(decoder: Decoder, num_workers: int = 0) -> torch.Tensor:
    """Which rows cannot be decoded, (N,) bool."""
    rows = range(len(decoder))
    return torch.cat([broken for _, broken in decoder.batches(rows, num_workers)])
