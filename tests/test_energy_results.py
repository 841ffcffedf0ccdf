"""Energies as results: of each image, of the whole batch, and split into their parts."""

import pytest
import torch

from energy_transformer import (
    EnergyLayerNorm,
    EnergyTransformerConfig,
    EnergyTransformerForImageClassification,
    EnergyTransformerForMaskedImageModeling,
    EnergyTransformerModel,
)

CLASSES = [
    EnergyTransformerModel,
    EnergyTransformerForMaskedImageModeling,
    EnergyTransformerForImageClassification,
]


@pytest.fixture(params=["relu", "softmax"])
def config(request):
    return EnergyTransformerConfig(
        image_size=16,
        patch_size=4,
        hidden_size=16,
        num_attention_heads=3,
        head_dim=6,
        intermediate_size=20,
        num_steps=4,
        num_hidden_layers=2,
        hopfield_activation=request.param,
        hopfield_beta=0.7,
        initialization="scaled",
        hopfield_initializer_range=0.3,
    )


def make(cls, config):
    torch.manual_seed(0)
    return cls(config).double().eval()


@pytest.fixture
def pixel_values():
    return torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_parts_sum_to_the_energies(config, pixel_values):
    model = make(EnergyTransformerModel, config)
    outputs = model(pixel_values, output_energies=True, output_energy_parts=True, output_hidden_states=True)
    parts = outputs.energy_parts
    assert outputs.energies.shape == parts.attention.shape == parts.hopfield.shape == (3, 9)
    assert parts.tokens.shape == (3, 9, 17)
    torch.testing.assert_close(parts.attention + parts.hopfield, outputs.energies, rtol=1e-13, atol=0)
    torch.testing.assert_close(parts.tokens.sum(-1), outputs.energies, rtol=1e-13, atol=0)
    for t, state in enumerate(outputs.hidden_states):
        layer = model.layers[min(t // 4, 1)]
        g = layer.norm(state)
        # the energy of a batch is the sum over its images
        torch.testing.assert_close(parts.attention[:, t].sum(), layer.attention.energy(g), rtol=1e-12, atol=0)
        torch.testing.assert_close(parts.hopfield[:, t].sum(), layer.hopfield.energy(g), rtol=1e-12, atol=0)
        for image in range(3):
            torch.testing.assert_close(parts.attention[image, t], layer.attention.energy(g[image]), rtol=1e-12, atol=0)
            torch.testing.assert_close(parts.hopfield[image, t], layer.hopfield.energy(g[image]), rtol=1e-12, atol=0)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_model_has_the_energy_of_an_image(cls, config, pixel_values):
    model = make(cls, config)
    masks = {"bool_masked_pos": torch.zeros(3, 16, dtype=torch.bool)} if "Masked" in cls.__name__ else {}
    outputs = model(pixel_values, output_energies=True, output_energy_parts=True, **masks)
    torch.testing.assert_close(model.energy(pixel_values), outputs.energies[:, -1], rtol=0, atol=0)
    start = model.base_model(pixel_values, output_energies=True).energies[:, 0]
    torch.testing.assert_close(model.energy(pixel_values, num_steps=0), start, rtol=0, atol=0)
    assert start.shape == (3,) and (model.energy(pixel_values) != start).all()
    torch.testing.assert_close(outputs.energy_parts.tokens.sum(-1), outputs.energies, rtol=1e-13, atol=0)
    alone = torch.cat([model.energy(image[None]) for image in pixel_values])
    torch.testing.assert_close(alone, outputs.energies[:, -1], rtol=1e-12, atol=0)


def test_the_energy_under_a_mask_is_that_of_the_forward_pass(config, pixel_values):
    model = make(EnergyTransformerForMaskedImageModeling, config)
    masked = torch.rand(3, 16, generator=torch.Generator().manual_seed(3)) < 0.6
    corrupted = masked & (torch.rand(3, 16, generator=torch.Generator().manual_seed(4)) < 0.5)
    noise = torch.rand(3, 16, generator=torch.Generator().manual_seed(5))
    whole = model.energy(pixel_values)
    for masks in (
        {"bool_masked_pos": masked},
        {"bool_masked_pos": masked.long() * 2 - corrupted.long()},
        {"bool_masked_pos": masked, "bool_corrupted_pos": corrupted},
        {"noise": noise},
    ):
        expected = model(pixel_values, output_energies=True, **masks).energies[:, -1]
        assert model.energy(pixel_values, **masks).equal(expected) and not expected.equal(whole), masks.keys()
    found, expected = (
        call(pixel_values, generator=torch.Generator().manual_seed(6), **requests)
        for call, requests in ((model.energy, {}), (model, {"output_energies": True}))
    )
    assert found.equal(expected.energies[:, -1])
    with pytest.raises(ValueError, match="bool_corrupted_pos needs bool_masked_pos"):
        model.energy(pixel_values, bool_corrupted_pos=corrupted)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_energy_refuses_unknown_arguments(cls, config, pixel_values):
    with pytest.raises(TypeError, match="bool_mask_pos"):
        make(cls, config).energy(pixel_values, bool_mask_pos=torch.ones(3, 16, dtype=torch.bool))


def test_the_energy_of_an_image_differentiates(config, pixel_values):
    """So it can be a loss, or tell which pixels raise it."""
    model = make(EnergyTransformerModel, config)
    pixel_values.requires_grad_()
    (gradient,) = torch.autograd.grad(model.energy(pixel_values).sum(), pixel_values)
    direction = torch.randn(pixel_values.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    step = 1e-5 * direction
    with torch.no_grad():
        slope = (model.energy(pixel_values + step) - model.energy(pixel_values - step)).sum() / 2e-5
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-6, atol=0)


def test_energies_are_only_computed_on_request(config, pixel_values):
    outputs = make(EnergyTransformerModel, config)(pixel_values)
    assert (
        outputs.energies is None
        and outputs.energy_parts is None
        and [*outputs] == ["last_hidden_state", "pooler_output"]
    )
    parts = make(EnergyTransformerModel, config)(pixel_values, output_energy_parts=True)
    assert parts.energies is None and parts.energy_parts.hopfield.shape == (3, 9)


def test_energies_are_float32_in_half_precision(config, pixel_values):
    model = make(EnergyTransformerModel, config)
    expected = model(pixel_values, output_energy_parts=True).energy_parts
    found = model.bfloat16()(pixel_values.bfloat16(), output_energy_parts=True).energy_parts
    for name in ("attention", "hopfield", "tokens"):
        assert found[name].dtype == torch.float32
        scale = expected[name].abs().max()
        assert ((found[name].double() - expected[name]).abs().max() / scale).item() < 0.05, name


@pytest.mark.parametrize("regularization", [0.0, 0.3])
def test_the_norms_own_energy(regularization):
    """E = g·x − L is zero but for ε and λ: per token −Dγε/σ + λ|x|²/2, with σ² the variance plus ε."""
    torch.manual_seed(0)
    norm = EnergyLayerNorm(12, eps=1e-2, regularization=regularization).double()
    norm.gamma.data.fill_(1.7)
    norm.delta.data.normal_()
    x = torch.randn(3, 5, 12, dtype=torch.float64)
    assert norm.lagrangian(x).shape == norm.token_energies(x).shape == (3, 5)
    deviation = (x.var(-1, correction=0) + 1e-2).sqrt()
    expected = -12 * 1.7 * 1e-2 / deviation + 0.5 * regularization * x.square().sum(-1)
    torch.testing.assert_close(norm.token_energies(x), expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(norm.energy(x), expected.sum(), rtol=1e-11, atol=1e-12)
    gradient = torch.func.grad(lambda x: norm.lagrangian(x).sum())(x)
    torch.testing.assert_close(gradient, norm(x), rtol=1e-12, atol=1e-12)
