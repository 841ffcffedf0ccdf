"""What the tokens of a model know: features of whole images, and how well simple classifiers read labels from them.

Nothing of the model is trained. Shapes: B images, D token width (or any number of features), N tokens, T steps.
"""

from collections.abc import Iterable
from typing import Literal

import numpy as np
import torch

from ..data import normalize
from ..modeling_energy_transformer import EnergyTransformerPreTrainedModel
from .recording import layers_of_states

Pooling = Literal["cls", "mean"]


@torch.no_grad()
def extract_features(
    model: EnergyTransformerPreTrainedModel,
    processor,
    batches: Iterable[torch.Tensor],
    pooling: Pooling | None = None,
    step: int | None = None,
    num_steps: int | None = None,
) -> np.ndarray:
    """Features of images, (B, D) float32: of the normalized tokens the CLS token, or the mean of the patches.

    Args:
        model: with or without a head; nothing is hidden from it.
        processor: that normalizes the images.
        batches: of uint8 images (b, C, H, W).
        pooling: `"cls"` or `"mean"`; the CLS token where there is one, when None.
        step: which of the states 0 … T; the last when None.
        num_steps: of each block; the model's when None.

    Raises:
        ValueError: for the CLS token of a model without one, or a step that there is not.
    """
    model.eval()
    base, special = model.base_model, int(model.config.use_cls_token)
    pooling = pooling or ("cls" if special else "mean")
    if pooling not in ("cls", "mean") or (pooling == "cls" and not special):
        raise ValueError(f"pooling must be 'mean'{' or ' + repr('cls') if special else ''}, got {pooling!r}")
    layers = layers_of_states(base, num_steps)
    step = len(layers) - 1 if step is None else step
    if not 0 <= step < len(layers):
        raise ValueError(f"step must lie in [0, {len(layers) - 1}], got {step}")
    features = []
    for images in batches:
        pixel_values = normalize(images.to(model.device), processor)
        outputs = base(pixel_values, interpolate_pos_encoding=True, output_hidden_states=[step], num_steps=num_steps)
        tokens = layers[step](outputs.hidden_states[step], 0).normalized
        features.append((tokens[:, 0] if pooling == "cls" else tokens[:, special:].mean(1)).float().cpu())
    return torch.cat(features).numpy()


def knn_accuracy(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, neighbors: int = 5
) -> float:
    """Share of the test features (B, D) whose label is that of most of their nearest neighbors among the training
    features, by the cosine of standardized features.

    Raises:
        ValueError: for fewer training images than neighbors.
    """
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(train) < neighbors:
        raise ValueError(f"neighbors must be at most the {len(train)} training images, got {neighbors}")
    classifier = make_pipeline(StandardScaler(), KNeighborsClassifier(neighbors, metric="cosine"))
    return float(classifier.fit(train, train_labels).score(test, test_labels))


def linear_probe_accuracy(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, strength: float = 1.0
) -> float:
    """Accuracy of a logistic regression on standardized features (B, D), solved to its optimum on features that were
    extracted once.

    `training.linear_probe`, of `train_image_classification --freeze_backbone`, standardizes them alike, but trains its
    layer by the optimizer of a training, with augmented images, and leaves a classifier as a checkpoint: another
    estimate of the same thing, with another penalty.

    Args:
        train, train_labels, test, test_labels: features (B, D) and their labels (B,).
        strength: C of `sklearn.linear_model.LogisticRegression`, the inverse of the penalty's weight.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
    return float(classifier.fit(train, train_labels).score(test, test_labels))
