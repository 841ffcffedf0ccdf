"""The block computes what the definition in `naive.py` says, in values and gradients."""

import pytest
import torch

from energy_transformer import EnergyTransformer, naive


@pytest.mark.parametrize("implementation", ["eager", "chunked"])
def test_the_block_is_the_definition(implementation):
    torch.manual_seed(0)
    options = {"norm": "energy_layer_norm", "initialization": "scaled", "attn_implementation": implementation}
    block = EnergyTransformer(24, 40, 3, n_iters_default=5, **options).double()
    block.mha.beta.data.mul_(torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64))
    block.norm.delta.data.normal_()
    weights = [block.norm.gamma, block.norm.delta, block.mha.Wq, block.mha.Wk, block.mha.beta, block.hopfield.W]
    x = torch.randn(2, 7, 24, dtype=torch.float64, requires_grad=True)
    expected = naive.descend(x, *weights, num_steps=5)
    torch.testing.assert_close(block(x), expected, rtol=1e-11, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(naive.descend(x, *weights, num_steps=5), expected, rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(expected.square().sum(), [x, *weights])
    for found, gradient in zip(torch.autograd.grad(block(x).square().sum(), [x, *weights]), gradients, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-9, atol=1e-10)
    energy = naive.energy(block.norm(x), *weights[2:])
    torch.testing.assert_close(block.descend(x, 0).energy.sum(), energy, rtol=1e-12, atol=1e-12)
