"""The models that `strength.py` compares: the same patches, positions, head and loss, and another body.

All but the transformers are the package's own models. Shapes: B images, N tokens, D token width, T steps.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from energy_transformer import (
    Descent,
    EnergyTransformerConfig,
    EnergyTransformerForImageClassification,
    EnergyTransformerForMaskedImageModeling,
)

NORMALIZED = {"attention_qk_norm": True, "hopfield_norm": True, "step_size": 1.0}
STATE = {"descent_gradient": "state"}
# what each energy model changes in the configuration of the task
# fmt: off
ENERGY_MODELS = {
    "paper": {
        "initialization": "paper", "step_size": 0.1, "hopfield_initializer_range": 0.02, "learnable_beta": False,
    },
    "scaled start": {},
    "gradient of the state": STATE,
    "normalized projections": NORMALIZED,
    "both": STATE | NORMALIZED,
    "both, GELU": STATE | NORMALIZED | {"hopfield_activation": "gelu"},
    "both, learned steps": STATE | NORMALIZED | {"learnable_step_size": "step"},
    "both, widened": STATE | NORMALIZED,
}
# fmt: on
TRANSFORMERS = ("looped transformer", "transformer of T layers")
CONTESTANTS = (*TRANSFORMERS, *ENERGY_MODELS)


class TransformerLayer(nn.Module):
    """Pre-norm self-attention and MLP (Vaswani et al. 2017; Xiong et al. 2020), without dropout."""

    def __init__(self, dim: int, heads: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-3, -2)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(-3, -2).flatten(-2))
        return x + self.mlp(self.mlp_norm(x))


class Transformer(nn.Module):
    """T steps of one layer, or of T layers, called as a block of the energy models is."""

    def __init__(self, config: EnergyTransformerConfig, looped: bool):
        super().__init__()
        layer = config.hidden_size, config.num_attention_heads, config.intermediate_size
        self.layers = nn.ModuleList(TransformerLayer(*layer) for _ in range(1 if looped else config.num_steps))
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, x: Tensor, num_steps: int, *_) -> Descent:
        for step in range(num_steps):
            x = self.layers[min(step, len(self.layers) - 1)](x)
        return Descent(x, self.norm(x))


def build(name: str, task: str, options: dict, seed: int) -> nn.Module:
    """A contestant of that name.

    Args:
        task: `"classification"` or `"masked modeling"`.
        options: of the configuration, for all contestants of the task.
        seed: of the initial weights.
    """
    heads = {
        "classification": EnergyTransformerForImageClassification,
        "masked modeling": EnergyTransformerForMaskedImageModeling,
    }
    torch.manual_seed(seed)
    if name in TRANSFORMERS:
        model = heads[task](EnergyTransformerConfig(**options))
        model.energy_transformer.layers = nn.ModuleList([Transformer(model.config, name == "looped transformer")])
        return model
    options = options | ENERGY_MODELS[name]
    if name == "both, widened":
        options["intermediate_size"] = _widened(heads[task], options, build("looped transformer", task, options, seed))
    return heads[task](EnergyTransformerConfig(**options))


def _widened(head, options: dict, like: nn.Module) -> int:
    """The number of memories with which an energy model has as many parameters as `like`, or just fewer."""
    missing = count_parameters(like) - count_parameters(head(EnergyTransformerConfig(**options)))
    return options["intermediate_size"] + math.floor(missing / options["hidden_size"])


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
