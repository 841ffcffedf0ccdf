"""From a dataset's name or folder to batches of uint8 images."""

from .images import (
    ImageTensors,
    build_image_processor,
    denormalize,
    load_image,
    load_image_processor,
    normalize,
    processor_sizes,
    resize_to_tensor,
)
from .loading import load_image_datasets

__all__ = [
    "ImageTensors",
    "build_image_processor",
    "denormalize",
    "load_image",
    "load_image_datasets",
    "load_image_processor",
    "normalize",
    "processor_sizes",
    "resize_to_tensor",
]
