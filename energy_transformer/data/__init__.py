"""From a dataset's name or folder to batches of uint8 images."""

from .augmentation import Augmentation
from .images import ImageTensors, broken_images_report
from .loading import load_image_datasets
from .pixels import denormalize, load_image, normalize, resize_to_tensor
from .sampling import StepSampler, batch_slice
from .streaming import ImageStream, StreamLoader

__all__ = [
    "Augmentation",
    "ImageStream",
    "ImageTensors",
    "StepSampler",
    "StreamLoader",
    "batch_slice",
    "broken_images_report",
    "denormalize",
    "load_image",
    "load_image_datasets",
    "normalize",
    "resize_to_tensor",
]
