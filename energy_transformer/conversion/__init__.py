"""Checkpoints of other Energy Transformer implementations, and models for another size of images."""

from .convert import convert_checkpoint
from .image_size import resize
from .lumen import load_energy_transformer
from .options import ConversionOptions

__all__ = ["ConversionOptions", "convert_checkpoint", "load_energy_transformer", "resize"]
