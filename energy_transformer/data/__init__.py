"""From a dataset's name or folder to batches of uint8 images."""

from .images import ImageTensors, build_image_processor, normalize
from .loading import load_image_datasets

__all__ = ["ImageTensors", "build_image_processor", "load_image_datasets", "normalize"]
