"""Lemon-cmd/energy-transformer-torch, without its attention masks, which multiply the scores."""

import pytest
import torch
from blocks import energy_gradient
from reference_numbers import (
    assert_close,
    assert_gradients,
    copy_parameters,
    in_both_precisions,
    load,
    tolerance_of,
    under,
)

from energy_transformer import EnergyTransformerConfig, EnergyTransformerForMaskedImageModeling
from energy_transformer.patches import patchify, unpatchify

NAMES = {
    "cls": "energy_transformer.embeddings.cls_token",
    "mask": "energy_transformer.embeddings.mask_token",
    "encode.0.weight": "energy_transformer.embeddings.patch_embeddings.weight",
    "encode.0.bias": "energy_transformer.embeddings.patch_embeddings.bias",
    "pos.weight": "energy_transformer.embeddings.position_embeddings",
    "decode.0.weight": "decoder_norm.weight",
    "decode.0.bias": "decoder_norm.bias",
    "decode.1.weight": "decoder.weight",
    "decode.1.bias": "decoder.bias",
}
BLOCK_NAMES = {
    "0.gamma": "norm.gamma",
    "0.bias": "norm.delta",
    "1.attn.wq": "attention.Wq",
    "1.attn.wk": "attention.Wk",
    "1.attn.bq": "attention.bq",
    "1.attn.bk": "attention.bk",
    "1.hn.proj.weight": "hopfield.W",
    "1.hn.proj.bias": "hopfield.bias",
}


def renamed(state):
    """Parameters, or their gradients, under our names; the memories are the rows of a linear map there."""
    values = {}
    for key, value in state.items():
        if key.startswith("blocks."):
            _, block, rest = key.split(".", 2)
            name = f"energy_transformer.layers.{block}.{BLOCK_NAMES[rest]}"
        else:
            name = NAMES[key]
        values[name] = value.T if key.endswith("hn.proj.weight") else value
    return values


def model_of(state, image_size, steps, step_size, dtype, **options):
    heads, head_dim, dim = state["blocks.0.1.attn.wq"].shape
    config = EnergyTransformerConfig(
        image_size=image_size,
        patch_size=4,
        hidden_size=dim,
        num_attention_heads=heads,
        head_dim=head_dim,
        intermediate_size=state["blocks.0.1.hn.proj.weight"].shape[0],
        num_hidden_layers=1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks.")),
        num_steps=steps,
        step_size=step_size,
        decoder_norm="layer_norm",
        decoder_norm_eps=dim,
        **options,
    )
    model = EnergyTransformerForMaskedImageModeling(config).to(dtype)
    copy_parameters(model, renamed(state))
    return model


def as_mask(indices, num_patches):
    return torch.zeros(len(indices), num_patches, dtype=torch.bool).scatter(1, indices, True)


@in_both_precisions
@pytest.mark.parametrize("blocks", [1, 2])
def test_image_model(dtype, blocks):
    reference = load(f"lemon_image_et_{blocks}_block.npz")
    steps, step_size = int(reference["steps"]), reference["alpha"].item()
    model = model_of(under(reference, "state_dict/"), 16, steps, step_size, dtype)
    pixel_values = reference["pixel_values"].to(dtype)
    outputs = model(pixel_values, bool_masked_pos=as_mask(reference["mask_indices"], 16), output_energies=True)
    assert_close(patchify(outputs.reconstruction, (4, 4)), reference["reconstruction_patches"])
    assert_close(outputs.energies.sum(0), reference["energies"])


OPTIONS = {
    "lemon_1block": {},
    "lemon_2block_bias": {"attention_bias": "shared", "hopfield_bias": True, "attention_beta": 0.6},
}


@in_both_precisions
@pytest.mark.parametrize("name", OPTIONS)
def test_image_model_and_loss_gradients(dtype, name):
    reference = load(f"more/{name}.npz")
    config = reference["config"]
    size, steps, step_size = config["image"][-1], config["time_steps"], config["alpha"]
    model = model_of(under(reference, "state."), size, steps, step_size, dtype, **OPTIONS[name])
    images = reference["images"].to(dtype)
    patches = patchify(images, (4, 4))
    assert_close(patches, reference["patches"])
    mask = as_mask(reference["mask_id"], patches.shape[1])
    outputs = model(images, bool_masked_pos=mask, output_hidden_states=True, output_energies=True)

    decoded = {"tolerance": tolerance_of(f"more/{name}, reconstruction")}
    assert_close(outputs.reconstruction, reference["recon_image"], **decoded)
    assert_close(patchify(outputs.reconstruction, (4, 4)), reference["recon"], **decoded)
    assert_close(outputs.energies.sum(0), reference["energies"])
    states = {"tolerance": tolerance_of(f"more/{name}, states")}
    assert_close(torch.stack(outputs.hidden_states), reference["tokens"], **states)
    assert_close(outputs.loss, reference["loss_masked_mse"])
    layer = model.energy_transformer.layers[0]
    first = energy_gradient(layer.norm(outputs.hidden_states[0]), layer.attention, layer.hopfield)
    assert_close(first, reference["grads_first"])
    cls_token = model.decoder(model.decoder_norm(outputs.hidden_states[-1][:, :1]))
    assert_close(cls_token, reference["cls_out"])
    unmasked = model(images, bool_masked_pos=torch.zeros_like(mask)).reconstruction
    assert_close(patchify(unmasked, (4, 4)), reference["recon_unmasked"])
    grid = model.config.grid_size
    last = model.decode_states(outputs.hidden_states)[-1]
    assert_close(last, unpatchify(reference["recon"], (4, 4), grid, 3), **decoded)

    assert_gradients(model, outputs.loss, renamed(under(reference, "lossgrad.")), f"more/{name}")
    assert_gradients(model, outputs.reconstruction.square().mean(), renamed(under(reference, "grad.")), f"more/{name}")
