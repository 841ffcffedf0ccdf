"""The models that the suite's pipeline tests load, in the layout that they expect."""

import json
from pathlib import Path

import torch

from energy_transformer import (
    EnergyTransformerConfig,
    EnergyTransformerForImageClassification,
    EnergyTransformerModel,
)
from energy_transformer.data.image_processing import build_image_processor


def write_tiny_models(folder: Path) -> None:
    torch.manual_seed(0)
    config = EnergyTransformerConfig(
        image_size=32,
        patch_size=8,
        hidden_size=32,
        num_attention_heads=2,
        head_dim=8,
        intermediate_size=32,
        num_steps=2,
        num_labels=5,
        initialization="scaled",
    )
    processor = build_image_processor((32, 32))
    summary = {}
    for model_class in (EnergyTransformerModel, EnergyTransformerForImageClassification):
        target = folder / config.model_type / model_class.__name__
        model_class(config).save_pretrained(target)
        processor.save_pretrained(target)
        summary[model_class.__name__] = {"tokenizer_classes": [], "processor_classes": [type(processor).__name__]}
    reports = folder / "reports"
    reports.mkdir()
    (reports / "tiny_model_summary.json").write_text(json.dumps(summary))
