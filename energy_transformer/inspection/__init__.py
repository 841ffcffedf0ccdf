"""Reconstructions and pictures of what a model computes."""

from .reconstruction import (
    Reconstruction,
    load_for_reconstruction,
    predicted_pixels,
    prepare_image,
    reconstruct,
)

__all__ = ["Reconstruction", "load_for_reconstruction", "predicted_pixels", "prepare_image", "reconstruct"]
