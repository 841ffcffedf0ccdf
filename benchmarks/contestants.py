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
    "both, wider tokens": STATE | NORMALIZED | {"step_size": 0.5},  # with 1.0 the energy rose on validation images
}
# fmt: on
TRANSFORMERS = ("looped transformer", "transformer of T layers", "Hyper-SET")
CONTESTANTS = (*TRANSFORMERS, *ENERGY_MODELS)


class TransformerLayer(nn.Module):
    """Pre-norm self-attention and MLP (Vaswani et al. 2017; Xiong et al. 2020), without dropout."""

    def __init__(self, dim: int, heads: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor, step: int) -> Tensor:
        q, k, v = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-3, -2)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(-3, -2).flatten(-2))
        return x + self.mlp(self.mlp_norm(x))


class HyperSETLayer(nn.Module):
    """The layer of Hyper-SET (Hu, Zou and Xu, ICLR 2026, arXiv 2502.11646), with step sizes that the tokens choose.

    Up the energy of an attention whose queries, keys and values are one projection, then down the energy of memories;
    both are normalized, but their gradients do not go through the normalization. The step of each channel is computed
    from the number of the step and from the token, and is zero at first, as in its code.
    """

    def __init__(self, dim: int, heads: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.subspaces, self.memories = nn.Linear(dim, dim, bias=False), nn.Linear(dim, hidden, bias=False)
        self.norms = nn.ModuleList(nn.RMSNorm(dim // heads) for _ in range(3))
        self.memory_norm, self.input_norm = nn.RMSNorm(hidden), nn.RMSNorm(dim)
        self.time = nn.Sequential(
            nn.Linear(dim, dim), nn.RMSNorm(dim), nn.GELU(), nn.RMSNorm(dim), nn.Linear(dim, dim), nn.RMSNorm(dim)
        )
        self.step_sizes = nn.Sequential(nn.RMSNorm(dim), nn.GELU(), nn.Linear(dim, 2 * dim))
        for linear in (self.time[0], self.time[4], self.step_sizes[2]):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, step: int) -> Tensor:
        frequencies = torch.exp(-math.log(10_000) * torch.linspace(0, 1, x.shape[-1] // 2))
        waves = torch.cat([((step + 1) * frequencies).sin(), ((step + 1) * frequencies).cos()])
        attend, remember = self.step_sizes(self.time(waves) + self.input_norm(x)).chunk(2, -1)
        subspaces = self.subspaces(x).unflatten(-1, (self.heads, -1)).transpose(-3, -2)
        query, key, value = (norm(subspaces) for norm in self.norms)
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        looked = (scores.softmax(-1) + scores.softmax(-2)) @ value
        x = x - attend * (looked.transpose(-3, -2).flatten(-2) @ self.subspaces.weight)
        return x + remember * (F.gelu(self.memory_norm(self.memories(x))) @ self.memories.weight)


class Transformer(nn.Module):
    """T steps of one layer, or of T layers, called as a block of the energy models is."""

    def __init__(self, config: EnergyTransformerConfig, name: str):
        super().__init__()
        size = config.hidden_size, config.num_attention_heads, config.intermediate_size
        layer = HyperSETLayer if name == "Hyper-SET" else TransformerLayer
        self.layers = nn.ModuleList(
            layer(*size) for _ in range(config.num_steps if name == "transformer of T layers" else 1)
        )
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, x: Tensor, num_steps: int, *_) -> Descent:
        states = [x]
        for step in range(num_steps):
            states.append(self.layers[min(step, len(self.layers) - 1)](states[-1], step))
        return Descent(states[-1], self.norm(states[-1]), tuple(states))


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
        model.energy_transformer.layers = nn.ModuleList([Transformer(model.config, name)])
        return model
    options = options | ENERGY_MODELS[name]
    if name == "both, widened":
        options["intermediate_size"] = _widened(heads[task], options, build("looped transformer", task, options, seed))
    if name == "both, wider tokens":  # half as wide again, with as many memories
        changed = ("hidden_size", "num_attention_heads")
        options |= {each: options[each] * 3 // 2 for each in changed}
    return heads[task](EnergyTransformerConfig(**options))


def _widened(head, options: dict, like: nn.Module) -> int:
    """The number of memories with which an energy model has as many parameters as `like`, or just fewer."""
    missing = count_parameters(like) - count_parameters(head(EnergyTransformerConfig(**options)))
    return options["intermediate_size"] + math.floor(missing / options["hidden_size"])


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
