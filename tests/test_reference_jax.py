"""The equinox code of bhoov/energy-transformer-jax: `architecture.py` and `image_core.py`."""

import pytest
import torch
from blocks import energy_gradient, make_block, token_energies
from reference_numbers import (
    PLAINDICT_NAMES,
    assert_close,
    assert_gradients,
    copy_parameters,
    in_both_precisions,
    jax_config,
    load,
    renamed,
    under,
)

from energy_transformer import EnergyAttention, EnergyLayerNorm, EnergyTransformerForMaskedImageModeling, Record
from energy_transformer.energies import BaseModernHopfield
from energy_transformer.patches import patch_mask_to_pixels, patchify

WEIGHTS = {"Wq": "attention.Wq", "Wk": "attention.Wk", "Xi": "hopfield.W", "gamma": "norm.gamma", "delta": "norm.delta"}


def block(reference, dtype, step_size=0.1):
    """The block with the weights of the file."""
    heads, head_dim, dim = reference["Wq"].shape
    attention = EnergyAttention(dim, heads, head_dim=head_dim, learnable_beta=False)
    hopfield = BaseModernHopfield(dim, reference["Xi"].shape[1], learnable_beta=False)
    module = make_block(EnergyLayerNorm(dim), attention, hopfield, step_size).to(dtype)
    copy_parameters(module, {name: reference[key] for key, name in WEIGHTS.items()})
    return module


def descend(module, x, steps):
    """States and energies, (steps + 1, …), of tokens x (N, D)."""
    found = module(x, steps, record=Record(states=range(steps + 1), energies=True))
    return torch.stack(found.states), sum(found.energies.values()).sum(-1)


@in_both_precisions
def test_energies_and_gradients(dtype):
    reference = load("jax_equinox_block.npz")
    module = block(reference, dtype)
    x, g = reference["x"].to(dtype), reference["g"].to(dtype)
    assert_close(module.norm(x), reference["g"])
    assert_close(module.norm.lagrangian(x), reference["norm_lagrangian_per_token"])
    assert_close(module.attention.energy(g), reference["attention_energy"])
    assert_close(module.attention.grad(g), reference["attention_grad"])
    assert_close(module.hopfield.energy(g), reference["hopfield_energy"])
    assert_close(module.hopfield.grad(g), reference["hopfield_grad"])


def test_energy_of_the_norm():
    """Nearly zero, from the cancellation of terms of the order of D: compared absolutely, in float64."""
    for name, expected in (("jax_equinox_block", "norm_energy_per_token"), ("more/eqx_components", "ln_energy_token")):
        reference = load(f"{name}.npz")
        norm = block(reference, torch.float64).norm
        torch.testing.assert_close(norm.token_energies(reference["x"]), reference[expected], rtol=0, atol=1e-11)
        assert_close(norm.energy(reference["x"]), norm.token_energies(reference["x"]).sum())


@in_both_precisions
def test_descent_and_loss_gradients(dtype):
    reference = load("jax_equinox_block.npz")
    module = block(reference, dtype, reference["alpha"].item())
    x = torch.nn.Parameter(reference["x"].to(dtype))
    states, energies = descend(module, x, int(reference["steps"]))
    assert_close(states, reference["tokens"])
    assert_close(energies, reference["energies"])
    loss = states[-1].square().mean()
    assert_close(loss, reference["loss"])
    module.x = x
    names = {**WEIGHTS, "x": "x"}
    assert_gradients(
        module, loss, {name: reference[f"dloss_{key}"] for key, name in names.items()}, "jax_equinox_block"
    )


@in_both_precisions
def test_long_descent(dtype):
    reference = load("jax_equinox_long_descent.npz")
    module = block(reference, dtype, reference["alpha"].item())
    states, energies = descend(module, reference["x"].to(dtype), int(reference["steps"]))
    assert_close(energies[:-1], reference["energies"])
    assert_close(states[-1], reference["final_tokens"])
    assert dtype == torch.float32 or (energies.diff() < 0).all()


@in_both_precisions
@pytest.mark.parametrize("suffix", ["", "_rand"], ids=["normalized tokens", "any tokens"])
def test_components(dtype, suffix):
    reference = load("more/eqx_components.npz")
    module = block(reference, dtype)
    g = reference["g" + suffix].to(dtype)
    assert_close(module.attention.energy(g), reference["attn_energy" + suffix])
    assert_close(module.attention.grad(g), reference["attn_grad" + suffix])
    assert_close(module.hopfield.energy(g), reference["hn_energy" + suffix])
    assert_close(module.hopfield.grad(g), reference["hn_grad" + suffix])
    assert_close(token_energies(g, module.attention, module.hopfield).sum(), reference["et_energy" + suffix])
    assert_close(energy_gradient(g, module.attention, module.hopfield), reference["et_grad" + suffix])


@in_both_precisions
def test_component_norm_and_weight_gradients(dtype):
    reference = load("more/eqx_components.npz")
    module = block(reference, dtype)
    x = reference["x"].to(dtype)
    assert_close(module.norm(x), reference["g"])
    assert_close(module.norm.lagrangian(x), reference["lagrangian_token"])
    slope = torch.func.grad(lambda x: module.norm.lagrangian(x).sum())(x)
    assert_close(slope, reference["lagrangian_token_grad"])
    loss = energy_gradient(reference["g"].to(dtype), module.attention, module.hopfield).square().mean()
    energies = torch.nn.ModuleDict({"attention": module.attention, "hopfield": module.hopfield})
    expected = {WEIGHTS[key]: value for key, value in under(reference, "grad.").items()}
    assert_gradients(energies, loss, expected)
    module.norm.delta.data.zero_()
    assert_close(module.norm(x), reference["g_nobias"])
    assert_close(module.norm.lagrangian(x), reference["lagrangian_token_nobias"])


@in_both_precisions
@pytest.mark.parametrize("name", ["eqx_descent", "eqx_descent_default_init"])
def test_descents(dtype, name):
    reference = load(f"more/{name}.npz")
    module = block(reference, dtype, reference["config"]["alpha"])
    x = torch.nn.Parameter(reference["x0"].to(dtype))
    states, energies = descend(module, x, reference["config"]["steps"])
    assert_close(states, reference["tokens"])
    assert_close(energies, reference["energies"])
    gradients = energy_gradient(module.norm(states[:-1]), module.attention, module.hopfield)
    assert_close(gradients, reference["grads"])
    loss = states[-1].square().mean()
    assert_close(loss, reference["loss"])
    module.x = x
    names = {**WEIGHTS, "x0": "x"}
    assert_gradients(module, loss, {name: reference[f"grad.{key}"] for key, name in names.items()}, f"more/{name}")


def image_model(dtype):
    reference = load("more/eqx_image.npz")
    parameters = renamed(load("more/eqx_plaindict_ckpt.npz"), PLAINDICT_NAMES)
    config = jax_config(parameters, 16, num_steps=reference["config"]["steps"], step_size=reference["config"]["alpha"])
    model = EnergyTransformerForMaskedImageModeling(config).to(dtype)
    copy_parameters(model, parameters)
    return model, reference


def corrupted_positions(mask, count):
    """The reference replaces the first `count` positions whose value is 1, and position 0 when there are fewer."""
    ones = (mask == 1).nonzero().flatten().tolist()[:count]
    corrupted = torch.zeros_like(mask, dtype=torch.bool)
    corrupted[ones if len(ones) == count else [0, *ones]] = True
    return corrupted


@in_both_precisions
@pytest.mark.parametrize("kind", ["full", "none", "short", "two", "over"])
def test_image_model(dtype, kind):
    model, reference = image_model(dtype)
    mask = reference[f"mask_{kind}"]
    corrupted = corrupted_positions(mask, reference["config"]["n_mask"])
    outputs = model(
        reference["image"][None].to(dtype),
        bool_masked_pos=(mask > 0)[None],
        bool_corrupted_pos=corrupted[None],
        output_hidden_states=True,
        output_energies=True,
    )
    assert_close(outputs.hidden_states[0][0], reference[f"prepped_{kind}"])
    assert_close(outputs.energies[0], reference[f"energies_{kind}"])
    assert_close(outputs.reconstruction[0], reference[f"recon_single_norm_{kind}"])
    norm = model.energy_transformer.layers[0].norm
    twice_normed = norm(norm(outputs.hidden_states[-1]))
    assert_close(model.decode(twice_normed)[0], reference[f"recon_{kind}"])
    if kind == "full":
        assert_close(torch.stack(outputs.hidden_states)[:, 0], reference["tokens_full"])
    else:
        assert_close(outputs.hidden_states[-1][0], reference[f"tokens_final_{kind}"])


@in_both_precisions
def test_patches_and_their_encoding(dtype):
    model, reference = image_model(dtype)
    patches = patchify(reference["image"][None].to(dtype), (4, 4))
    assert_close(patches[0], reference["patches"].flatten(1))
    assert_close(model.get_input_embeddings()(patches)[0], reference["encoded"])


@in_both_precisions
def test_image_model_with_the_second_norm_of_image_core(dtype):
    model, reference = image_model(dtype)
    image, mask = reference["image"][None].to(dtype), reference["mask_full"][None]
    outputs = model.energy_transformer(image, bool_masked_pos=mask)
    twice_normed = model.energy_transformer.layers[0].norm(outputs.last_hidden_state)
    reconstruction = model.decode(twice_normed)
    assert_close(reconstruction[0], reference["recon_full"])
    in_loss = patch_mask_to_pixels(mask > 0, (4, 4), (4, 4)).expand_as(image)
    error = (reconstruction - image).masked_fill(~in_loss, 0).square()
    assert_close(error.sum() / in_loss.sum(), reference["masked_mse_full"])
    assert_close(error.mean().sqrt(), reference["masked_rmse_full"])
    expected = renamed(under(reference, "grad."), PLAINDICT_NAMES)
    assert_gradients(model, reconstruction.square().mean(), expected)
