"""Figures of merit as `evaluate` modules, and the baselines beside a masked-image model."""

import importlib
from typing import Any

from .baselines import masked_squared_error, mean_visible_color, neighbor_average, paint_hidden

#: The metrics by name, with the classes that [`load_metric`] makes.
METRICS = {
    "accuracy": "Accuracy",
    "confusion_matrix": "ConfusionMatrix",
    "masked_mse": "MaskedMse",
    "psnr": "Psnr",
    "ssim": "Ssim",
}


def load_metric(name: str, **kwargs) -> Any:
    """The `evaluate.Metric` of a name in [`METRICS`], without the network.

    `evaluate.load(PATH)` does the same for the path of `NAME.py` in this folder.

    Args:
        name: see [`METRICS`]; the metric's `description` and `inputs_description` say what it takes.
        kwargs: those of `evaluate.Metric`, such as `keep_in_memory`, or `num_process`, `process_id` and
            `experiment_id` for several processes.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in METRICS:
        raise ValueError(f"name must be one of {', '.join(METRICS)}, got {name!r}")
    return getattr(importlib.import_module(f".{name}", __package__), METRICS[name])(**kwargs)


__all__ = [
    "METRICS",
    "load_metric",
    "masked_squared_error",
    "mean_visible_color",
    "neighbor_average",
    "paint_hidden",
]
