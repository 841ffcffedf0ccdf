"""What the metrics of images share."""

from abc import ABC, abstractmethod
from typing import Any

import datasets
import evaluate
import numpy as np
import torch

_INPUTS = """
Args:
    predictions, references: images of shape (B, C, H, W), tensors or arrays.
    scores: what `score` gave for such images, in their place; `compute` does not take them.
    confidence_level: of the interval for the mean over images, which `compute` adds to its result when it is given.
"""


class ImageMetric(evaluate.Metric, ABC):
    """A score of each image, and its mean over images.

    A batch is reduced to one float64 for each image as it is added, on the device that holds it, and Arrow keeps these
    alone: the two pictures of an image of 224×224 pixels are 1.2 MB, their score is 8 bytes. Everything else is as for
    any `evaluate.Metric`: `num_process`, `process_id` and `experiment_id` gather the scores of several processes, of
    which the first gets the result and the others None.
    """

    @abstractmethod
    def score(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The score of each image, float (B,), of predictions, references and the metric's own options.

        Raises:
            ValueError: for inputs of other shapes.
        """

    def add(self, *, prediction=None, reference=None, **kwargs):
        """Add one image, (C, H, W); options of `score` as for a batch."""
        self.add_batch(predictions=as_tensor(prediction)[None], references=as_tensor(reference)[None], **kwargs)

    def add_batch(self, *, predictions=None, references=None, scores=None, **kwargs):
        """Add a batch of images, or their `scores`; `kwargs` are the options of `score`."""
        if scores is None:
            scores = self.score(predictions, references, **kwargs)
        super().add_batch(scores=as_tensor(scores).double().cpu().numpy())

    def compute(self, *, predictions=None, references=None, confidence_level=None, **kwargs):
        """The mean over all images that were added, and over those given here: {name: mean}.

        With a `confidence_level` also {name}_low and {name}_high, the interval of Student's t: it is that of the mean
        over other images of the same kind, with this model.

        Raises:
            ValueError: when an interval is asked for of fewer than two images, or a level outside (0, 1).
        """
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references, **kwargs)
        return super().compute(confidence_level=confidence_level)

    def _compute(self, scores: list[float], confidence_level: float | None) -> dict[str, float]:
        scores = np.asarray(scores)
        result = {self.name: float(scores.mean())}
        if confidence_level is not None:
            low, high = _interval_of_mean(scores, confidence_level)
            result |= {f"{self.name}_low": low, f"{self.name}_high": high}
        return result


def image_metric_info(description: str, citation: str, inputs: str) -> evaluate.MetricInfo:
    """What an [`ImageMetric`] says of itself; `inputs` are those that not all of them have, and examples."""
    features = datasets.Features({"scores": datasets.Value("float64")})
    return evaluate.MetricInfo(
        description=description, citation=citation, inputs_description=_INPUTS + inputs, features=features
    )


def _interval_of_mean(scores: np.ndarray, level: float) -> tuple[float, float]:
    from scipy.stats import t

    if not 0 < level < 1:
        raise ValueError(f"confidence_level must lie between 0 and 1, both excluded, got {level}")
    if len(scores) < 2:
        raise ValueError(f"confidence_level needs at least 2 images, got {len(scores)}")
    half = t.ppf((1 + level) / 2, len(scores) - 1) * scores.std(ddof=1) / len(scores) ** 0.5
    return float(scores.mean() - half), float(scores.mean() + half)


def as_tensor(values: Any) -> torch.Tensor:
    """A tensor as it is, anything else as a tensor."""
    return values if isinstance(values, torch.Tensor) else torch.as_tensor(np.asarray(values))


def image_pair(predictions: Any, references: Any, data_range: float | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as float tensors (B, C, H, W).

    Raises:
        ValueError: when they are no batches of images of one shape, or the references span more than `data_range`.
    """
    predictions, references = as_tensor(predictions), as_tensor(references)
    if predictions.ndim != 4 or predictions.shape != references.shape:
        raise ValueError(
            "predictions and references must be images of one shape (B, C, H, W), got "
            f"{tuple(predictions.shape)} and {tuple(references.shape)}"
        )
    if data_range is not None and references.numel():
        low, high = references.min().item(), references.max().item()
        if high - low > data_range * (1 + 1e-3):
            raise ValueError(f"data_range is {data_range}, but the references lie between {low:.4g} and {high:.4g}")
    return tuple(images if images.is_floating_point() else images.float() for images in (predictions, references))
