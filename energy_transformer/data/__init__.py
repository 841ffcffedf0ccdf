"""From a dataset's name or folder to batches of uint8 images."""

from .images import (
    ImageTensors,
    denormalize,
    load_image,
    normalize,
    resize_to_tensor,
)
from .loading import load_image_datasets
from .sampling import StepSampler, batch_slice

__all__ = [
    "ImageTensors",
    "StepSampler",
    "batch_slice",
    "denormalize",
    "load_image",
    "load_image_datasets",
    "normalize",
    "resize_to_tensor",
]
