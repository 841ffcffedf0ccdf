"""The configuration refuses what cannot be, when it is made, and survives a round trip through its file."""

import pytest

from energy_transformer import EnergyTransformerConfig
from energy_transformer.configuration_energy_transformer import AUTO_MAP


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 33, "patch_size": 4}, "image_size must be a multiple of patch_size, got 33 and 4"),
        ({"image_size": (32, 30), "patch_size": 4}, "image_size must be a multiple of patch_size"),
        ({"image_size": (32, 32, 3)}, "image_size"),
        ({"image_size": [32, 32, 3]}, r"image_size must be one number or \(height, width\)"),
        ({"hidden_size": 0}, "hidden_size must be greater than 0, got 0"),
        ({"num_steps": 0}, "num_steps must be greater than 0, got 0"),
        ({"step_size": -0.1}, "step_size must be greater than 0"),
        ({"step_size": "fast"}, "step_size"),
        ({"hidden_size": 2.5}, "hidden_size"),
        *(
            ({name: value}, f"{name} must be finite, got {value}")
            for name in (
                "step_size",
                "layer_norm_eps",
                "norm_regularization",
                "decoder_norm_eps",
                "attention_beta",
                "hopfield_beta",
                "initializer_range",
                "label_smoothing",
            )
            for value in (float("nan"), float("inf"))
        ),
        ({"num_attention_heads": 2, "attention_beta": [0.5, float("nan")]}, "attention_beta must be finite"),
        ({"hopfield_activation": "silu"}, "hopfield_activation"),
        ({"mask_ratio": 1.0}, "mask_ratio must lie between 0 and 1"),
        ({"mask_replace_probability": 1.1}, "mask_replace_probability must lie in"),
        ({"initializer_range": -1.0}, "initializer_range must not be negative"),
        ({"norm_type": "layer_norm", "norm_regularization": 0.1}, "norm_regularization needs norm_type"),
        ({"initialization": "scaled", "hidden_size": 66}, "initialization='scaled' needs a hidden_size that 4"),
    ],
)
def test_impossible_values_are_refused(fields, message):
    with pytest.raises(Exception, match=message) as error:
        EnergyTransformerConfig(**fields)
    assert "Dataclass" in type(error.value).__name__


def test_whole_numbers_are_taken_where_a_float_is_meant():
    assert EnergyTransformerConfig(step_size=1).step_size == 1


def test_round_trip_through_the_file(tmp_path):
    config = EnergyTransformerConfig(image_size=(32, 48), patch_size=(4, 8), initialization="scaled")
    config.save_pretrained(tmp_path)
    loaded = EnergyTransformerConfig.from_pretrained(tmp_path)
    assert loaded.grid_size == config.grid_size == (8, 6)
    assert loaded.auto_map == AUTO_MAP
    assert loaded.to_dict() == {**config.to_dict(), "image_size": [32, 48], "patch_size": [4, 8]}
