"""How many operators a step calls, which is what a GPU waits for at small sizes, and that none waits for the host."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from energy_transformer import EnergyTransformerConfig, EnergyTransformerForMaskedImageModeling, EnergyTransformerModel

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


class Transfers(TorchDispatchMode):
    """The names of the operators that read a value of a tensor, or that take or give a tensor of the CPU."""

    READ = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal")

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        name = func.overloadpacket.__name__
        if name in self.READ or any(tensor.device.type == "cpu" for tensor in tensors):
            self.names.append(name)
        return result


@pytest.mark.parametrize("backend", ["eager", "chunked"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"learnable_beta": True, "attention_bias": True, "hopfield_bias": True},
        {"attention_beta": 0.3, "hopfield_activation": "softmax", "momentum": 0.5},
        {"learnable_step_size": "channel", "descent_gradient": "state", "attend_to_self": False, "temperature": 0.1},
    ],
)
def test_a_training_step_neither_reads_nor_uploads_a_tensor(options, backend):
    """On the meta device: it holds no values, and whatever is made on the CPU shows."""
    config = EnergyTransformerConfig(
        image_size=16, patch_size=4, hidden_size=32, num_attention_heads=2, head_dim=8, intermediate_size=48,
        num_steps=2, **options,
    )  # fmt: skip
    model = EnergyTransformerForMaskedImageModeling(config).to("meta").train()
    model.set_attn_implementation(backend)
    pixels = torch.empty(2, 3, 16, 16, device="meta")
    with Transfers() as found:
        model(pixels, bool_masked_pos=torch.empty(2, 16, dtype=torch.bool, device="meta")).loss.backward()
        model.eval()(pixels, output_energies=True)  # with masks that are drawn
    assert found.names == []
    with Transfers() as found:
        torch.ones(2).sum().item()
    assert "_local_scalar_dense" in found.names
