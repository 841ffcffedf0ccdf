"""The Hugging Face models: saving, Auto classes, sizes, masks, what is recorded along the descent, errors."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedImageModeling, AutoModelForPreTraining

from energy_transformer import (
    EnergyTransformerConfig,
    EnergyTransformerForMaskedImageModeling,
    EnergyTransformerModel,
)
from energy_transformer.embeddings import sine_cosine_positions
from energy_transformer.patches import patchify, unpatchify


def images(batch, *size, seed=0):
    return torch.rand(batch, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def random_mask(batch, patches, seed=0):
    return torch.rand(batch, patches, generator=torch.Generator().manual_seed(seed)) < 0.5


def test_default_is_the_papers_imagenet_model():
    with torch.device("meta"):
        model = EnergyTransformerForMaskedImageModeling(EnergyTransformerConfig())
    assert model.num_parameters() == 4_873_729
    assert sum(p.numel() for p in model.energy_transformer.layers[0].attention.parameters()) == 2 * 12 * 64 * 768
    assert model.energy_transformer.layers[0].hopfield.W.shape == (768, 3072)


@pytest.mark.parametrize("auto", [AutoModelForMaskedImageModeling, AutoModelForPreTraining])
def test_saved_model_loads_bit_identical(small_model, tmp_path, auto):
    small_model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    loaded = auto.from_pretrained(tmp_path)
    assert type(loaded) is EnergyTransformerForMaskedImageModeling
    expected = {**small_model.config.to_dict(), "_name_or_path": str(tmp_path), "dtype": "float32"}
    assert loaded.config.to_dict() == expected
    for name, value in small_model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    mask = random_mask(2, 24)
    expected = small_model(images(2, 3, 16, 24), bool_masked_pos=mask)
    assert torch.equal(loaded(images(2, 3, 16, 24), bool_masked_pos=mask).reconstruction, expected.reconstruction)


def test_backbone_of_a_masked_image_checkpoint_loads(small_model, tmp_path):
    small_model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), EnergyTransformerConfig)
    backbone = AutoModel.from_pretrained(tmp_path).eval()
    assert type(backbone) is EnergyTransformerModel
    expected = small_model.energy_transformer(images(2, 3, 16, 24)).last_hidden_state
    assert torch.equal(backbone(images(2, 3, 16, 24)).last_hidden_state, expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("patch", [(4, 4), (2, 8)])
@pytest.mark.parametrize("cls", [True, False])
def test_non_square_images_and_patches(channels, patch, cls):
    config = EnergyTransformerConfig(
        image_size=(8, 24), patch_size=patch, num_channels=channels, hidden_size=16, num_attention_heads=2,
        head_dim=4, intermediate_size=8, num_steps=2, use_cls_token=cls,
    )  # fmt: skip
    model = EnergyTransformerForMaskedImageModeling(config)
    outputs = model(images(2, channels, 8, 24), output_hidden_states=True)
    patches = (8 // patch[0]) * (24 // patch[1])
    assert outputs.reconstruction.shape == (2, channels, 8, 24)
    assert outputs.mask.shape == (2, patches)
    assert outputs.hidden_states[0].shape == (2, patches + cls, 16)


def test_patchify_is_row_by_row_and_channel_first():
    pixels = torch.arange(2 * 4 * 6).reshape(1, 2, 4, 6)
    patches = patchify(pixels, (2, 3))
    assert torch.equal(patches[0, 1], pixels[0, :, :2, 3:].flatten())
    assert torch.equal(patches[0, 2], pixels[0, :, 2:, :3].flatten())
    assert torch.equal(unpatchify(patches, (2, 3), (2, 2), 2), pixels)


@pytest.mark.parametrize("size", [(16, 24), (24, 16), (32, 48), (4, 4)])
def test_any_size_that_the_patch_size_divides(small_model, size):
    outputs = small_model(images(1, 3, *size), interpolate_pos_encoding=True)
    assert outputs.reconstruction.shape == (1, 3, *size)
    if size == (16, 24):
        same = small_model(images(1, 3, *size))
        assert torch.equal(outputs.reconstruction, same.reconstruction)


def test_masked_pixels_are_not_seen_and_visible_ones_are(small_model):
    mask = random_mask(1, 24)
    pixels, other = images(1, 3, 16, 24), images(1, 3, 16, 24, seed=1)
    hidden = unpatchify(mask[..., None].expand(-1, -1, 48), (4, 4), (4, 6), 3)
    result = small_model(pixels, bool_masked_pos=mask).reconstruction
    changed_hidden = small_model(torch.where(hidden, other, pixels), bool_masked_pos=mask).reconstruction
    changed_visible = small_model(torch.where(hidden, pixels, other), bool_masked_pos=mask).reconstruction
    assert torch.equal(result, changed_hidden)
    assert not torch.allclose(result, changed_visible, atol=1e-3)


def test_loss_is_the_mean_over_the_masked_pixels_and_corruption_is_separate(small_model):
    pixels = images(2, 3, 16, 24)
    masked = random_mask(2, 24)
    masked[1, 3:] = False  # any number of patches for each image
    corrupted = masked & random_mask(2, 24, seed=1)
    outputs = small_model(pixels, bool_masked_pos=masked, bool_corrupted_pos=corrupted)
    error = (patchify(outputs.reconstruction, (4, 4)) - patchify(pixels, (4, 4)))[masked]
    torch.testing.assert_close(outputs.loss, error.square().mean())
    assert torch.equal(outputs.mask, masked)
    only_corrupted = small_model(pixels, bool_masked_pos=corrupted)
    assert torch.equal(outputs.reconstruction, only_corrupted.reconstruction)


def test_norm_pix_loss_normalizes_the_target(small_model):
    model = copy.deepcopy(small_model)
    model.config.norm_pix_loss = True
    pixels, mask = images(2, 3, 16, 24), random_mask(2, 24)
    outputs = model(pixels, bool_masked_pos=mask)
    target = patchify(pixels, (4, 4))
    target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    expected = (patchify(outputs.reconstruction, (4, 4)) - target)[mask].square().mean()
    torch.testing.assert_close(outputs.loss, expected)


def test_masks_that_are_drawn(small_model):
    pixels = images(2, 3, 16, 24)
    mask = small_model(pixels).mask
    assert torch.equal(small_model(pixels).mask, mask), "evaluation has no hidden randomness"
    assert torch.equal(small_model(pixels[:1]).mask, mask[:1]) and not torch.equal(mask[0], mask[1])
    small_model.train()
    assert not torch.equal(small_model(pixels).mask, small_model(pixels).mask)
    noise = torch.rand(2, 24, generator=torch.Generator().manual_seed(3))
    by_generator = small_model(pixels, generator=torch.Generator().manual_seed(3))
    assert torch.equal(small_model(pixels, noise=noise).mask, by_generator.mask)
    assert by_generator.mask.sum(-1).tolist() == [round(24 * 100 / 196)] * 2


def test_what_is_recorded_along_the_descent(small_config):
    config = copy.deepcopy(small_config)
    config.num_hidden_layers = 2
    model = EnergyTransformerModel(config).eval()
    outputs = model(images(2, 3, 16, 24), output_hidden_states=True, output_energies=True, output_attentions=True)
    assert len(outputs.hidden_states) == 7
    assert outputs.energies.shape == (2, 7)
    assert len(outputs.attentions) == 6 and outputs.attentions[0].shape == (2, 3, 25, 25)
    torch.testing.assert_close(outputs.attentions[0].sum(-1), torch.ones(2, 3, 25))
    torch.testing.assert_close(model.layers[1].norm(outputs.hidden_states[-1]), outputs.last_hidden_state)
    outputs.attentions[0].retain_grad()
    outputs.last_hidden_state.square().sum().backward()
    assert outputs.attentions[0].grad.abs().max() > 0, "the weights returned are those that the descent used"
    plain = model(images(2, 3, 16, 24), return_dict=False)
    assert len(plain) == 2 and torch.equal(plain[0], outputs.last_hidden_state)
    assert torch.equal(plain[1], outputs.last_hidden_state[:, 0])


def test_some_of_the_states_are_recorded(small_model):
    pixels, mask = images(1, 3, 16, 24), random_mask(1, 24)
    every = small_model(pixels, bool_masked_pos=mask, output_hidden_states=True).hidden_states
    for wanted in ([0, -1], -1, [2]):
        some = small_model(pixels, bool_masked_pos=mask, output_hidden_states=wanted).hidden_states
        indices = {index % 4 for index in ([wanted] if isinstance(wanted, int) else wanted)}
        assert [index for index, state in enumerate(some) if state is not None] == sorted(indices)
        assert all(torch.equal(some[index], every[index]) for index in indices)
        torch.testing.assert_close(small_model.decode_states(some), small_model.decode_states(every)[sorted(indices)])
    with pytest.raises(ValueError, match=r"indices of the 4 states, got \[4\]"):
        small_model(pixels, output_hidden_states=[4])


def test_number_of_steps_at_call_time(small_model):
    pixels, mask = images(1, 3, 16, 24), random_mask(1, 24)
    long = small_model(pixels, bool_masked_pos=mask, num_steps=7, output_hidden_states=True, output_energies=True)
    short = small_model(pixels, bool_masked_pos=mask, num_steps=2)
    frames = small_model.decode_states(long.hidden_states)
    assert frames.shape == (8, 1, 3, 16, 24)
    torch.testing.assert_close(frames[2], short.reconstruction)
    torch.testing.assert_close(frames[-1], long.reconstruction)
    assert (long.energies.diff(dim=-1) < 0).all()


def test_gradient_checkpointing_changes_no_gradient(small_model):
    pixels, mask = images(2, 3, 16, 24), random_mask(2, 24)
    gradients = []
    for checkpointing in (False, True):
        model = copy.deepcopy(small_model).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(pixels, bool_masked_pos=mask).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_scaled_initialization(small_model):
    layer, embeddings = small_model.energy_transformer.layers[0], small_model.energy_transformer.embeddings
    assert torch.equal(layer.attention.Wq, layer.attention.Wk)
    assert layer.attention.Wq.std().item() == pytest.approx(32**-0.5, rel=0.1)
    assert torch.equal(embeddings.position_embeddings[0, 1:], sine_cosine_positions((4, 6), 32))
    codes = sine_cosine_positions((8, 8), 64)
    assert codes.square().sum(-1).allclose(torch.tensor(32.0))
    assert torch.pdist(codes).min() > 0.5


def test_paper_initialization(small_config):
    config = EnergyTransformerConfig(image_size=32, patch_size=4, hidden_size=64)
    model = EnergyTransformerForMaskedImageModeling(config)
    layer, embeddings = model.energy_transformer.layers[0], model.energy_transformer.embeddings
    for tensor in (layer.attention.Wq, layer.attention.Wk, embeddings.position_embeddings):
        assert tensor.std().item() == pytest.approx(0.002, rel=0.1)
    assert layer.hopfield.W.std().item() == pytest.approx(0.02, rel=0.05)
    assert not torch.equal(layer.attention.Wq, layer.attention.Wk)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pixel_values": (2, 3, 16)}, r"pixel_values must have shape \(B, 3, H, W\), got \(2, 3, 16\)"),
        ({"pixel_values": (2, 1, 16, 24)}, r"pixel_values must have shape \(B, 3, H, W\), got \(2, 1, 16, 24\)"),
        ({"pixel_values": (2, 3, 15, 24)}, "15x24 pixels are not a multiple of the patch size 4x4"),
        ({"pixel_values": (2, 3, 32, 24)}, "interpolate_pos_encoding=True"),
        (
            {"bool_masked_pos": torch.ones(2, 23, dtype=torch.bool)},
            r"bool_masked_pos must have shape .* \(2, 24\), .* got \(2, 23\)",
        ),
        (
            {"bool_masked_pos": torch.ones(2, 24)},
            "bool_masked_pos must hold booleans, or the integers 0, 1 and 2, got torch",
        ),
        ({"bool_masked_pos": torch.full((2, 24), 255, dtype=torch.uint8)}, "integers 0, 1 and 2, got the value 255"),
        ({"bool_masked_pos": -torch.ones(2, 24, dtype=torch.long)}, "integers 0, 1 and 2, got the value -1"),
        ({"bool_corrupted_pos": torch.ones(2, 24, dtype=torch.bool)}, "bool_corrupted_pos needs bool_masked_pos"),
        ({"num_steps": -1}, "num_steps must be a whole number of at least 0, got -1"),
        ({"num_steps": 2.5}, "num_steps must be a whole number of at least 0, got 2.5"),
    ],
)
def test_bad_input_is_refused_with_the_reason(small_model, arguments, message):
    arguments = {"pixel_values": (2, 3, 16, 24), **arguments}
    arguments["pixel_values"] = torch.zeros(arguments["pixel_values"])
    with pytest.raises(ValueError, match=message):
        small_model(**arguments)


def test_unknown_keywords_are_refused_with_the_nearest_name(small_model):
    for model in (small_model, small_model.energy_transformer):
        with pytest.raises(TypeError, match=r"has no argument 'num_step'; did you mean 'num_steps'\?"):
            model(torch.zeros(2, 3, 16, 24), num_step=2)


def test_masking_a_model_without_a_mask_token_is_refused(small_config):
    with pytest.raises(ValueError, match="use_mask_token"):
        EnergyTransformerModel(small_config)(torch.zeros(1, 3, 16, 24), bool_masked_pos=random_mask(1, 24))
