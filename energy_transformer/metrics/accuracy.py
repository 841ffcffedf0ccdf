"""Accuracy, as an `evaluate` module: that of the Hub needs the network."""

import datasets
import evaluate
import numpy as np


class Accuracy(evaluate.Metric):
    """Share of the images whose predicted label is the true one."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of the images whose predicted label is the true one.",
            citation="",
            inputs_description="""
Args:
    predictions, references: labels, integers of shape (B,).
Examples:
    >>> from energy_transformer.metrics import load_metric
    >>> load_metric("accuracy").compute(predictions=[0, 1, 1, 0], references=[0, 1, 0, 0])
    {'accuracy': 0.75}
""",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
            format="numpy",
        )

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"accuracy": float((predictions == references).mean())}
