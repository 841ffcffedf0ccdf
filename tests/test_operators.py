"""How many operators a step calls: what a GPU waits for at small sizes, and no trick of the eager form hides."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from energy_transformer import EnergyTransformerConfig, EnergyTransformerModel

SHAPE_ONLY = {
    "view", "_unsafe_view", "reshape", "_reshape_alias", "transpose", "permute", "expand", "unsqueeze", "squeeze",
    "slice", "select", "detach", "alias", "split", "split_with_sizes", "unbind", "flatten", "unflatten", "as_strided",
    "t", "is_same_size",
}  # fmt: skip


class Calls(TorchDispatchMode):
    """The names of the operators that are called, but for those that only change a shape."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.namespace in ("aten", "prims"), f"the eager form calls an operator of its own, {func}"
        name = func.overloadpacket.__name__
        if name not in SHAPE_ONLY and not name.startswith("sym_"):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def calls(dtype, training, steps):
    config = EnergyTransformerConfig(
        image_size=32, patch_size=4, hidden_size=256, num_attention_heads=8, head_dim=32, intermediate_size=1024,
        num_steps=steps,
    )  # fmt: skip
    model = EnergyTransformerModel(config).train(training)
    model.set_attn_implementation("eager")
    pixels = torch.randn(2, 3, 32, 32)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16")
    with Calls() as found, autocast, torch.set_grad_enabled(training):
        state = model(pixels).last_hidden_state
        if training:
            state.float().square().mean().backward()
    return found.names


@pytest.mark.parametrize(
    ("dtype", "training", "limit", "products"),
    [("bf16", False, 18, 2), ("bf16", True, 50, 6), ("float32", False, 14, 2), ("float32", True, 44, 6)],
)
def test_operators_of_a_step(dtype, training, limit, products):
    """One product in and one out, each with two more in the backward pass."""
    few, many = (calls(dtype, training, steps) for steps in (2, 12))
    assert (len(many) - len(few)) / 10 <= limit
    matrix_products = [sum(name in ("mm", "addmm", "linear") for name in names) for names in (few, many)]
    assert matrix_products[1] - matrix_products[0] == 10 * products
