"""Half precision: norms, softmax, logsumexp and energies in float32, and training that really moves the weights."""

import pytest
import torch

from energy_transformer import EnergyAttention, EnergyLayerNorm, EnergyTransformerForMaskedImageModeling
from energy_transformer.energies import BaseModernHopfield, LayerNorm, SoftmaxModernHopfield

HALF = [torch.float16, torch.bfloat16]


def relative_error(actual, expected):
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("norm", [EnergyLayerNorm, LayerNorm])
def test_norm_backward_survives_a_tiny_variance(norm, dtype):
    """In float16 `(var + eps)^-1.5` of the backward overflows for a variance below 6e-4."""
    norm = norm(32)
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)).mul(1e-3).to(dtype)
    upstream = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    gradients = {}
    for name, module, tokens in (("half", norm.to(dtype), x), ("double", norm.double(), x.double())):
        tokens = tokens.clone().requires_grad_()
        module(tokens).mul(upstream.to(tokens.dtype).float() if name == "half" else upstream.double()).sum().backward()
        gradients[name] = tokens.grad
        norm.zero_grad()
    assert gradients["half"].isfinite().all()
    assert relative_error(gradients["half"], gradients["double"]) < 0.02


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(
    "build",
    [lambda: EnergyAttention(32, 4), lambda: BaseModernHopfield(32, 64), lambda: SoftmaxModernHopfield(32, 64)],
    ids=["attention", "relu", "softmax"],
)
def test_energies_are_float32_and_near_those_of_float64(build, dtype):
    torch.manual_seed(0)
    energy = build()
    for parameter in energy.parameters():
        parameter.data.copy_(torch.randn_like(parameter) * 0.3 if parameter.ndim > 1 else parameter)
    energy = energy.to(dtype)
    g = torch.randn(2, 9, 32)
    half_value, half_gradient = energy.energy(g.to(dtype)), energy(g.to(dtype))
    assert half_value.dtype == torch.float32
    exact = energy.double()
    assert relative_error(half_value, exact.energy(g.double())) < 0.02
    assert relative_error(half_gradient, exact(g.double())) < 0.02


@pytest.mark.parametrize("autocast", HALF, ids=str)
def test_the_lagrangian_is_float32_under_autocast(autocast):
    torch.manual_seed(0)
    norm = EnergyLayerNorm(64, regularization=0.1)
    norm.delta.data.normal_()
    x = torch.randn(3, 5, 64)
    expected = norm.lagrangian(x)
    with torch.autocast("cpu", autocast):
        found = norm.lagrangian(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("beta", [[0.1, 0.7], torch.tensor([0.1, 0.7], dtype=torch.float64)], ids=["list", "tensor"])
def test_a_fixed_beta_of_each_head_is_never_rounded(beta):
    """In float64 it is what was given, also after a cast to half precision; in half precision only products round."""
    torch.manual_seed(0)
    attention = EnergyAttention(16, 2, beta, scale=0.5, learnable_beta=False).bfloat16().double()
    alone = []
    for head, number in enumerate((0.1, 0.7)):
        single = EnergyAttention(16, 1, number, head_dim=8, learnable_beta=False).double()
        single.Wq.data, single.Wk.data = attention.Wq.data[head : head + 1], attention.Wk.data[head : head + 1]
        alone.append(single)
    g = torch.randn(2, 5, 16).double()
    for dtype, rtol in ((torch.float64, 1e-13), (torch.bfloat16, 1e-6)):
        g = g.to(dtype)
        found = attention.to(dtype).energy(g)
        torch.testing.assert_close(found, sum(single.to(dtype).energy(g) for single in alone), rtol=rtol, atol=0)


def test_large_scores_and_sums_do_not_overflow_in_float16():
    """Row sums of relu² beyond 65504 and a logsumexp of scores in the hundreds."""
    hopfield = BaseModernHopfield(64, 4096, scale=1.0).half()
    attention = EnergyAttention(64, 2, beta=1.0, scale=0.3).half()
    g = torch.randn(1, 33, 64, generator=torch.Generator().manual_seed(0)).half()
    assert hopfield.energy(g).abs() > 65504
    for energy in (hopfield, attention):
        assert energy.energy(g).isfinite()
        assert energy(g).isfinite().all()


def loss_and_step(model, pixel_values, mask, optimizer, autocast=None):
    scaler = torch.amp.GradScaler("cpu", enabled=autocast == torch.float16)
    losses = []
    for _ in range(8):
        with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
            loss = model(pixel_values, bool_masked_pos=mask).loss
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("autocast", HALF, ids=str)
def test_training_under_autocast_moves_every_weight_and_follows_float32(small_config, autocast):
    pixel_values = torch.rand(4, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.rand(4, 24, generator=torch.Generator().manual_seed(1)) < 0.5
    losses = {}
    for dtype in (None, autocast):
        torch.manual_seed(0)
        model = EnergyTransformerForMaskedImageModeling(small_config)
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        losses[dtype] = loss_and_step(model, pixel_values, mask, optimizer, dtype)
        for name, parameter in model.named_parameters():
            assert parameter.isfinite().all(), name
            assert not torch.equal(parameter, before[name]), f"{name} did not move under {dtype}"
    assert losses[autocast][-1] < losses[autocast][0]
    assert losses[autocast] == pytest.approx(losses[None], rel=0.03)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_model_in_half_precision_gives_nearly_the_same_reconstruction(small_model, dtype):
    pixel_values = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.rand(2, 24, generator=torch.Generator().manual_seed(1)) < 0.5
    with torch.no_grad():
        expected = small_model(pixel_values, bool_masked_pos=mask, output_energies=True)
        actual = small_model.to(dtype)(pixel_values.to(dtype), bool_masked_pos=mask, output_energies=True)
    assert actual.reconstruction.dtype == dtype
    assert actual.energies.dtype == torch.float32
    assert relative_error(actual.reconstruction, expected.reconstruction) < 0.05
    assert relative_error(actual.energies, expected.energies) < 0.02
