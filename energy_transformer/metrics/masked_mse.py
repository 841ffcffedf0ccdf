"""Masked mean squared error, as an `evaluate` module."""

import evaluate
import torch

from energy_transformer.metrics.baselines import masked_squared_error
from energy_transformer.metrics.image_metric import ImageMetric, as_tensor, image_metric_info, image_pair

_DESCRIPTION = (
    "Mean squared error over the pixels of the hidden patches of each image, averaged over images. "
    "An image of which nothing is hidden has an error of 0."
)
_CITATION = """\
@inproceedings{hoover2023energy,
  title={Energy Transformer},
  author={Hoover, Benjamin and Liang, Yuchen and Pham, Bao and Panda, Rameswar and Strobelt, Hendrik and
    Chau, Duen Horng and Zaki, Mohammed J. and Krotov, Dmitry},
  booktitle={Advances in Neural Information Processing Systems},
  year={2023}
}"""
_INPUTS = """    masks: True for the hidden patches, (B, patches), row by row.
    patch_size: height and width of a patch in pixels, or one number for both.
Examples:
    >>> import torch
    >>> from energy_transformer.metrics import load_metric
    >>> images = torch.zeros(1, 3, 4, 4)
    >>> metric = load_metric("masked_mse")
    >>> mask = torch.tensor([[True, False, False, False]])
    >>> metric.compute(predictions=images + 0.5, references=images, masks=mask, patch_size=2)
    {'masked_mse': 0.25}
"""


class MaskedMse(ImageMetric):
    """Mean squared error over the pixels of the hidden patches of an image, averaged over images."""

    def _info(self) -> evaluate.MetricInfo:
        return image_metric_info(_DESCRIPTION, _CITATION, _INPUTS)

    def score(self, predictions, references, masks, patch_size) -> torch.Tensor:
        """The error of each image, (B,) float32.

        Raises:
            ValueError: for images of different shapes, or masks of another number of patches.
        """
        predictions, references = image_pair(predictions, references)
        patch_size = (patch_size, patch_size) if isinstance(patch_size, int) else tuple(patch_size)
        masks = as_tensor(masks).to(predictions.device, torch.bool)
        patches = (references.shape[2] // patch_size[0]) * (references.shape[3] // patch_size[1])
        if masks.shape != (len(references), patches):
            raise ValueError(
                f"masks must have shape (B, patches) = {(len(references), patches)}, got {tuple(masks.shape)}"
            )
        return masked_squared_error(predictions, references, masks, patch_size)
