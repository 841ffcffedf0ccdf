"""Images as uint8 tensors, resized as the checkpoint's image processor says."""

import io
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.utils import tqdm
from PIL import Image
from torch.utils.data import Dataset
from transformers.image_processing_backends import PilBackend

from ..errors import UserError


def normalize(images: torch.Tensor, processor: PilBackend) -> torch.Tensor:
    """uint8 images (B, C, H, W) to float32 as the processor rescales and normalises them, on their device."""
    mean, std = _mean_and_std(processor, images.device)
    return (images.float() * processor.rescale_factor - mean) / std


def denormalize(pixel_values: torch.Tensor, processor: PilBackend) -> torch.Tensor:
    """Normalised images (..., C, H, W) to float32 in units of [0, 1], without clipping."""
    mean, std = _mean_and_std(processor, pixel_values.device)
    return pixel_values.float() * std + mean


def _mean_and_std(processor: PilBackend, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = torch.tensor([processor.image_mean, processor.image_std], device=device)[..., None, None]
    return mean, std


def load_image(source: dict[str, Any], num_channels: int, where: str) -> Image.Image:
    """Decode {"bytes", "path"} to a PIL image of 1 or 3 channels.

    Raises:
        UserError: when it is no image or is damaged; names the file, or else `where`.
    """
    name = source.get("path") or where
    try:
        image = Image.open(io.BytesIO(source["bytes"]) if source.get("bytes") else source["path"])
        if image.mode.startswith(("I", "F")):
            raise UserError(f"cannot read the image {name}: it has more than 8 bits a channel (mode {image.mode})")
        return image.convert("L" if num_channels == 1 else "RGB")
    except UserError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read the image {name}: {error}") from error


def resize_to_tensor(image: Image.Image, processor: PilBackend) -> torch.Tensor:
    """A PIL image to uint8 (C, H, W) of the processor's size, without rescaling and normalising."""
    array = np.asarray(image)
    array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    crop = processor.crop_size
    if array.shape[1:] == (crop["height"], crop["width"]):
        return torch.from_numpy(array.copy())
    pixels = processor(
        array, do_rescale=False, do_normalize=False, do_convert_rgb=False, input_data_format="channels_first"
    )["pixel_values"][0]
    return torch.from_numpy(np.asarray(pixels)).round().clamp(0, 255).to(torch.uint8)


class ImageTensors(Dataset):
    """The images of a split as uint8 tensors of one size.

    `dataset[i]` is {"image": (C, H, W) uint8, "index": i}, and "label" where a column of them is named; a loader gets
    whole batches through `__getitems__`, with [`collate`] as its `collate_fn`. A split of at most `in_memory_bytes` is
    decoded once, a larger one as it is read.

    Args:
        split: a `datasets.Dataset`.
        image_column: its column of images.
        processor: from `image_processing.build_image_processor`.
        in_memory_bytes: 1 GiB by default.
        label_column: its column of labels, numbers or lists of numbers of one length.

    Raises:
        UserError: for a broken image, which it names.
    """

    def __init__(
        self,
        split: datasets.Dataset,
        image_column: str,
        processor: PilBackend,
        in_memory_bytes: int = 2**30,
        label_column: str | None = None,
    ):
        self.split = split.select_columns(image_column).cast_column(image_column, datasets.Image(decode=False))
        self.image_column = image_column
        self.processor = processor
        self.num_channels = len(processor.image_mean)
        crop = processor.crop_size
        self.in_memory = len(split) * self.num_channels * crop["height"] * crop["width"] <= in_memory_bytes
        self.labels = None if label_column is None else torch.tensor(split[label_column][:])
        self._decoded = self._decode_all(crop["height"], crop["width"]) if self.in_memory else None

    def _decode_all(self, height: int, width: int) -> torch.Tensor:
        images = torch.empty(len(self), self.num_channels, height, width, dtype=torch.uint8)
        for index in tqdm(range(len(self)), desc="decoding images", unit="image", leave=False):
            images[index] = self._decode(index)
        return images

    def _decode(self, index: int) -> torch.Tensor:
        source = self.split[index][self.image_column]
        where = f"of row {index} in column {self.image_column!r}"
        if source is None:
            raise UserError(f"there is no image {where}")
        return resize_to_tensor(load_image(source, self.num_channels, where), self.processor)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: values[0] for name, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        index = torch.tensor(indices)
        decoded = self._decoded
        images = torch.stack([self._decode(i) for i in indices]) if decoded is None else decoded[index]
        labels = {} if self.labels is None else {"label": self.labels[index]}
        return {"image": images, "index": index, **labels}

    @staticmethod
    def collate(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`__getitems__` has made the batch already."""
        return batch
