"""Checkpoints of other Energy Transformer implementations, converted to this package's models."""

from .convert import convert_checkpoint
from .options import ConversionOptions
from .seed import load_energy_transformer

__all__ = ["ConversionOptions", "convert_checkpoint", "load_energy_transformer"]
