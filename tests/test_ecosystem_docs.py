"""Every snippet of docs/ecosystem.md runs as it stands there."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from energy_transformer import EnergyTransformerConfig, EnergyTransformerForMaskedImageModeling
from energy_transformer.data.demo import photograph
from energy_transformer.data.image_processing import build_image_processor

PAGE = Path(__file__).parents[1] / "docs" / "ecosystem.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


NAMES = "head offload sizes masks norm_pix masked_images_trainer classification_trainer lora pipeline compile onnx int8"
MARKS = {
    "compile": pytest.mark.slow,
    "int8": pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="`make test-slow` brings torchao"),
}
CASES = [
    pytest.param(snippet, id=name, marks=MARKS.get(name, ()))
    for name, snippet in zip(NAMES.split(), SNIPPETS, strict=True)
]


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


@pytest.mark.parametrize("snippet", CASES)
def test_snippet(folder, snippet):
    """`zip(strict=True)` above fails where a snippet is added or lost without a name."""
    exec(compile(snippet, str(PAGE), "exec"), {"__name__": "snippet"})
