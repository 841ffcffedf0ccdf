"""Fill in the hidden patches of images and keep the way there."""

from dataclasses import dataclass
from typing import Literal

import torch
from transformers import AutoModelForMaskedImageModeling

from ..configuration_energy_transformer import EnergyTransformerConfig
from ..data import denormalize, load_image, normalize, resize_to_tensor
from ..data.image_processing import load_image_processor, processor_sizes
from ..hub import load_pretrained
from ..masking import draw_masks
from ..modeling_energy_transformer import EnergyTransformerForMaskedImageModeling
from ..patches import patch_mask_to_pixels, patch_mean_and_std, patchify, unpatchify
from ..utils.errors import UserError


@dataclass
class Reconstruction:
    """Images in [0, 1], predictions unclipped.

    Attributes:
        images: the originals, (B, C, H, W).
        mask: True for the patches that were hidden, (B, patches).
        prediction: the decoded result, hidden and visible patches alike, (B, C, H, W).
        frames: the decoded states of the descent, (T + 1, B, C, H, W).
        energies: of each image at each state, (B, T + 1).
        patch_statistics: where the mean and standard deviation of the hidden patches come from: the model predicts
            them, or, with `norm_pix_loss`, they were estimated or leaked (see [`predicted_pixels`]).
    """

    images: torch.Tensor
    mask: torch.Tensor
    prediction: torch.Tensor
    frames: torch.Tensor
    energies: torch.Tensor
    patch_statistics: Literal["predicted", "estimated", "leaked"] = "predicted"

    @property
    def note(self) -> str | None:
        """What has to stand beside the picture and its error, if anything."""
        return {
            "estimated": "mean and contrast of the hidden patches: estimated from the visible ones",
            "leaked": "LEAK: mean and contrast of the hidden patches are those of the original",
        }.get(self.patch_statistics)

    def filled_in(self, predictions: torch.Tensor, patch_size: tuple[int, int]) -> torch.Tensor:
        """The originals with `predictions` (..., B, C, H, W) in the hidden patches alone."""
        height, width = self.images.shape[-2:]
        hidden = patch_mask_to_pixels(self.mask, patch_size, (height // patch_size[0], width // patch_size[1]))
        return torch.where(hidden, predictions, self.images)


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
) -> Reconstruction:
    """Hide the patches of `mask` (B, patches) in `pixel_values` (B, C, H, W) and let the model descend.

    The images may be of any size that the patch size divides; `processor` is the one that normalized them. For a
    model with `norm_pix_loss`, see [`predicted_pixels`].

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
        output_energies=True,
        num_steps=num_steps,
    )
    grid = model.energy_transformer.embeddings.grid_of(*pixel_values.shape[2:])
    frames = model.decode_states(outputs.hidden_states, grid)
    prediction, frames = (
        denormalize(predicted_pixels(decoded, pixel_values, mask, config, leak_statistics), processor)
        for decoded in (outputs.reconstruction, frames)
    )
    return Reconstruction(
        images=denormalize(pixel_values, processor),
        mask=mask,
        prediction=prediction,
        frames=frames,
        energies=outputs.energies,
        patch_statistics=_statistics(config, leak_statistics),
    )


def _statistics(config: EnergyTransformerConfig, leaked: bool) -> Literal["predicted", "estimated", "leaked"]:
    if not config.norm_pix_loss:
        return "predicted"
    return "leaked" if leaked else "estimated"


def load_for_reconstruction(checkpoint: str, image_size: list[int] | None = None, device: str | None = None):
    """Model and image processor of a masked-image checkpoint, the processor for another size of image if asked.

    Raises:
        UserError: when there is no such checkpoint, the model cannot run at that size, or there is no such device.
    """
    model, info = load_pretrained(AutoModelForMaskedImageModeling, checkpoint, output_loading_info=True)
    if not isinstance(model, EnergyTransformerForMaskedImageModeling):
        raise UserError(f"checkpoint {checkpoint} holds a {type(model).__name__}, not an Energy Transformer")
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"]))
        raise UserError(f"checkpoint {checkpoint} holds no masked-image model: it lacks {missing}")
    processor = load_image_processor(checkpoint)
    if image_size is not None:
        sizes = processor_sizes(*_checked_size(image_size, model.config.patch_height_width))
        processor = load_image_processor(checkpoint, **sizes)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return model.to(device), processor
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error


def _checked_size(image_size: list[int], patch_size: tuple[int, int]) -> tuple[int, int]:
    height, width = image_size[0], image_size[-1]
    if len(image_size) > 2 or min(image_size) < 1 or height % patch_size[0] or width % patch_size[1]:
        raise UserError(
            f"image_size must be one number or height and width, multiples of the model's patch size {patch_size}, "
            f"got {image_size}"
        )
    return height, width


def prepare_image(
    path: str,
    model: EnergyTransformerForMaskedImageModeling,
    processor,
    mask_ratio: float | None = None,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """An image file as pixel values (1, C, H, W) and a mask (1, patches) of the model's ratio if none is given.

    Raises:
        UserError: when the file is no image, or `mask_ratio` is outside (0, 1).
    """
    config = model.config
    image = load_image({"path": path}, config.num_channels, path)
    pixel_values = normalize(resize_to_tensor(image, processor)[None].to(model.device), processor)
    grid = model.energy_transformer.embeddings.grid_of(*pixel_values.shape[2:])
    noise = torch.rand(1, grid[0] * grid[1], generator=torch.Generator().manual_seed(seed))
    mask_ratio = config.mask_ratio if mask_ratio is None else mask_ratio
    try:
        mask, _ = draw_masks(config.mask_type, noise.to(model.device), grid, mask_ratio)
    except ValueError as error:
        raise UserError(str(error)) from error
    return pixel_values, mask
