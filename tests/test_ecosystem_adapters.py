"""LoRA by peft on projections and memories, which are parameters and no linear layers."""

import copy

import peft
import pytest
import torch
from masked_images import images, run, some_mask
from transformers import AutoModelForMaskedImageModeling

from energy_transformer import EnergyTransformerForMaskedImageModeling

BLOCK = ["attention.Wq", "attention.Wk", "hopfield.W"]


def adapted(model, steps=20):
    """The model with adapters on the block, trained, and the losses on the way."""
    config = peft.LoraConfig(r=2, lora_alpha=4, target_parameters=BLOCK, modules_to_save=["decoder"])
    model = peft.get_peft_model(model, config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model(pixel_values=images(), bool_masked_pos=some_mask()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return model.eval(), losses


@pytest.mark.parametrize("blocks", [1, 2])
def test_adapters_learn_while_the_weights_stay(small_config, blocks):
    small_config.num_hidden_layers = blocks
    base = EnergyTransformerForMaskedImageModeling(small_config).eval()
    before = copy.deepcopy(base)
    model, losses = adapted(base)
    assert losses[-1] < 0.8 * losses[0]
    names = {name for name, p in model.named_parameters() if p.requires_grad and "lora_" in name}
    assert len(names) == 2 * len(BLOCK) * blocks
    for name, parameter in model.named_parameters():
        if name in names and "lora_B" in name:
            assert parameter.abs().max() > 0, f"{name} has not moved"
        if not parameter.requires_grad:
            name = name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".original_module", "")
            assert torch.equal(parameter, before.get_parameter(name)), name
    with model.disable_adapter():
        torch.testing.assert_close(run(model).reconstruction, run(before).reconstruction)


def test_adapters_are_saved_loaded_and_merged(small_model, tmp_path):
    """The energies and attentions along the descent are those of the adapted weights too."""
    base = copy.deepcopy(small_model)
    model, _ = adapted(small_model)
    expected = run(model)
    assert not torch.allclose(expected.energies, run(base).energies, rtol=1e-3)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    assert torch.equal(run(loaded).reconstruction, expected.reconstruction)
    merged = loaded.merge_and_unload()
    assert type(merged) is EnergyTransformerForMaskedImageModeling
    assert set(merged.state_dict()) == set(base.state_dict())
    found = run(merged)
    torch.testing.assert_close(found.reconstruction, expected.reconstruction, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.energies, expected.energies, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.attentions[-1], expected.attentions[-1], rtol=1e-4, atol=1e-6)
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForMaskedImageModeling.from_pretrained(tmp_path / "merged")
    assert torch.equal(run(again).reconstruction, found.reconstruction)
