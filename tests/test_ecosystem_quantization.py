"""Int8 weights of the block by torchao; `make test-slow` brings the library, which is noisy when imported."""

import pytest
import torch
from masked_images import run
from transformers import AutoModelForMaskedImageModeling, TorchAoConfig

from energy_transformer import EnergyTransformerConfig, EnergyTransformerForMaskedImageModeling

quantization = pytest.importorskip("torchao.quantization")


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
