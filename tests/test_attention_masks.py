"""Attention masks, padding, and the options of the model that no reference file covers."""

import pytest
import torch
from blocks import attention_weights, energy_parts

from energy_transformer import (
    EnergyAttention,
    EnergyLayerNorm,
    EnergyTransformerConfig,
    EnergyTransformerForImageClassification,
    EnergyTransformerForMaskedImageModeling,
    EnergyTransformerModel,
)
from energy_transformer.energies import LayerNorm

SMALL = {
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 16,
    "num_attention_heads": 3,
    "head_dim": 6,
    "intermediate_size": 20,
    "num_steps": 3,
    "step_size": 0.5,
    "initialization": "scaled",
    "hopfield_initializer_range": 0.3,
}


def make(cls=EnergyTransformerModel, **options):
    torch.manual_seed(0)
    return cls(EnergyTransformerConfig(**SMALL, **options)).double().eval()


@pytest.fixture
def pixel_values():
    return torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def padding():
    """The last 5 patches of the first image, 1 of the second."""
    mask = torch.ones(2, 17, dtype=torch.bool)
    mask[0, -5:] = False
    mask[1, 7] = False
    return mask


@pytest.mark.parametrize("attend_to_self", [True, False])
def test_padding_has_no_energy_does_not_move_and_is_not_seen(pixel_values, padding, attend_to_self):
    model = make(attend_to_self=attend_to_self, attention_bias=True, hopfield_bias=True)
    for name, parameter in model.named_parameters():
        if name.endswith(("bq", "bk", "hopfield.bias")):
            parameter.data.normal_()
    requests = {"output_hidden_states": True, "output_energy_parts": True, "output_attentions": True}
    outputs = model(pixel_values, attention_mask=padding, **requests)
    first, last = outputs.hidden_states[0], outputs.hidden_states[-1]
    assert (first == last)[~padding].all() and (first != last).any(-1)[padding].all()
    tokens = outputs.energy_parts.tokens.transpose(1, 2)
    assert (tokens[~padding] == 0).all() and (tokens[padding] != 0).all()
    for weights in outputs.attentions:
        weights = weights.transpose(1, 2)
        assert (weights[~padding] == 0).all() and (weights.transpose(1, 3)[~padding] == 0).all()

    for content in (100.0, torch.nan, torch.inf):
        changed = pixel_values.clone()
        changed[0, :, 12:, :] = content  # patches 12 to 15, all padding
        again = model(changed, attention_mask=padding, output_energies=True)
        # to the last bit but for products that depend on where their operands lie in memory, as on some processors
        expected = outputs.last_hidden_state[padding]
        torch.testing.assert_close(again.last_hidden_state[padding], expected, rtol=0, atol=1e-14)
        torch.testing.assert_close(again.energies, outputs.energy_parts.tokens.sum(-1), rtol=1e-13, atol=0)


def test_padding_equals_leaving_the_tokens_out(pixel_values, padding):
    model = make()
    layer = model.layers[0]
    state = model.embeddings(pixel_values)[:1]
    kept = state[:, padding[0]]
    energies = [sum(energy_parts(layer, kept)).sum()]
    for _ in range(3):
        kept = layer(kept, 1).state
    outputs = model(pixel_values[:1], attention_mask=padding[:1], output_hidden_states=True, output_energies=True)
    torch.testing.assert_close(outputs.hidden_states[-1][:, padding[0]], kept, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(outputs.energies[0, 0], energies[0], rtol=1e-12, atol=1e-12)


def test_a_mask_of_pairs(pixel_values):
    """A masked score is −inf: zero weight, whatever the score; a row without any key has no attention energy."""
    model = make()
    layer = model.layers[0]
    mask = torch.rand(2, 17, 17, generator=torch.Generator().manual_seed(2)) < 0.5
    mask[0, 3] = False
    outputs = model(pixel_values, attention_mask=mask, output_attentions=True, output_energy_parts=True)
    weights = outputs.attentions[0]
    assert (weights.masked_select(~mask[:, None]) == 0).all()
    torch.testing.assert_close(weights.sum(-1), mask.any(-1)[:, None].expand(2, 3, 17).double())
    g = layer.norm(model.embeddings(pixel_values))
    query, key = (torch.einsum("bnd,hyd->bhny", g, w) for w in (layer.attention.Wq, layer.attention.Wk))
    scores = 6**-0.5 * query @ key.transpose(-1, -2)
    expected = -(6**0.5) * torch.where(mask[:, None], scores.exp(), 0.0).sum(-1).log()
    expected = torch.where(mask.any(-1)[:, None], expected, 0.0).sum((1, 2))
    torch.testing.assert_close(outputs.energy_parts.attention[:, 0], expected, rtol=1e-12, atol=1e-12)
    hopfield = model(pixel_values, output_energy_parts=True).energy_parts.hopfield
    torch.testing.assert_close(outputs.energy_parts.hopfield[:, 0], hopfield[:, 0])


def test_masks_that_hide_nothing_change_nothing(pixel_values):
    model = make()
    expected = model(pixel_values).last_hidden_state
    for shape in ((2, 17), (2, 17, 17)):
        found = model(pixel_values, attention_mask=torch.ones(shape, dtype=torch.long)).last_hidden_state
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_the_heads_pass_the_mask_on(pixel_values, padding):
    model = make(EnergyTransformerForMaskedImageModeling)
    masked = torch.zeros(2, 16, dtype=torch.bool)
    outputs = model(pixel_values, bool_masked_pos=masked, attention_mask=padding, output_energies=True)
    base = model.energy_transformer(pixel_values, attention_mask=padding, output_energies=True)
    assert outputs.energies.equal(base.energies)
    model = make(EnergyTransformerForImageClassification, num_labels=4)
    outputs = model(pixel_values, attention_mask=padding, output_energies=True)
    base = model.energy_transformer(pixel_values, attention_mask=padding, output_energies=True)
    assert outputs.energies.equal(base.energies)


def test_gradient_checkpointing_passes_the_mask_on(pixel_values, padding):
    gradients = []
    for checkpointing in (False, True):
        model = make().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(pixel_values, attention_mask=padding).last_hidden_state.square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 16), (1, 17), (2, 17, 16), (2, 3, 17, 17)])
def test_masks_of_another_shape_are_refused(pixel_values, shape):
    with pytest.raises(ValueError, match=r"attention_mask must have shape \(B, N\) = \(2, 17\) or \(B, N, N\)"):
        make()(pixel_values, attention_mask=torch.ones(shape, dtype=torch.bool))


def test_additive_masks_are_refused(pixel_values):
    with pytest.raises(ValueError, match="attention_mask must hold booleans, or the integers 0 and 1"):
        make()(pixel_values, attention_mask=torch.zeros(2, 17))


def test_regularized_norm(pixel_values):
    """λ|x|²/2 is added to the Lagrangian, so λx to g; the energy is that of the changed g."""
    plain, regularized = make(), make(norm_regularization=0.25)
    x = plain.embeddings(pixel_values)
    torch.testing.assert_close(regularized.layers[0].norm(x), plain.layers[0].norm(x) + 0.25 * x)
    norm = regularized.layers[0].norm
    torch.testing.assert_close(torch.func.grad(lambda x: norm.lagrangian(x).sum())(x), norm(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(norm.energy(x), ((norm(x) * x).sum(-1) - norm.lagrangian(x)).sum())


def test_layer_norm_in_place_of_the_energy_norm(pixel_values):
    model = make(norm_type="layer_norm", layer_norm_eps=1e-3)
    norm = model.layers[0].norm
    assert isinstance(norm, LayerNorm) and not isinstance(norm, EnergyLayerNorm)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    expected = torch.nn.functional.layer_norm(model.embeddings(pixel_values), (16,), norm.weight, norm.bias, 1e-3)
    outputs = model(pixel_values, num_steps=0)
    torch.testing.assert_close(outputs.last_hidden_state, expected, rtol=1e-12, atol=1e-12)


def test_excluding_self_attention():
    """The paper's B ≠ C: each token's log-sum-exp over the others; a lone token has no attention energy."""
    torch.manual_seed(0)
    attention = EnergyAttention(8, 2, scale=1.0, head_dim=3, learnable_beta=False, attend_to_self=False).double()
    g = torch.randn(4, 8, dtype=torch.float64)
    query, key = (torch.einsum("nd,hyd->hny", g, w) for w in (attention.Wq, attention.Wk))
    scores = 3**-0.5 * query @ key.mT
    others = torch.stack([torch.cat([scores[:, i, :i], scores[:, i, i + 1 :]], -1) for i in range(4)], 1)
    torch.testing.assert_close(attention.energy(g), -(3**0.5) * others.logsumexp(-1).sum(), rtol=1e-12, atol=1e-12)
    assert attention.energy(g[:1]) == 0 and (attention(g[:1]) == 0).all()
    assert attention_weights(attention, g).diagonal(dim1=-2, dim2=-1).eq(0).all()


@pytest.mark.parametrize("heads, head_dim", [(3, 6), (1, 40), (5, 1)])
def test_head_width_is_independent_of_the_token_width(pixel_values, heads, head_dim):
    model = make() if heads == 3 else None
    config = EnergyTransformerConfig(**{**SMALL, "num_attention_heads": heads, "head_dim": head_dim})
    model = model or EnergyTransformerModel(config).double()
    assert model.layers[0].attention.Wq.shape == (heads, head_dim, 16)
    assert model(pixel_values).last_hidden_state.shape == (2, 17, 16)


def test_betas_of_each_head_fixed_or_learned(pixel_values, tmp_path):
    fixed, learned = (make(attention_beta=[0.1, 0.5, 2.0], learnable_beta=learn) for learn in (False, True))
    for model in (fixed, learned):
        model.save_pretrained(tmp_path)
        loaded = EnergyTransformerModel.from_pretrained(tmp_path).double().eval()
        torch.testing.assert_close(
            torch.as_tensor(loaded.layers[0].attention.beta).tolist(), [0.1, 0.5, 2.0], rtol=1e-6, atol=0
        )
        torch.testing.assert_close(loaded(pixel_values)[0], model(pixel_values)[0], rtol=1e-5, atol=1e-6)
    assert "layers.0.attention.beta" not in fixed.state_dict()
    assert learned.layers[0].attention.beta.requires_grad
    alone = EnergyAttention(16, 1, 0.5, head_dim=6).double()
    attention = learned.layers[0].attention
    alone.Wq.data, alone.Wk.data = attention.Wq.data[1:2], attention.Wk.data[1:2]
    g = torch.randn(5, 16, dtype=torch.float64)
    torch.testing.assert_close(attention_weights(attention, g)[1], attention_weights(alone, g)[0])


def test_no_cls_token(pixel_values):
    model = make(EnergyTransformerForMaskedImageModeling, use_cls_token=False)
    assert not any("cls_token" in name for name in model.state_dict())
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[:, 3] = True
    outputs = model(pixel_values, bool_masked_pos=mask, output_hidden_states=True)
    assert outputs.hidden_states[0].shape == (2, 16, 16) and outputs.reconstruction.shape == pixel_values.shape
    other = pixel_values.clone()
    other[:, :, :4, 12:] += 1  # the masked patch
    again = model(other, bool_masked_pos=mask).reconstruction
    torch.testing.assert_close(again, outputs.reconstruction, rtol=0, atol=0)


def test_mlp_patch_embedding(pixel_values):
    """Linear, layer norm, ReLU, linear on both sides, as in LumenPallidium's example."""
    model = make(EnergyTransformerForMaskedImageModeling, patch_embedding="mlp")
    shapes = {
        "energy_transformer.embeddings.patch_embeddings.0": (16, 48),
        "energy_transformer.embeddings.patch_embeddings.3": (16, 16),
        "decoder.0": (16, 16),
        "decoder.3": (48, 16),
    }
    state = model.state_dict()
    for name, shape in shapes.items():
        assert state[f"{name}.weight"].shape == shape
    for encoder in (model.energy_transformer.embeddings.patch_embeddings, model.decoder):
        assert [type(layer).__name__ for layer in encoder] == ["Linear", "LayerNorm", "ReLU", "Linear"]
    model(pixel_values, bool_masked_pos=torch.ones(2, 16, dtype=torch.bool)).loss.backward()
    assert model.decoder[0].weight.grad.any()


@pytest.mark.parametrize("decoder_norm", ["energy_layer_norm", "layer_norm", "none"])
def test_decoder_norms(pixel_values, decoder_norm):
    model = make(EnergyTransformerForMaskedImageModeling, decoder_norm=decoder_norm, decoder_norm_eps=0.5)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    outputs = model(pixel_values, bool_masked_pos=mask, output_hidden_states=True)
    state = outputs.hidden_states[-1]
    norms = {
        "energy_layer_norm": model.energy_transformer.layers[0].norm,
        "layer_norm": lambda x: torch.nn.functional.layer_norm(x, (16,), eps=0.5),
        "none": lambda x: x,
    }
    expected = model.decoder(norms[decoder_norm](state)[:, 1:])
    patches = outputs.reconstruction.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    torch.testing.assert_close(patches, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model.decode_states(outputs.hidden_states)[-1], outputs.reconstruction)
