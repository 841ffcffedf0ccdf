"""Agreement in float64 with the reference implementations to 1e-10 relative: values, states, energies, gradients."""

import pytest
import torch

from energy_transformer import (
    EnergyAttention,
    EnergyLayerNorm,
    EnergyTransformer,
    EnergyTransformerConfig,
    EnergyTransformerForMaskedImageModeling,
    SoftmaxModernHopfield,
)
from energy_transformer.descent import descent_step, token_energies
from energy_transformer.energies import BaseModernHopfield
from energy_transformer.patches import patchify


def assert_close(actual, expected, name=""):
    """Relative to the largest entry, as the references' own rounding is."""
    scale = expected.abs().max().clamp(min=1e-300)
    error = ((actual.detach() - expected).abs().max() / scale).item()
    assert actual.shape == expected.shape, name
    assert error < 1e-10, f"{name}: relative error {error:.1e}"


def jax_block(ref):
    heads, width, dim = ref["Wq"].shape
    norm = EnergyLayerNorm(dim).double()
    attention = EnergyAttention(dim, heads, head_dim=width, learnable_beta=False).double()
    hopfield = BaseModernHopfield(dim, ref["Xi"].shape[1], learnable_beta=False).double()
    weights = {"gamma": norm.gamma, "delta": norm.delta, "Wq": attention.Wq, "Wk": attention.Wk, "Xi": hopfield.W}
    for name, parameter in weights.items():
        parameter.data.copy_(ref[name])
    return norm, attention, hopfield, weights


def test_jax_energies_and_gradients(reference):
    ref = reference("jax_equinox_block.npz")
    norm, attention, hopfield, _ = jax_block(ref)
    x, g = ref["x"], ref["g"]
    assert_close(norm(x), g)
    assert_close(norm.lagrangian(x), ref["norm_lagrangian_per_token"])
    torch.testing.assert_close(norm.token_energies(x), ref["norm_energy_per_token"], rtol=0, atol=1e-12)
    assert_close(attention.energy(g), ref["attention_energy"])
    assert_close(attention.grad(g), ref["attention_grad"])
    assert_close(hopfield.energy(g), ref["hopfield_energy"])
    assert_close(hopfield.grad(g), ref["hopfield_grad"])


def test_jax_descent_and_loss_gradients(reference):
    ref = reference("jax_equinox_block.npz")
    norm, attention, hopfield, weights = jax_block(ref)
    x = ref["x"].clone().requires_grad_()
    state, states, energies = x, [x], [token_energies(norm(x), attention, hopfield).sum()]
    for _ in range(int(ref["steps"])):
        state = descent_step(state, norm, attention, hopfield, ref["alpha"].item())
        states.append(state)
        energies.append(token_energies(norm(state), attention, hopfield).sum())
    assert_close(torch.stack(states), ref["tokens"])
    assert_close(torch.stack(energies), ref["energies"])
    loss = state.square().mean()
    assert_close(loss, ref["loss"])
    loss.backward()
    for name, parameter in {**weights, "x": x}.items():
        assert_close(parameter.grad, ref[f"dloss_{name}"], name)


def test_jax_long_descent(reference):
    ref = reference("jax_equinox_long_descent.npz")
    norm, attention, hopfield, _ = jax_block(ref)
    state, energies = ref["x"], []
    for _ in range(int(ref["steps"])):
        energies.append(token_energies(norm(state), attention, hopfield).sum())
        state = descent_step(state, norm, attention, hopfield, ref["alpha"].item())
    assert_close(torch.stack(energies), ref["energies"])
    assert_close(state, ref["final_tokens"])
    assert (torch.stack(energies).diff() < 0).all()


def test_flax_parts(reference):
    ref = reference("jax_flax_parts.npz")
    dim, memories = ref["Xi"].shape
    hopfield = SoftmaxModernHopfield(dim, memories, beta=ref["softmax_beta"].item(), learnable_beta=False).double()
    hopfield.W.data.copy_(ref["Xi"])
    assert_close(hopfield.energy(ref["g"]), ref["softmax_energy"])
    assert_close(hopfield.grad(ref["g"]), ref["softmax_grad"])
    norm = EnergyLayerNorm(dim, regularization=ref["lmda"].item()).double()
    norm.gamma.data.copy_(ref["gamma"])
    norm.delta.data.copy_(ref["delta"])
    assert_close(norm(ref["x"]), ref["regularized_norm"])


def test_flax_position_resizing(reference):
    ref = reference("jax_flax_parts.npz")
    config = EnergyTransformerConfig(image_size=16, patch_size=4, hidden_size=ref["g"].shape[1])
    embeddings = EnergyTransformerForMaskedImageModeling(config).double().energy_transformer.embeddings
    embeddings.position_embeddings.data.copy_(ref["pos_embed_4x4"][None])
    assert_close(embeddings.interpolate_pos_encoding((6, 6))[0], ref["pos_embed_6x6"])


FLAX_NAMES = {
    "backbone/block/attn/Wk": "energy_transformer.layers.0.attention.Wk",
    "backbone/block/attn/Wq": "energy_transformer.layers.0.attention.Wq",
    "backbone/block/chn/kernel": "energy_transformer.layers.0.hopfield.W",
    "backbone/cls_token": "energy_transformer.embeddings.cls_token",
    "backbone/mask_token": "energy_transformer.embeddings.mask_token",
    "backbone/pos_embed": "energy_transformer.embeddings.position_embeddings",
    "backbone/encoder/kernel": "energy_transformer.embeddings.patch_embeddings.weight",
    "backbone/encoder/bias": "energy_transformer.embeddings.patch_embeddings.bias",
    "backbone/norm/gamma": "energy_transformer.layers.0.norm.gamma",
    "backbone/norm/bias": "energy_transformer.layers.0.norm.delta",
    "decoder/kernel": "decoder.weight",
    "decoder/bias": "decoder.bias",
}


def flax_model(ref):
    heads, width, dim = ref["param/backbone/block/attn/Wq"].shape
    config = EnergyTransformerConfig(
        image_size=ref["image"].shape[-1],
        patch_size=int(ref["patch_size"]),
        hidden_size=dim,
        num_attention_heads=heads,
        head_dim=width,
        intermediate_size=ref["param/backbone/block/chn/kernel"].shape[1],
        num_steps=int(ref["steps"]),
        step_size=ref["alpha"].item(),
    )
    model = EnergyTransformerForMaskedImageModeling(config).double()
    parameters = dict(model.named_parameters())
    assert set(parameters) == set(FLAX_NAMES.values())
    for flax_name, name in FLAX_NAMES.items():
        value = ref[f"param/{flax_name}"]
        value = value.T if name.endswith(("patch_embeddings.weight", "decoder.weight")) else value
        parameters[name].data.copy_(value.reshape(parameters[name].shape))
    return model, parameters


def test_flax_masked_image_model(reference):
    ref = reference("jax_flax_masked_image.npz")
    model, parameters = flax_model(ref)
    image, mask = ref["image"][None], ref["mask"][None]
    outputs = model(
        image,
        bool_masked_pos=mask > 0,
        bool_corrupted_pos=mask == 1,
        output_hidden_states=True,
        output_energies=True,
    )
    assert_close(outputs.reconstruction[0], ref["reconstruction"])
    assert_close(torch.stack(outputs.hidden_states)[:, 0], ref["tokens"])
    assert_close(outputs.energies[0], ref["energies"])
    masked_patches = int((mask > 0).sum())
    patch_size = model.config.patch_height_width
    assert_close(outputs.loss * masked_patches * patchify(image, patch_size).shape[-1], ref["masked_sum_squared_error"])

    error = patchify(outputs.reconstruction - image, patch_size)
    loss = torch.where(mask[..., None] > 0, error, 0.0).square().mean()
    assert_close(loss, ref["loss_mean_over_all_entries"])
    loss.backward()
    for flax_name, name in FLAX_NAMES.items():
        gradient = parameters[name].grad
        gradient = gradient.T if name.endswith(("patch_embeddings.weight", "decoder.weight")) else gradient
        expected = ref[f"dloss/{flax_name}"]
        assert_close(gradient.reshape(expected.shape), expected, name)


@pytest.fixture(params=["relu", "softmax"])
def seed(request, reference):
    ref = reference(f"seed_energy_transformer_{request.param}.npz")
    dim, memories = ref["state_dict/hopfield.W"].shape
    model = EnergyTransformer(
        dim,
        memories,
        ref["state_dict/mha.beta"].shape[0],
        context=ref["x"].shape[1],
        n_iters_default=int(ref["n_iters"]),
        alpha=ref["alpha"].item(),
        hopfield_type=request.param,
        return_energy=True,
    ).double()
    state = {name.removeprefix("state_dict/"): v for name, v in ref.items() if name.startswith("state_dict/")}
    model.load_state_dict(state, strict=True)
    return model, ref


def test_seed_descent_and_loss_gradients(seed):
    model, ref = seed
    x = ref["x"].clone().requires_grad_()
    y, features, energies = model(x)
    assert_close(y, ref["y"])
    assert_close(torch.stack(features), ref["features"])
    assert_close(torch.stack(energies), ref["energies"])
    loss = y.square().mean()
    assert_close(loss, ref["loss"])
    loss.backward()
    assert_close(x.grad, ref["dloss_x"])
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, ref[f"dloss/{name}"], name)


def test_seed_parts(seed):
    model, ref = seed
    assert_close(model(ref["x"], n_iters=5)[0], ref["y_5_iterations"])
    assert_close(model.filtered_forward(ref["filtered_x"], ref["filtered_indices"]), ref["filtered_y"])
    assert_close(model.mha(ref["g"]), ref["mha_forward"])
    assert_close(model.hopfield(ref["g"]), ref["hopfield_forward"])


def test_seed_ema_update(seed):
    model, ref = seed
    model.ema_decay = 0.9
    new = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    average = {name: ref[f"ema_before/{name}"] for name in new}
    model.load_state_dict(average, strict=True)
    target = torch.nn.ParameterList(new.values())
    model.ema_update(target)
    for name, parameter in model.named_parameters():
        assert_close(parameter, ref[f"ema_after/{name}"], name)
