"""What is compared: the same block on the same weights, computed in different ways."""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from energy_transformer import EnergyTransformer, naive
from energy_transformer.attention_backends import ATTENTION_BACKENDS, check_attention_backend


@dataclass
class Size:
    """Token width D, H heads, M memories, N tokens, T steps and B images."""

    dim: int
    heads: int
    memories: int
    tokens: int
    steps: int
    batch: int

    def operations(self, training: bool) -> int:
        """Multiplications and additions of the matrix products that a step cannot do without."""
        pairs = 2 * self.tokens**2 * self.dim
        tokens = 2 * self.tokens * self.dim * (2 * self.dim + self.memories)
        step = 9 * pairs + 6 * tokens if training else 3 * pairs + 2 * tokens
        return self.batch * self.steps * step


SIZES = {
    "CIFAR": Size(dim=256, heads=8, memories=1024, tokens=64, steps=12, batch=16),
    "ImageNet": Size(dim=768, heads=12, memories=3072, tokens=197, steps=12, batch=1),
}
LENGTHS = Size(dim=768, heads=12, memories=3072, tokens=0, steps=1, batch=1)
GPU_BATCH = {"CIFAR": 1024, "ImageNet": 256}


class Naive(EnergyTransformer):
    """The weights of the block, and the descent of `naive.py` on them: the gradient by automatic differentiation."""

    def forward(self, x: Tensor) -> Tensor:
        norm, mha = self.norm, self.mha
        weights = mha.Wq, mha.Wk, mha.beta, self.hopfield.W
        return naive.descend(x, norm.weight, norm.bias, *weights, num_steps=self.n_iters, step_size=self.alpha)


def available_backends() -> list[str]:
    """The names of `attn_implementation` that run here, but for "auto", which is one of the others."""

    def runs(name):
        try:
            check_attention_backend(name)
        except ValueError:
            return False
        return name != "auto"

    return [name for name in ATTENTION_BACKENDS if runs(name)]


def variant_names(backends: list[str]) -> list[str]:
    names = [f"{way}{suffix}" for suffix in ("", " compiled", " bf16", " bf16 compiled") for way in backends]
    return ["naive", "naive bf16", *names]


def build(name: str, size: Size, device: torch.device, lumen_checkout: Path | None = None) -> nn.Module:
    """Tokens (B, N, D) to tokens, by the variant of that name: BACKEND [bf16] [compiled | graphs] [checkpointed]."""
    way, *options = name.split()
    shape = size.dim, size.memories, size.heads
    if way == "naive":
        block: nn.Module = Naive(*shape, n_iters_default=size.steps)
    elif way == "LumenPallidium":
        lumen = load_module("lumen_energy_transformer", lumen_checkout, "energy_transformer/energy_transformers.py")
        block = lumen.EnergyTransformer(*shape, n_iters_default=size.steps)
    else:
        block = EnergyTransformer(*shape, n_iters_default=size.steps, attn_implementation=way)
        block.gradient_checkpointing = "checkpointed" in options
    torch.manual_seed(0)
    for weight in (block.mha.Wq, block.mha.Wk):
        nn.init.normal_(weight, std=size.dim**-0.5)
    nn.init.normal_(block.hopfield.W, std=0.02)
    block.to(device)
    if "compiled" in options or "graphs" in options:
        block = torch.compile(block, fullgraph=True, mode="reduce-overhead" if "graphs" in options else None)
    return Autocast(block, device) if "bf16" in options else block


class Autocast(nn.Module):
    """A block with its products in bfloat16."""

    def __init__(self, block: nn.Module, device: torch.device):
        super().__init__()
        self.block, self.device_type = block, device.type

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(self.device_type, torch.bfloat16):
            return self.block(x)


def load_module(name: str, checkout: Path, path: str):
    """A module of another repository by its file, beside a package of the same name."""
    spec = importlib.util.spec_from_file_location(name, checkout / path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def tokens(size: Size, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size.batch, size.tokens, size.dim, generator=generator).to(device)


def training_step(function: Callable[[Tensor], Tensor], x: Tensor, upstream: Tensor) -> Callable[[], None]:
    """Forward and backward, for the tokens as well as for the weights."""

    def step():
        (function(x.detach().requires_grad_()).float() * upstream).mean().backward()

    return step


def inference(function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
    def step():
        with torch.no_grad():
            function(x)

    return step


def steps_of(name: str, size: Size, training: bool, device: torch.device, args) -> Callable[[], object]:
    """The function to measure."""
    if name == "jax":
        return jax_step(size, training, args.jax_checkout)
    x = tokens(size, device)
    function = build(name, size, device, args.lumen_checkout)
    return training_step(function, x, torch.randn_like(x)) if training else inference(function, x)


def jax_step(size: Size, training: bool, checkout: Path) -> Callable[[], object]:
    """The official block (`architecture.py`), vectorized over images and compiled, on JAX's default device."""
    import equinox
    import jax

    official = load_module("official_architecture", checkout, "architecture.py")
    scale = size.memories / size.dim
    config = official.ETConfig(D=size.dim, Y=size.dim // size.heads, n_heads=size.heads, scale_mems=scale)
    block = official.EnergyTransformer(jax.random.PRNGKey(0), config)
    block = jax.tree_util.tree_map(lambda leaf: 0.02 * leaf if equinox.is_array(leaf) else leaf, block)
    norm = official.EnergyLayerNorm(size.dim)
    x = jax.numpy.asarray(tokens(size, torch.device("cpu")).numpy())

    def descend(block, x):
        for _ in range(size.steps):
            x = x - 0.1 * jax.grad(block.energy)(norm(x))
        return x

    def loss(block, x):
        return jax.vmap(descend, (None, 0))(block, x).mean()

    function = equinox.filter_jit(equinox.filter_grad(loss) if training else jax.vmap(descend, (None, 0)))
    return lambda: jax.block_until_ready(function(block, x))
