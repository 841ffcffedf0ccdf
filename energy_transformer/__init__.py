"""Energy Transformers (Hoover et al. 2023, arXiv 2302.07253) for PyTorch and Hugging Face transformers.

Importing the package registers the models with transformers' Auto classes. The names below are imported on first
use, so that the import itself costs next to nothing.
"""

import importlib
from typing import TYPE_CHECKING

from .auto_registration import register_auto_classes

__version__ = "0.1.0"

_SOURCES = {
    "configuration_energy_transformer": ["EnergyTransformerConfig"],
    "energies": ["BaseModernHopfield", "EnergyAttention", "EnergyLayerNorm", "SoftmaxModernHopfield"],
    "energy_transformers": ["EnergyMHA", "EnergyTransformer"],
    "modeling_energy_transformer": [
        "EnergyTransformerForImageClassification",
        "EnergyTransformerForMaskedImageModeling",
        "EnergyTransformerModel",
        "EnergyTransformerPreTrainedModel",
    ],
}
_SOURCE_OF = {name: module for module, names in _SOURCES.items() for name in names}

if TYPE_CHECKING:
    from .configuration_energy_transformer import EnergyTransformerConfig
    from .energies import BaseModernHopfield, EnergyAttention, EnergyLayerNorm, SoftmaxModernHopfield
    from .energy_transformers import EnergyMHA, EnergyTransformer
    from .modeling_energy_transformer import (
        EnergyTransformerForImageClassification,
        EnergyTransformerForMaskedImageModeling,
        EnergyTransformerModel,
        EnergyTransformerPreTrainedModel,
    )


def __getattr__(name: str):
    if name not in _SOURCE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_SOURCE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_SOURCE_OF])


register_auto_classes()

__all__ = [
    "BaseModernHopfield",
    "EnergyAttention",
    "EnergyLayerNorm",
    "EnergyMHA",
    "EnergyTransformer",
    "EnergyTransformerConfig",
    "EnergyTransformerForImageClassification",
    "EnergyTransformerForMaskedImageModeling",
    "EnergyTransformerModel",
    "EnergyTransformerPreTrainedModel",
    "SoftmaxModernHopfield",
]
