"""A linear probe: a linear layer on the standardized features of a backbone that is not trained.

Features of a frozen backbone differ in scale by orders of magnitude, so that a rate which serves one is useless to
another. MAE's linear probe standardizes them by a batch norm without parameters (He et al. 2022, appendix A.1). Here
their mean and deviation over the training images are found once, before the first step, as they do not change: the
result does not depend on how a step's images are divided, which batch statistics would. When the model is saved the two
go into the weights, so that a probe has the format of any classifier.
"""

import copy
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..data import ImageTensors, normalize

_IMAGES = 5000
_BATCH = 250
_LEAST_DEVIATION = 1e-6  # of a feature that is the same for all images
_LINEAR = 1  # the place of the linear layer in the head, after the layer norm
MEAN, DEVIATION = f"classifier.{_LINEAR}.mean", f"classifier.{_LINEAR}.deviation"
_WEIGHT, _BIAS = f"classifier.{_LINEAR}.weight", f"classifier.{_LINEAR}.bias"


class StandardizedLinear(nn.Linear):
    """A linear layer of (x − mean) / deviation, (…, in_features), that begins as the same function as another one."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, linear: nn.Linear, mean: torch.Tensor, deviation: torch.Tensor):
        kind = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        super().__init__(linear.in_features, linear.out_features, **kind)
        with torch.no_grad():
            self.weight.copy_(linear.weight * deviation)
            self.bias.copy_(linear.bias + linear.weight @ mean)
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear((x - self.mean) / self.deviation, self.weight, self.bias)


def standardize_head(model: Any, mean: torch.Tensor, deviation: torch.Tensor) -> None:
    """Let the head standardize what its linear layer reads; it alone is trained, not the layer norm before it."""
    model.classifier[0].requires_grad_(False)
    linear = model.classifier[_LINEAR]
    model.classifier[_LINEAR] = StandardizedLinear(linear, mean.to(linear.weight), deviation.to(linear.weight))


def fold_weights(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict in which mean and deviation are in the weights of the linear layer."""
    folded = dict(weights)
    if MEAN in folded:
        mean, deviation = folded.pop(MEAN), folded.pop(DEVIATION)
        folded[_WEIGHT] = folded[_WEIGHT] / deviation
        folded[_BIAS] = folded[_BIAS] - folded[_WEIGHT] @ mean
    return folded


def folded_model(model: Any) -> Any:
    """A copy of a model whose head is [`standardize_head`]'s, as an ordinary classifier."""
    folded, head = copy.deepcopy(model), model.classifier[_LINEAR]
    plain = nn.Linear(head.in_features, head.out_features)
    folded.classifier[_LINEAR] = plain.to(head.weight)
    folded.load_state_dict(fold_weights(model.state_dict()))
    return folded


@torch.no_grad()
def feature_statistics(
    model: Any, images: ImageTensors, processor, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of what the linear layer reads, (in_features,) float32 on the CPU, over an even
    selection of at most 5000 images without augmentation."""
    was_on, model = model.device, model.to(device).eval()
    chosen = np.linspace(0, len(images) - 1, min(len(images), _IMAGES)).round().astype(int).tolist()
    found: list[torch.Tensor] = []
    hook = model.classifier[0].register_forward_hook(lambda module, inputs, output: found.append(output.double().cpu()))
    try:
        for first in range(0, len(chosen), _BATCH):
            batch = images.__getitems__(chosen[first : first + _BATCH])
            model(normalize(batch["image"].to(device), processor))
    finally:
        hook.remove()
        model.to(was_on)
    features = torch.cat(found)
    return features.mean(0).float(), features.std(0, correction=0).clamp(min=_LEAST_DEVIATION).float()
