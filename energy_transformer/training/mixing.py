"""Mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019), on the device, from given uniform numbers.

torchvision and kornia draw such numbers themselves, for the batch that they see. Here the two images of a pair stand
next to each other in the batch, in an order that is random already; so what becomes of them does not depend on how a
step's images are divided over processes, as long as no batch splits a pair.
"""

import numpy as np
import torch
from scipy.special import betaincinv

UNIFORMS = 4  # numbers that an image needs
_QUANTILES = 4096


def beta_quantiles(alpha: float) -> torch.Tensor:
    """Beta(alpha, alpha) at the middles of 4096 equal steps of probability, float32."""
    probabilities = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    return torch.from_numpy(betaincinv(alpha, alpha, probabilities)).float()


class Mixer:
    """Mixes each image with the other one of its pair, with numbers of its own.

    Args:
        mixup_alpha, cutmix_alpha: 0 for none; with both, each image is treated by one or the other, with equal chance.
    """

    def __init__(self, mixup_alpha: float, cutmix_alpha: float):
        self.cutmix_probability = 0.0 if not cutmix_alpha else 0.5 if mixup_alpha else 1.0
        self.mixup_quantiles = beta_quantiles(mixup_alpha or 1.0)
        self.cutmix_quantiles = beta_quantiles(cutmix_alpha or 1.0)

    def shares(self, uniforms: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """How much of each pixel is an image's own, (B, 1, H, W) in [0, 1], from `uniforms` (B, 4) in [0, 1)."""
        place = (uniforms[:, 0] * _QUANTILES).long()
        blend = self.mixup_quantiles.to(uniforms.device)[place]
        kept = self.cutmix_quantiles.to(uniforms.device)[place]
        box = _boxes((1 - kept).sqrt(), uniforms[:, 2], uniforms[:, 3], height, width)
        by_cutmix = uniforms[:, 1] < self.cutmix_probability
        return torch.where(by_cutmix[:, None, None], 1 - box, blend[:, None, None]).unsqueeze(1)

    def __call__(
        self, pixel_values: torch.Tensor, labels: torch.Tensor, num_labels: int, uniforms: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mixed images (B, C, H, W) and probabilities of labels (B, num_labels): a label counts as much as the
        pixels of its image. B is even."""
        shares = self.shares(uniforms, *pixel_values.shape[2:])
        partner = torch.arange(len(labels), device=labels.device) ^ 1
        own = torch.nn.functional.one_hot(labels, num_labels).to(shares.dtype)
        weight = shares.mean((1, 2, 3))[:, None]
        mixed = pixel_values * shares + pixel_values[partner] * (1 - shares)
        return mixed, own * weight + own[partner] * (1 - weight)


def _boxes(side: torch.Tensor, down: torch.Tensor, right: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """1 in boxes of the share `side` of both sides, around centers (down, right) in [0, 1), cut off at the borders."""

    def inside(center, length):
        pixels = torch.arange(length, device=side.device)
        first = (center * length - side * length / 2).round()[:, None]
        return (pixels >= first) & (pixels < first + (side * length).round()[:, None])

    return (inside(down, height)[:, :, None] & inside(right, width)[:, None, :]).float()
