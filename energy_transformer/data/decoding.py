"""The images of a split decoded once: a memory-mapped file of uint8, shared by all processes and later runs."""

import hashlib
import json
import logging
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

import datasets
import PIL
import torch
import transformers
from accelerate.utils import tqdm
from filelock import FileLock
from torch.utils.data import DataLoader, Dataset
from transformers.image_processing_backends import PilBackend

from ..utils.console import is_terminal
from ..utils.errors import UserError
from ..utils.files import atomic_path
from .pixels import load_image, resize_to_tensor

logger = logging.getLogger(__name__)
_BATCH = 64
_PIXELS, _DESCRIPTION = "images.uint8", "description.json"


class Decoder(Dataset):
    """The rows of a split as uint8 (C, H, W) of the processor's size, one by one or in batches for a `DataLoader`."""

    def __init__(self, split: datasets.Dataset, image_column: str, processor: PilBackend):
        self.split = split.select_columns(image_column).cast_column(image_column, datasets.Image(decode=False))
        self.image_column = image_column
        self.processor = processor
        crop = processor.crop_size
        self.shape = (len(processor.image_mean), crop["height"], crop["width"])

    def __len__(self) -> int:
        return len(self.split)

    def decode(self, row: int) -> torch.Tensor:
        """Raises:
        UserError: for a missing or broken image, which it names.
        """
        where = f"of row {row} in column {self.image_column!r}"
        return decode_image(self.split[row][self.image_column], self.processor, where)

    def __getitems__(self, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 (B, C, H, W), black where an image is broken, and which are, (B,)."""
        images = torch.zeros(len(rows), *self.shape, dtype=torch.uint8)
        broken = torch.zeros(len(rows), dtype=torch.bool)
        for place, row in enumerate(rows):
            try:
                images[place] = self.decode(row)
            except UserError:
                broken[place] = True
        return images, broken

    def batches(self, num_workers: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """All rows in their order, as `__getitems__` returns them, decoded by so many processes (0: this one)."""
        loader = DataLoader(self, batch_size=_BATCH, num_workers=num_workers, collate_fn=_as_it_is)
        with tqdm(
            total=len(self), desc="decoding images", unit="image", leave=False, disable=not is_terminal()
        ) as progress:
            for images, broken in loader:
                yield images, broken
                progress.update(len(images))


def decode_image(source: dict | None, processor: PilBackend, where: str) -> torch.Tensor:
    """{"bytes", "path"} to uint8 (C, H, W).

    Raises:
        UserError: when there is none or it is broken; names the file, or else `where`.
    """
    if source is None or (source.get("bytes") is None and source.get("path") is None):
        raise UserError(f"there is no image {where}")
    return resize_to_tensor(load_image(source, len(processor.image_mean), where), processor)


def _as_it_is(batch):
    return batch


def find_broken(decoder: Decoder, num_workers: int = 0) -> torch.Tensor:
    """Which rows cannot be decoded, (N,) bool."""
    return torch.cat([broken for _, broken in decoder.batches(num_workers)])


def decode_once(decoder: Decoder, num_workers: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """All rows as a memory-mapped uint8 tensor (N, C, H, W), and which of them are broken, (N,) bool.

    The file lies in the cache of `datasets`; of several processes one writes it while the others wait. It is written
    under a temporary name and moved into place, and a damaged one is written anew.

    Raises:
        UserError: when the cache cannot be written.
    """
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "energy_transformer_images" / _key(decoder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            decoded = _read(folder, decoder)
            if decoded is None:
                _write(folder, decoder, num_workers)
                decoded = _read(folder, decoder)
    except OSError as error:
        raise UserError(
            f"decoded images cannot be kept in {folder.parent}: {error.strerror or error}; set HF_DATASETS_CACHE to a "
            "folder with room, or a smaller max_cached_bytes"
        ) from error
    if decoded is None:
        raise UserError(f"decoded images written to {folder} read back differently: is the disk damaged?")
    return decoded


def _key(decoder: Decoder) -> str:
    """Names all that decides the pixels."""
    made_by = [
        decoder.split._fingerprint,
        decoder.processor.to_json_string(),
        PIL.__version__,
        transformers.__version__,
    ]
    return hashlib.sha256(json.dumps(made_by).encode()).hexdigest()[:24]


def _write(folder: Path, decoder: Decoder, num_workers: int) -> None:
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        checksum, broken_rows, first = 0, [], 0
        with open(temporary / _PIXELS, "wb") as file:
            for images, broken in decoder.batches(num_workers):
                data = images.numpy().tobytes()
                checksum = zlib.crc32(data, checksum)
                file.write(data)
                broken_rows.extend((first + broken.nonzero().flatten()).tolist())
                first += len(images)
        description = {"shape": [len(decoder), *decoder.shape], "crc32": checksum, "broken": broken_rows}
        (temporary / _DESCRIPTION).write_text(json.dumps(description))


def _read(folder: Path, decoder: Decoder) -> tuple[torch.Tensor, torch.Tensor] | None:
    """None when there is no file or a damaged one, which is deleted."""
    if not folder.exists():
        return None
    try:
        description = json.loads((folder / _DESCRIPTION).read_text())
        size = (folder / _PIXELS).stat().st_size
        shape = [len(decoder), *decoder.shape]
        if description["shape"] == shape and size == torch.Size(shape).numel():
            pixels = torch.from_file(str(folder / _PIXELS), shared=False, size=size, dtype=torch.uint8).view(shape)
            if _checksum(pixels) == description["crc32"]:
                broken = torch.zeros(len(decoder), dtype=torch.bool)
                broken[description["broken"]] = True
                return pixels, broken
    except (FileNotFoundError, KeyError, TypeError, IndexError, json.JSONDecodeError, UnicodeDecodeError):
        pass
    logger.warning("the decoded images in %s are damaged and are written anew", folder)
    shutil.rmtree(folder)
    return None


def _checksum(pixels: torch.Tensor) -> int:
    checksum = 0
    for part in pixels.split(_BATCH):
        checksum = zlib.crc32(part.numpy(), checksum)
    return checksum
