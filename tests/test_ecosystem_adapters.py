"""LoRA by peft on projections and memories, which are parameters and no linear layers, and int8 weights by torchao."""

import copy

import pytest
import torch
from transformers import AutoModelForMaskedImageModeling, TorchAoConfig

from energy_transformer import EnergyTransformerConfig, EnergyTransformerForMaskedImageModeling

peft = pytest.importorskip("peft")
quantization = pytest.importorskip("torchao.quantization")

BLOCK = ["attention.Wq", "attention.Wk", "hopfield.W"]


def images(batch=8):
    return torch.rand(batch, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


def some_mask(batch=8):
    return torch.rand(batch, 24, generator=torch.Generator().manual_seed(1)) < 0.5


def run(model):
    with torch.no_grad():
        return model(pixel_values=images(), bool_masked_pos=some_mask(), output_energies=True, output_attentions=True)


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


def int8_of_the_block():
    return quantization.FqnToConfig(
        {
            r"re:.*attention\.W[qk]": quantization.Int8WeightOnlyConfig(),
            r"re:.*hopfield\.W": quantization.Int8WeightOnlyConfig(),
            r"re:.*patch_embeddings\.weight": quantization.Int8WeightOnlyConfig(),
            r"re:decoder\.weight": quantization.Int8WeightOnlyConfig(),
        }
    )


@pytest.fixture
def wide_model(small_config):
    torch.manual_seed(0)
    wide = {"hidden_size": 128, "num_attention_heads": 4, "head_dim": 32, "intermediate_size": 512}
    config = EnergyTransformerConfig(**small_config.to_dict() | wide)
    return EnergyTransformerForMaskedImageModeling(config).eval()


def relative_error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def test_int8_weights_are_loaded_saved_and_a_third_of_the_size(wide_model, tmp_path):
    wide_model.save_pretrained(tmp_path / "float32")
    model = AutoModelForMaskedImageModeling.from_pretrained(
        tmp_path / "float32", quantization_config=TorchAoConfig(int8_of_the_block())
    )
    layer = model.energy_transformer.layers[0]
    for weight in (layer.attention.Wq, layer.attention.Wk, layer.hopfield.W, model.decoder.weight):
        assert weight.qdata.dtype == torch.int8
    found, expected = run(model), run(wide_model)
    assert 0 < relative_error(found.reconstruction, expected.reconstruction) < 0.02
    assert relative_error(found.energies, expected.energies) < 0.01
    model.save_pretrained(tmp_path / "int8")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("int8", "float32")]
    assert sizes[0] < 0.33 * sizes[1]
    again = AutoModelForMaskedImageModeling.from_pretrained(tmp_path / "int8")
    assert again.energy_transformer.layers[0].hopfield.W.qdata.dtype == torch.int8
    assert torch.equal(run(again).reconstruction, found.reconstruction)


def test_a_model_in_memory_is_quantized_like_one_that_is_loaded(wide_model):
    expected = run(wide_model)
    quantization.quantize_(wide_model, int8_of_the_block(), filter_fn=None)
    assert wide_model.energy_transformer.layers[0].attention.Wk.qdata.dtype == torch.int8
    assert 0 < relative_error(run(wide_model).reconstruction, expected.reconstruction) < 0.02
