"""From a dataset's name or folder to batches of uint8 images.

A name is imported when it is used: to open one image takes the base install, datasets the extra `train`.
"""

import importlib
from typing import Any

_PLACES = {
    "Augmentation": "augmentation",
    "ImageStream": "streaming",
    "ImageTensors": "images",
    "StepSampler": "sampling",
    "StreamLoader": "streaming",
    "batch_slice": "sampling",
    "broken_images_report": "images",
    "denormalize": "pixels",
    "load_image": "pixels",
    "load_image_datasets": "loading",
    "normalize": "pixels",
    "resize_to_tensor": "pixels",
}
__all__ = [*_PLACES]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)
