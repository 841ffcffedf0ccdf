"""Peak signal-to-noise ratio, as an `evaluate` module on scikit-image."""

import evaluate
import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio

from energy_transformer.metrics.image_metric import ImageMetric, image_metric_info, image_pair

MAX_DECIBELS = 100.0

_DESCRIPTION = (
    "Peak signal-to-noise ratio of each image in decibels, 10 log10(data_range² / mean squared error), averaged "
    f"over images. That of a perfect picture, which is infinite, counts as {MAX_DECIBELS:.0f}, so that one does "
    "not hide the others."
)
_CITATION = """\
@article{scikit-image,
  title={scikit-image: image processing in {P}ython},
  author={van der Walt, St\\'efan and Sch\\"onberger, Johannes L. and Nunez-Iglesias, Juan and
    Boulogne, Fran\\c{c}ois and Warner, Joshua D. and Yager, Neil and Gouillart, Emmanuelle and
    Yu, Tony and the scikit-image contributors},
  journal={PeerJ},
  volume={2},
  year={2014}
}"""
_INPUTS = """    data_range: the largest value of a pixel less the smallest, 1 by default.
Examples:
    >>> import torch
    >>> from energy_transformer.metrics import load_metric
    >>> images = torch.zeros(1, 3, 16, 16)
    >>> round(load_metric("psnr").compute(predictions=images + 0.1, references=images)["psnr"], 3)
    20.0
"""


class Psnr(ImageMetric):
    """Peak signal-to-noise ratio of whole pictures in decibels, averaged over images."""

    def _info(self) -> evaluate.MetricInfo:
        return image_metric_info(_DESCRIPTION, _CITATION, _INPUTS)

    def score(self, predictions, references, data_range: float = 1.0) -> torch.Tensor:
        """The ratio of each image in decibels, (B,) float64.

        Raises:
            ValueError: for images of different shapes, or beyond `data_range`.
        """
        pair = image_pair(predictions, references, data_range)
        predictions, references = (images.double().cpu().numpy() for images in pair)
        with np.errstate(divide="ignore"):  # of equal pictures
            decibels = [
                peak_signal_noise_ratio(reference, prediction, data_range=data_range)
                for reference, prediction in zip(references, predictions, strict=True)
            ]
        return torch.tensor(decibels, dtype=torch.float64).clamp(max=MAX_DECIBELS)
