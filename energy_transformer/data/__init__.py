"""From a dataset's name or folder to batches of uint8 images."""

from .augmentation import Augmentation
from .images import (
    ImageTensors,
    denormalize,
    load_image,
    normalize,
    resize_to_tensor,
)
from .loading import load_image_datasets

__all__ = [
    "Augmentation",
    "ImageTensors",
    "denormalize",
    "load_image",
    "load_image_datasets",
    "normalize",
    "resize_to_tensor",
]
