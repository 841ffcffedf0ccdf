"""Fill in the hidden patches of images and keep the way there."""

from dataclasses import dataclass
from typing import Literal

import torch

from ..configuration_energy_transformer import EnergyTransformerConfig
from ..data import denormalize
from ..metrics import masked_squared_error
from ..modeling_energy_transformer import EnergyTransformerForMaskedImageModeling
from ..patches import patch_mean_and_std, patchify, unpatchify
from .recording import DescentRecord, recorded


@dataclass(kw_only=True)
class Reconstruction(DescentRecord):
    """A descent of which each state was decoded; images in [0, 1], predictions unclipped.

    Attributes:
        prediction: the decoded result, hidden and visible patches alike, (B, C, H, W).
        frames: the decoded states of the descent, (T + 1, B, C, H, W).
        patch_statistics: where the mean and standard deviation of the hidden patches come from: the model predicts
            them, or, with `norm_pix_loss`, they were estimated or leaked (see [`predicted_pixels`]).
    """

    prediction: torch.Tensor
    frames: torch.Tensor
    patch_statistics: Literal["predicted", "estimated", "leaked"] = "predicted"

    @property
    def note(self) -> str | None:
        """What has to stand beside the picture and its error, if anything."""
        return {
            "estimated": "mean and contrast of the hidden patches: estimated from the visible ones",
            "leaked": "LEAK: mean and contrast of the hidden patches are those of the original",
        }.get(self.patch_statistics)

    def errors(self, predictions: torch.Tensor) -> torch.Tensor:
        """Mean squared error over the hidden pixels, (..., B), of predictions (..., B, C, H, W)."""
        flat = predictions.reshape(-1, *self.images.shape)
        errors = [masked_squared_error(each, self.images, self.mask, self.patch_size) for each in flat]
        return torch.stack(errors).view(predictions.shape[:-3])


def predicted_pixels(
    prediction: torch.Tensor,
    pixel_values: torch.Tensor,
    mask: torch.Tensor,
    config: EnergyTransformerConfig,
    leak_statistics: bool = False,
) -> torch.Tensor:
    """What a model predicts, (..., B, C, H, W), in the units of `pixel_values` (B, C, H, W); float32.

    Under `norm_pix_loss` it predicts patches without their mean and standard deviation. Those of the visible patches
    are known; those of the patches of `mask` (B, patches) are estimated from the visible patches, as averages with the
    weights 1/d⁴ at the distance d (0 and 1 where none is visible). With `leak_statistics` they are those of the
    original: a part of the answer, so that the picture and its error must say so.
    """
    if not config.norm_pix_loss:
        return prediction.float()
    patch_size = config.patch_height_width
    grid = (pixel_values.shape[-2] // patch_size[0], pixel_values.shape[-1] // patch_size[1])
    statistics = torch.stack(patch_mean_and_std(patchify(pixel_values.float(), patch_size)))
    if not leak_statistics:
        statistics = torch.where(mask[..., None], _from_visible(statistics, mask, grid, patch_size), statistics)
    mean, std = statistics
    leading = prediction.shape[:-4]
    patches = patchify(prediction.float().flatten(0, -4), patch_size).unflatten(0, (*leading, -1))
    return unpatchify(patches * std + mean, patch_size, grid, config.num_channels).unflatten(0, (*leading, -1))


def _from_visible(
    statistics: torch.Tensor, mask: torch.Tensor, grid: tuple[int, int], patch_size: tuple[int, int]
) -> torch.Tensor:
    """Means and standard deviations (2, B, patches, 1), each the average over the visible patches around it."""
    places = torch.cartesian_prod(*(torch.arange(count) for count in grid)) * torch.tensor(patch_size)
    distances = torch.cdist(places.float(), places.float()).to(mask.device)
    weights = torch.where(mask[:, None], 0.0, distances.clamp(min=1.0).pow(-4.0))
    total = weights.sum(-1, keepdim=True)
    without_any = torch.tensor([0.0, 1.0], device=mask.device)[:, None, None, None]
    return torch.where(total > 0, weights @ statistics / total, without_any)


@torch.no_grad()
def reconstruct(
    model: EnergyTransformerForMaskedImageModeling,
    processor,
    pixel_values: torch.Tensor,
    mask: torch.Tensor,
    num_steps: int | None = None,
    leak_statistics: bool = False,
    attentions: bool = False,
) -> Reconstruction:
    """Hide the patches of `mask` in `pixel_values` (B, C, H, W), let the model descend, and decode each state.

    Arguments as for [`record_descent`]. For a model with `norm_pix_loss`, see [`predicted_pixels`].

    Raises:
        ValueError: for `leak_statistics` and a model without `norm_pix_loss`, which predicts the statistics itself.
    """
    config = model.config
    if leak_statistics and not config.norm_pix_loss:
        raise ValueError("leak_statistics is for models with norm_pix_loss=True, got norm_pix_loss=False")
    model.eval()
    outputs = model(
        pixel_values,
        bool_masked_pos=mask,
        interpolate_pos_encoding=True,
        output_hidden_states=True,
        output_attentions=attentions,
        num_steps=num_steps,
    )
    found = recorded(model, processor, pixel_values, mask, outputs, num_steps)
    grid = model.energy_transformer.embeddings.grid_of(*pixel_values.shape[2:])
    frames = model.decode_states(outputs.hidden_states, grid, num_steps)
    prediction, frames = (
        denormalize(predicted_pixels(decoded, pixel_values, found["mask"], config, leak_statistics), processor)
        for decoded in (outputs.reconstruction, frames)
    )
    return Reconstruction(
        prediction=prediction,
        frames=frames,
        patch_statistics=_statistics(config, leak_statistics),
        **found,
    )


def _statistics(config: EnergyTransformerConfig, leaked: bool) -> Literal["predicted", "estimated", "leaked"]:
    if not config.norm_pix_loss:
        return "predicted"
    return "leaked" if leaked else "estimated"
