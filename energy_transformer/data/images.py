"""The images of a split as a dataset of uint8 tensors, decoded once or as they are read."""

from typing import Literal

import datasets
import torch
from torch.utils.data import Dataset
from transformers.image_processing_backends import PilBackend

from ..utils.errors import UserError
from .decoded_cache import decode_once
from .decoding import Decoder, ImageDecoder, find_broken
from .labels import Labels
from .pixels import MAX_IMAGE_PIXELS

OnBrokenImage = Literal["skip", "error"]
NAMED = 5  # broken images in a report


class ImageTensors(Dataset):
    """The images of a split as uint8 tensors of one size.

    `dataset[i]` is {"image": (C, H, W) uint8, "index": i, "is_own": bool}, and "label" where a column of them is named;
    a loader gets whole batches through `__getitems__`, with [`collate`] as its `collate_fn`. An index beyond the last
    counts on into further epochs, in which a random crop is another one.

    A split of at most `max_cached_bytes` is decoded once, to memory-mapped files in the cache of `datasets`, which are
    never cropped at random; a larger one as it is read. Broken images are left out, so that `len(dataset)` counts the
    others; where they are found only as they are read, the next good image stands in for one, so that a batch keeps its
    size, and "is_own" is false: an evaluation leaves it out. [`broken_images`] counts and names them.

    Args:
        split: a `datasets.Dataset`.
        image_column: its column of images.
        processor: from `image_processing.build_image_processor`.
        label_column: its column of labels, numbers or lists of numbers of one length; or its [`labels.Labels`].
        max_cached_bytes: what all images decoded once may take, those of other runs as well; 4 GiB by default.
        on_broken_image: "skip" as above, or "error".
        check: look for broken images beforehand also where they are not decoded once.
        num_workers: processes that decode once or check; 0: this one.
        max_image_pixels: an image of more is broken.
        crop: see [`decoding.ImageDecoder`]; [`is_cropped`] tells whether it is applied.
        draft: see there.
        seed: decides the crops.

    Raises:
        UserError: for a broken image, which it names, if `on_broken_image` is "error"; when no image can be read; when
            the cache cannot be written.
    """

    def __init__(
        self,
        split: datasets.Dataset,
        image_column: str,
        processor: PilBackend,
        label_column: str | Labels | None = None,
        max_cached_bytes: int = 2**32,
        on_broken_image: OnBrokenImage = "skip",
        check: bool = False,
        num_workers: int = 0,
        max_image_pixels: int = MAX_IMAGE_PIXELS,
        crop: tuple[float, float] | None = None,
        draft: bool = False,
        seed: int = 0,
    ):
        self.processor = processor
        self.on_broken_image = on_broken_image
        self.seed = seed
        self._decoder = Decoder(split, image_column, ImageDecoder(processor, max_image_pixels))
        decoded = decode_once(self._decoder, max_cached_bytes, num_workers)
        self.is_decoded = decoded is not None
        self.is_cropped = crop is not None and not self.is_decoded
        self._pixels = None
        broken = torch.zeros(len(split), dtype=torch.bool)
        if decoded is not None:
            self._pixels, broken = decoded
        else:
            if check:
                broken = find_broken(self._decoder, num_workers)
            self._decoder = Decoder(split, image_column, ImageDecoder(processor, max_image_pixels, crop, draft))
        self._broken = broken.share_memory_()  # the workers of a loader mark what they find
        self._rows = (~broken).nonzero().flatten()
        if broken.any() and on_broken_image == "error":
            raise UserError(self._reason(int(broken.nonzero()[0])))
        if not len(self._rows):
            raise self._nothing_readable()
        self._labels = None
        if isinstance(label_column, Labels):
            self._labels = label_column.numbers(split)
        elif label_column is not None:
            self._labels = torch.tensor(split[label_column][:])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: values[0] for name, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        index = torch.tensor(indices) % len(self)
        rows = asked = self._rows[index]
        if self._pixels is None:
            epochs = [index // len(self) for index in indices]
            decoded = [self._decode_from(row, epoch) for row, epoch in zip(rows.tolist(), epochs, strict=True)]
            rows = torch.tensor([row for row, _ in decoded])
            images = torch.stack([image for _, image in decoded])
        else:
            images = self._pixels[rows]
        labels = {} if self._labels is None else {"label": self._labels[rows]}
        return {"image": images, "index": index, "is_own": rows == asked, **labels}

    @staticmethod
    def collate(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`__getitems__` has made the batch already."""
        return batch

    def _decode_from(self, first: int, epoch: int) -> tuple[int, torch.Tensor]:
        """The first row from `first` on, and around the end, that can be decoded."""
        for step in range(len(self._broken)):
            row = (first + step) % len(self._broken)
            if self._broken[row]:
                continue
            try:
                return row, self._decoder.decode(row, (self.seed, epoch, first))
            except UserError:
                if self.on_broken_image == "error":
                    raise
                self._broken[row] = True
        raise self._nothing_readable()

    @property
    def num_readable(self) -> int:
        """The images that are not known to be broken."""
        return int((~self._broken[self._rows]).sum())

    def broken_rows(self) -> list[int]:
        """The rows of the split whose image is known to be broken."""
        return self._broken.nonzero().flatten().tolist()

    def mark_broken(self, rows: torch.Tensor) -> None:
        """Add what another process has found."""
        self._broken[rows.long()] = True

    def broken_images(self) -> tuple[int, list[str]]:
        """The number of broken images found so far, and what is wrong with the first few."""
        rows = self.broken_rows()
        return len(rows), [self._reason(row) for row in rows[:NAMED]]

    def _nothing_readable(self) -> UserError:
        return UserError(f"none of the {len(self._broken)} images can be read: {self._reason(0)}")

    def _reason(self, row: int) -> str:
        try:
            self._decoder.decode(row)
        except UserError as error:
            return str(error)
        return f"the image of row {row} could not be read when it was first decoded"


def broken_images_report(count: int, reasons: list[str]) -> str:
    """One line on broken images that were passed over."""
    others = f"; and {count - len(reasons)} more" if count > len(reasons) else ""
    return f"passed over {count} broken image{'s' * (count > 1)}: {'; '.join(reasons)}{others}"
