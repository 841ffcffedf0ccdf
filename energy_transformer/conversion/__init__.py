"""Checkpoints of other Energy Transformer implementations, converted to this package's models."""

from .convert import convert_checkpoint
from .lumen import load_energy_transformer
from .options import ConversionOptions

__all__ = ["ConversionOptions", "convert_checkpoint", "load_energy_transformer"]
