"""Images decoded once to a processor's size: memory-mapped files, shared by all processes and later runs.

The store knows images, not datasets: each is kept under the digest of its bytes, or of its file's name and state. So
the training and held-out images of every seed, and of every part of a dataset, are an index into what is there, and a
file that is replaced is another image. A *segment* is what one run had to decode: its pixels, one image after the
other, and an index of their digests, places and checksums. It is written under a temporary name and moved into place.
All segments together are held below a limit: those that were not used for longest are deleted first.
"""

import hashlib
import json
import logging
import os
import shutil
import uuid
import zlib
from pathlib import Path

import datasets
import numpy as np
import PIL
import torch
import transformers
from filelock import FileLock

from ..utils.errors import UserError
from ..utils.files import atomic_path
from .decoding import Decoder

logger = logging.getLogger(__name__)
_PIXELS, _INDEX = "images.uint8", "index.npy"
_ENTRY = np.dtype([("digest", "S32"), ("place", "<i8"), ("crc32", "<u4")])  # place -1: the image is broken
_VERSION = 2  # of what is kept and of how an image is decoded
_in_use: set[str] = set()  # the segments that this process reads from


class DecodedImages:
    """The images of a split, (N, C, H, W) uint8: `images[rows]` copies those of some rows."""

    def __init__(self, segments: list[torch.Tensor], segment: np.ndarray, place: np.ndarray):
        self._segments = segments
        self._segment, self._place = torch.from_numpy(segment), torch.from_numpy(place)

    def __getitem__(self, rows: torch.Tensor) -> torch.Tensor:
        segment, place = self._segment[rows], self._place[rows]
        images = torch.empty(len(rows), *self._segments[0].shape[1:], dtype=torch.uint8)
        for number in segment.unique().tolist():
            chosen = segment == number
            images[chosen] = self._segments[number][place[chosen]]
        return images


class _Segment:
    def __init__(self, folder: Path, shape: tuple[int, ...]):
        """Raises:
        OSError, EOFError, ValueError: when it is damaged.
        """
        self.folder = folder
        self.index = np.load(folder / _INDEX, allow_pickle=False)
        if self.index.dtype != _ENTRY:
            raise ValueError("it is no index")
        count = int(self.index["place"].max(initial=-1)) + 1
        size = (folder / _PIXELS).stat().st_size
        if size != count * torch.Size(shape).numel():
            raise ValueError("the index does not fit the images")
        self.pixels = torch.empty(0, *shape, dtype=torch.uint8)
        if count:
            file = str(folder / _PIXELS)
            self.pixels = torch.from_file(file, shared=False, size=size, dtype=torch.uint8).view(count, *shape)

    def is_whole(self, entries: np.ndarray) -> bool:
        """Whether the images of these entries are what was written."""
        return all(
            zlib.crc32(self.pixels[place].numpy()) == crc32
            for place, crc32 in zip(entries["place"].tolist(), entries["crc32"].tolist(), strict=True)
            if place >= 0
        )


def decode_once(decoder: Decoder, max_bytes: int, num_workers: int = 0) -> tuple[DecodedImages, torch.Tensor] | None:
    """All rows of the decoder, and which of them are broken, (N,) bool. None where they do not fit into `max_bytes`,
    which bounds all that is kept, beside what this process uses already.

    The files lie in the cache of `datasets`. Of several processes one decodes while the others wait; what a killed one
    left is deleted, and what is damaged is decoded anew.

    Raises:
        UserError: when the cache cannot be written.
    """
    if len(decoder) * _bytes_each(decoder) > max_bytes:
        return None
    root = Path(datasets.config.HF_DATASETS_CACHE) / "energy_transformer_images"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{root}.lock"):
            return _Store(root, decoder).decode(max_bytes, num_workers)
    except OSError as error:
        raise UserError(
            f"decoded images cannot be kept in {root}: {error.strerror or error}; set HF_DATASETS_CACHE to a folder "
            "with room, or a smaller max_cached_bytes"
        ) from error


def _bytes_each(decoder: Decoder) -> int:
    return torch.Size(decoder.decode_image.shape).numel()


class _Store:
    """The segments below a folder, of which the caller holds the lock."""

    def __init__(self, root: Path, decoder: Decoder):
        self.root, self.decoder = root, decoder
        decode = decoder.decode_image
        made_by = [_VERSION, decode.processor.to_json_string(), decode.max_image_pixels]
        made_by += [PIL.__version__, transformers.__version__]
        self.key = hashlib.sha256(json.dumps(made_by).encode()).hexdigest()[:16]
        for stale in root.glob(".*"):  # nobody writes while we hold the lock
            shutil.rmtree(stale, ignore_errors=True)

    def decode(self, max_bytes: int, num_workers: int) -> tuple[DecodedImages, torch.Tensor] | None:
        digests = self.decoder.digests()
        found = self._find(digests)
        if found is None:
            segments = self._segments()
            known = [segment.index["digest"] for segment in segments]
            _, first = np.unique(digests, return_index=True)
            missing = np.sort(first[~np.isin(digests[first], np.concatenate([*known, digests[:0]]))])
            used = {s.folder.name for s in segments if np.isin(s.index["digest"], digests).any()}
            if not self._make_room(max_bytes - len(missing) * _bytes_each(self.decoder), used):
                return None
            self._write(digests, missing.tolist(), num_workers)
            found = self._find(digests)
        if found is None:
            raise UserError(f"decoded images written to {self.root} read back differently: is the disk damaged?")
        return found

    def _segments(self) -> list[_Segment]:
        """Those of this processor; a damaged one is deleted."""
        segments = []
        for folder in sorted(self.root.glob(f"{self.key}-*")):
            try:
                segments.append(_Segment(folder, self.decoder.decode_image.shape))
            except (OSError, EOFError, ValueError):
                self._delete_damaged(folder)
        return segments

    def _delete_damaged(self, folder: Path) -> None:
        logger.warning("the decoded images in %s are damaged and are decoded anew", folder)
        shutil.rmtree(folder)

    def _find(self, digests: np.ndarray) -> tuple[DecodedImages, torch.Tensor] | None:
        """None where an image is missing or damaged."""
        segments = self._segments()
        entries = np.concatenate([np.empty(0, _ENTRY), *(segment.index for segment in segments)])
        origin = np.repeat(np.arange(len(segments)), [len(segment.index) for segment in segments])
        order = np.argsort(entries["digest"], kind="stable")
        position = np.searchsorted(entries["digest"], digests, sorter=order)
        chosen = order[np.minimum(position, len(order) - 1)] if len(order) else np.empty(0, np.int64)
        if len(chosen) != len(digests) or (entries["digest"][chosen] != digests).any():
            return None
        for number in np.unique(origin[chosen]).tolist():
            folder = segments[number].folder
            if not segments[number].is_whole(np.unique(entries[chosen[origin[chosen] == number]])):
                self._delete_damaged(folder)
                return None
            os.utime(folder / _INDEX)  # when it was used last
            _in_use.add(str(folder))
        place = entries["place"][chosen]
        images = DecodedImages([segment.pixels for segment in segments], origin[chosen], place)
        return images, torch.from_numpy(place < 0)

    def _make_room(self, max_bytes: int, used: set[str]) -> bool:
        """Delete segments of any processor, and what earlier versions kept, until all take no more than this."""
        sizes, last_use = {}, {}
        for folder in self.root.iterdir():
            if not folder.is_dir():
                folder.unlink()
                continue
            sizes[folder] = sum(file.stat().st_size for file in folder.iterdir() if file.name == _PIXELS)
            index = folder / _INDEX
            last_use[folder] = index.stat().st_mtime if index.exists() else 0.0
        keep = {folder for folder in sizes if str(folder) in _in_use or folder.name in used}
        if sum(sizes[folder] for folder in keep) > max_bytes:
            return False
        for folder in sorted(sizes.keys() - keep, key=last_use.__getitem__):
            if sum(sizes.values()) <= max_bytes and last_use[folder]:
                break
            shutil.rmtree(folder)
            del sizes[folder]
        return True

    def _write(self, digests: np.ndarray, rows: list[int], num_workers: int) -> None:
        with atomic_path(self.root / f"{self.key}-{uuid.uuid4().hex[:8]}") as temporary:
            temporary.mkdir()
            entries: list[tuple[bytes, int, int]] = []
            written = 0
            with open(temporary / _PIXELS, "wb") as file:
                for images, broken in self.decoder.batches(rows, num_workers):
                    for image, is_broken in zip(images, broken.tolist(), strict=True):
                        digest = digests[rows[len(entries)]]
                        if is_broken:
                            entries.append((digest, -1, 0))
                            continue
                        data = image.numpy().tobytes()
                        file.write(data)
                        entries.append((digest, written, zlib.crc32(data)))
                        written += 1
            np.save(temporary / _INDEX, np.array(entries, dtype=_ENTRY))
