"""Reference numbers and small models for all tests."""

from pathlib import Path

import numpy as np
import pytest
import torch

from energy_transformer import EnergyTransformerConfig, EnergyTransformerForMaskedImageModeling

collect_ignore = ["conformance"]  # run by `make conformance`
REFERENCE = Path(__file__).parent / "reference"


@pytest.fixture
def reference():
    """Loads a reference file as a dict of float64 tensors."""

    def load(name: str) -> dict[str, torch.Tensor]:
        with np.load(REFERENCE / name) as arrays:
            return {key: torch.from_numpy(np.array(arrays[key])) for key in arrays.files}

    return load


@pytest.fixture
def small_config():
    return EnergyTransformerConfig(
        image_size=(16, 24),
        patch_size=4,
        hidden_size=32,
        num_attention_heads=3,
        head_dim=8,
        intermediate_size=48,
        num_steps=3,
        step_size=0.5,
        initialization="scaled",
    )


@pytest.fixture
def small_model(small_config):
    torch.manual_seed(0)
    return EnergyTransformerForMaskedImageModeling(small_config).eval()
