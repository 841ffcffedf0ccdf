"""Inference that stops when it has settled, and what a descent of many steps keeps in memory."""

import numpy as np
import pytest
import torch

from energy_transformer import (
    EnergyContext,
    EnergyTransformerConfig,
    EnergyTransformerForMaskedImageModeling,
    EnergyTransformerModel,
)


def model_and_pixels(**options):
    torch.manual_seed(0)
    config = EnergyTransformerConfig(
        image_size=16, patch_size=4, hidden_size=32, num_attention_heads=2, head_dim=8, intermediate_size=48,
        num_steps=200, step_size=0.5, initialization="scaled", hopfield_initializer_range=0.3, **options,
    )  # fmt: skip
    contrasts = torch.tensor([0.01, 0.3, 1.0, 3.0, 30.0], dtype=torch.float64)[:, None, None, None]
    return EnergyTransformerModel(config).double().eval(), contrasts * torch.randn(5, 3, 16, 16, dtype=torch.float64)


@torch.no_grad()
@pytest.mark.parametrize("blocks", [1, 2])
def test_each_image_stops_by_itself_where_the_definition_says(blocks):
    model, pixels = model_and_pixels(num_hidden_layers=blocks)
    padding = torch.ones(5, 17, dtype=torch.bool)
    padding[1, -4:] = False
    found = model(pixels, attention_mask=padding, tolerance=0.02, num_steps=40)
    for image in range(5):
        real, taken = padding[image : image + 1], 0
        x = model.embeddings(pixels[image : image + 1])
        for layer in model.layers:
            for _ in range(40):
                following = layer(x, 1, EnergyContext(real)).state
                before, after = (layer.norm(state)[real] for state in (x, following))
                x, taken = following, taken + 1
                if (after - before).norm() <= 0.02 * before.norm():
                    break
        assert found.num_steps_taken[image] == taken
        torch.testing.assert_close(found.last_hidden_state[image][real[0]], layer.norm(x)[real], rtol=1e-9, atol=1e-9)
    assert found.num_steps_taken.unique().numel() > 1 and found.num_steps_taken.max() < 40 * blocks


@torch.no_grad()
def test_settled_images_are_not_computed():
    model, pixels = model_and_pixels()
    images = []
    pull = model.layers[0].hopfield.pull
    model.layers[0].hopfield.pull = lambda h, context: images.append(len(h)) or pull(h, context)
    taken = model(pixels, tolerance=0.02).num_steps_taken
    assert sum(images) == taken.sum() < 5 * taken.max() and images == sorted(images, reverse=True)


@torch.no_grad()
def test_no_tolerance_is_the_whole_descent():
    model, pixels = model_and_pixels()
    whole = model(pixels, num_steps=7)
    zero = model(pixels, num_steps=7, tolerance=0.0)
    assert whole.num_steps_taken is None and zero.num_steps_taken.tolist() == [7] * 5
    torch.testing.assert_close(zero.last_hidden_state, whole.last_hidden_state, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_what_is_not_a_number_has_not_settled():
    model, pixels = model_and_pixels()
    pixels[1] = torch.nan
    taken = model(pixels, tolerance=0.5, num_steps=20).num_steps_taken
    assert taken[1] == 20 > taken[0]


@torch.no_grad()
def test_numbers_of_numpy_count():
    model, pixels = model_and_pixels()
    found = model(pixels, num_steps=np.int64(7), tolerance=np.float32(0.5)).num_steps_taken
    assert torch.equal(found, model(pixels, num_steps=7, tolerance=0.5).num_steps_taken)


def test_what_a_tolerance_cannot_go_with():
    model, pixels = model_and_pixels()
    with pytest.raises(ValueError, match=r"tolerance needs torch.no_grad\(\)"):
        model(pixels, tolerance=0.1)
    with torch.no_grad():
        for request in ("output_hidden_states", "output_attentions", "output_energies", "output_energy_parts"):
            with pytest.raises(ValueError, match="tolerance cannot be combined with"):
                model(pixels, tolerance=0.1, **{request: True})
        for wrong in (-1, "a", float("nan")):
            with pytest.raises(ValueError, match=f"tolerance must be a number of at least 0, got {wrong!r}"):
                model(pixels, tolerance=wrong)


def saved_bytes(model, pixels, mask, num_steps):
    """What autograd keeps between a forward and its backward: every storage once, without the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(pixels, bool_masked_pos=mask, num_steps=num_steps).loss
    loss.backward()
    return sum(storages.values())


def test_what_is_kept_for_each_step():
    """Chunked: x, g, q and k, and the joined pulls of 3 D columns, nothing twice and nothing of N×N. With checkpointing
    by step: the state x_t alone."""
    torch.manual_seed(0)
    config = EnergyTransformerConfig(
        image_size=64, patch_size=4, hidden_size=32, num_attention_heads=4, head_dim=8, intermediate_size=32,
    )  # fmt: skip
    model = EnergyTransformerForMaskedImageModeling(config).train()
    pixels, mask = torch.rand(2, 3, 64, 64), torch.rand(2, 256) < 0.5
    state, pairs = 2 * 257 * 32 * 4, 2 * 4 * 257 * 257 * 4
    per_step = {}
    for name in ("eager", "chunked", "checkpointed"):
        if name == "checkpointed":
            model.gradient_checkpointing_enable()
        else:
            model.set_attn_implementation(name)
        few, many = (saved_bytes(model, pixels, mask, steps) for steps in (2, 12))
        per_step[name] = (many - few) / 10
    assert pairs < per_step["eager"] < pairs + 7.2 * state
    assert per_step["chunked"] < 7.2 * state < pairs
    assert per_step["checkpointed"] <= 1.1 * state
