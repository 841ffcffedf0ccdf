"""What an origin's converter hands back: a model to be built, and what there is to say about it."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

EMBEDDINGS = "energy_transformer.embeddings."
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NO_NORMALIZATION = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def layer(index: int) -> str:
    """Prefix of a block's parameters in our models."""
    return f"energy_transformer.layers.{index}."


@dataclass
class Plan:
    """A conversion that is decided but not yet carried out.

    Attributes:
        origin: where the file comes from, in words.
        model_class: class of the converted model.
        arguments: what its configuration (or its constructor, for LumenPallidium's bare block) is made of.
        state: its parameters.
        defaults: names of the arguments that neither the file nor the options gave.
        left_out: names in the file that were left out.
        notes: what a user of the model should know.
        normalization: mean and standard deviation of the pixels in [0, 1], where the origin determines them.
    """

    origin: str
    model_class: type[nn.Module]
    arguments: dict[str, Any]
    state: dict[str, torch.Tensor]
    defaults: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None
