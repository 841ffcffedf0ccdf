"""Features of whole images, and what simple classifiers read from them."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from masked_images import images

from energy_transformer import EnergyTransformerConfig, EnergyTransformerForMaskedImageModeling
from energy_transformer.data import denormalize, normalize
from energy_transformer.data.image_processing import build_image_processor
from energy_transformer.inspection import extract_features, knn_accuracy, linear_probe_accuracy, record_descent
from energy_transformer.training.checkpoint_evaluation import evaluate_checkpoint, format_table
from energy_transformer.training.checkpoint_evaluation_arguments import EvaluationArguments, parse_evaluation_arguments
from energy_transformer.utils.errors import UserError

PROCESSOR = build_image_processor((16, 24))


@pytest.fixture
def clusters():
    """Three clouds of points on different scales, half of them to learn from."""
    generator = np.random.default_rng(0)
    labels = np.arange(90) % 3
    centers = generator.normal(size=(3, 6)) * 4
    points = (centers[labels] + generator.normal(size=(90, 6))) * np.array([1e-3, 1, 1, 1, 1, 1e3])
    return points[:45], labels[:45], points[45:], labels[45:]


def test_features_are_the_normalized_tokens_of_a_state(small_model):
    uint8 = (denormalize(images(5), PROCESSOR) * 255).round().to(torch.uint8)
    tokens = record_descent(small_model, PROCESSOR, normalize(uint8, PROCESSOR)).tokens
    for step in (0, 2, None):
        expected = tokens[-1 if step is None else step]
        found = extract_features(small_model, PROCESSOR, uint8.split(2), step=step)
        np.testing.assert_allclose(found, expected[:, 0], atol=1e-5)
        found = extract_features(small_model, PROCESSOR, uint8.split(3), "mean", step)
        np.testing.assert_allclose(found, expected[:, 1:].mean(1), atol=1e-5)
    with pytest.raises(ValueError, match=r"step must lie in \[0, 3\], got 4"):
        extract_features(small_model, PROCESSOR, [uint8], step=4)


def test_the_cls_token_of_a_model_without_one():
    config = EnergyTransformerConfig(
        image_size=(16, 24), patch_size=4, hidden_size=16, num_attention_heads=2, head_dim=8, intermediate_size=8,
        num_steps=1, use_cls_token=False,
    )  # fmt: skip
    model = EnergyTransformerForMaskedImageModeling(config)
    uint8 = torch.zeros(2, 3, 16, 24, dtype=torch.uint8)
    assert extract_features(model, PROCESSOR, [uint8]).shape == (2, 16)
    with pytest.raises(ValueError, match="pooling must be 'mean', got 'cls'"):
        extract_features(model, PROCESSOR, [uint8], "cls")


def test_classifiers_read_clear_labels_and_guess_random_ones(clusters):
    train, train_labels, test, test_labels = clusters
    assert knn_accuracy(*clusters) > 0.9 and linear_probe_accuracy(*clusters) > 0.9
    random = np.random.default_rng(1).permutation(train_labels)
    assert knn_accuracy(train, random, test, test_labels) < 0.6
    assert linear_probe_accuracy(train, random, test, test_labels) < 0.6
    with pytest.raises(ValueError, match="neighbors must be at most the 45 training images, got 46"):
        knn_accuracy(*clusters, neighbors=46)


def test_the_evaluation_tells_them_beside_the_pixels(tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    torch.manual_seed(0)
    config = EnergyTransformerConfig(
        image_size=32, patch_size=8, hidden_size=32, num_attention_heads=2, head_dim=16, intermediate_size=32,
        num_steps=1, initialization="scaled",
    )  # fmt: skip
    EnergyTransformerForMaskedImageModeling(config).save_pretrained(tmp_path)
    build_image_processor((32, 32)).save_pretrained(tmp_path)
    args = EvaluationArguments(features=True, mask_types=["scatter"], mask_ratios=[0.5], max_eval_samples=120, cpu=True)
    report = evaluate_checkpoint(str(tmp_path), args, Accelerator(cpu=True))
    found = report["features"]
    assert (found["train_samples"], found["samples"], found["labels"]) == (5000, 120, 8)
    assert found["knn_accuracy"] > 0.5 and found["linear_probe_accuracy"] > 0.5 > found["majority_accuracy"] > 0.05
    table = format_table(report).splitlines()
    assert f"tokens {found['knn_accuracy']:>35.3f}  {found['linear_probe_accuracy']:>12.3f}" in table
    assert any(line.startswith("pixels ") for line in table)


def test_labels_are_for_features_alone():
    with pytest.raises(UserError, match="label_column_name needs features"):
        parse_evaluation_arguments(["x", "--label_column_name", "fine_label"], None)
