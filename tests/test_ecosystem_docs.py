"""Every snippet of docs/ecosystem.md runs as it stands there."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from energy_transformer import EnergyTransformerConfig, EnergyTransformerForMaskedImageModeling
from energy_transformer.data.demo import photograph
from energy_transformer.image_processing import build_image_processor

PAGE = Path(__file__).parents[1] / "docs" / "ecosystem.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def _case(snippet):
    marks = [pytest.mark.slow] if "torch.compile" in snippet else []
    return pytest.param(snippet, marks=marks, id=re.search(r"\w+(?=\.?\w*\()", snippet).group())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What the page starts from, with the configuration of `make train` but untrained."""
    torch.manual_seed(0)
    config = EnergyTransformerConfig(
        image_size=32,
        patch_size=4,
        hidden_size=64,
        num_attention_heads=2,
        head_dim=32,
        intermediate_size=256,
        num_steps=3,
        step_size=1.0,
        learnable_beta=True,
        use_cls_token=False,
        initialization="scaled",
        hopfield_initializer_range=0.125,
        mask_ratio=0.5,
    )
    EnergyTransformerForMaskedImageModeling(config).save_pretrained(tmp_path / "outputs" / "demo")
    build_image_processor((32, 32)).save_pretrained(tmp_path / "outputs" / "demo")
    Image.fromarray(photograph("coffee.png")).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("snippet", map(_case, SNIPPETS))
def test_snippet(folder, snippet):
    exec(compile(snippet, str(PAGE), "exec"), {"__name__": "snippet"})


def test_there_are_snippets():
    assert len(SNIPPETS) == PAGE.read_text().count("```python") == 12
