"""Confusion matrix, as an `evaluate` module."""

import datasets
import evaluate
import numpy as np


class ConfusionMatrix(evaluate.Metric):
    """How often each label was predicted for each true one."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="How often each label was predicted (columns) for each true one (rows).",
            citation="",
            inputs_description="""
Args:
    predictions, references: labels, integers of shape (B,) in [0, num_labels).
    num_labels: for `compute`; size of the matrix.
Examples:
    >>> from energy_transformer.metrics import load_metric
    >>> load_metric("confusion_matrix").compute(predictions=[0, 1, 1], references=[0, 1, 0], num_labels=2)
    {'confusion_matrix': [[1, 1], [0, 1]]}
""",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
            format="numpy",
        )

    def _compute(self, predictions: np.ndarray, references: np.ndarray, num_labels: int) -> dict[str, list[list[int]]]:
        """
        Raises:
            ValueError: for a label outside [0, num_labels).
        """
        for name, labels in (("predictions", predictions), ("references", references)):
            if labels.min() < 0 or labels.max() >= num_labels:
                raise ValueError(f"{name} must lie in [0, {num_labels}), got {labels.min()} to {labels.max()}")
        counts = np.bincount(references * num_labels + predictions, minlength=num_labels**2)
        return {"confusion_matrix": counts.reshape(num_labels, num_labels).tolist()}
