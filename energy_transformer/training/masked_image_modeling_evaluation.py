"""Held-out evaluation: masked error beside two baselines on the same masks, and pictures.

In evaluation every masked patch is hidden, and an image's mask depends on its place in the dataset and the seed
alone, so that figures of different runs and numbers of processes are comparable.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from ..configuration_energy_transformer import EnergyTransformerConfig
from ..data import ImageTensors, denormalize, normalize
from ..hub.tasks import LEAST_ERROR
from ..inspection import (
    descent_figure,
    energy_figure,
    even_sample,
    predicted_pixels,
    reconstruct,
    reconstruction_figure,
    token_energy_figure,
)
from ..masking import draw_masks
from ..metrics import load_metric, mean_visible_color, neighbor_average, paint_hidden
from ..modeling_energy_transformer import EnergyTransformerForMaskedImageModeling
from .loaders import share_broken_images
from .masked_image_modeling_arguments import MaskedImageModelingArguments

PREDICTORS = ("model", "mean_color", "neighbor_average")


def evaluation_masks(
    config: EnergyTransformerConfig,
    num_images: int,
    units: int,
    seed: int,
    mask_type: str | None = None,
    mask_ratio: float | None = None,
) -> torch.Tensor:
    """The hidden patches of each held-out image, (num_images, patches), on the CPU; kind and ratio are the config's
    when None.

    Raises:
        ValueError: for an unknown kind, or a ratio outside (0, 1).
    """
    noise = torch.rand(num_images, units, generator=torch.Generator().manual_seed(seed))
    mask_ratio = config.mask_ratio if mask_ratio is None else mask_ratio
    return draw_masks(mask_type or config.mask_type, noise, config.grid_size, mask_ratio)[0]


@torch.no_grad()
def score_predictions(
    accelerator: Accelerator,
    model,
    loader: DataLoader,
    processor,
    masks: torch.Tensor,
    metrics: Sequence[str] = ("masked_mse",),
    num_steps: int | None = None,
    confidence_level: float | None = None,
) -> dict[str, dict[str, float]]:
    """What each of `metrics` says of each of [`PREDICTORS`], the same on every process; without broken images.

    The masked error is that of the prediction as it is, in units of [0, 1]; PSNR and SSIM are those of the picture that
    one sees: the original with the hidden patches filled in, clipped to [0, 1]. Under `norm_pix_loss` mean and
    contrast of a hidden patch are estimated from the visible ones, see [`reconstruction.predicted_pixels`].

    Args:
        loader: prepared by the accelerator; its batches hold `index`, the row of each image in `masks`.
        masks: hidden patches of all images of the dataset, (num_images, patches).
        metrics: of [`metrics.METRICS`], those of images.
        num_steps: descent steps of each block; the model's when None.
        confidence_level: of the intervals, see [`metrics.image_metric.ImageMetric`].
    """
    model.eval()
    config = accelerator.unwrap_model(model).config
    patch_size = config.patch_height_width
    modules = {(p, m): load_metric(m, keep_in_memory=True) for p in PREDICTORS for m in metrics}
    for batch in loader:
        pixel_values = normalize(batch["image"], processor)
        mask = masks[batch["index"].cpu()].to(pixel_values.device)
        outputs = model(pixel_values, bool_masked_pos=mask, num_steps=num_steps)
        predicted = predicted_pixels(outputs.reconstruction, pixel_values, mask, config)
        images = denormalize(pixel_values, processor)
        pictures = {
            "model": paint_hidden(images, denormalize(predicted, processor), mask, patch_size),
            "mean_color": mean_visible_color(images, mask, patch_size),
            "neighbor_average": neighbor_average(images, mask, patch_size),
        }
        scores = [
            module.score(pictures[predictor], images, mask, patch_size)
            if metric == "masked_mse"
            else module.score(pictures[predictor].clamp(0, 1), images)
            for (predictor, metric), module in modules.items()
        ]
        scores = torch.stack([score.float().to(pixel_values.device) for score in scores], dim=-1)
        scores, is_own = accelerator.gather_for_metrics((scores, batch["is_own"]))
        for module, score in zip(modules.values(), scores[is_own].T, strict=True):
            module.add_batch(scores=score)
    share_broken_images(loader.dataset)
    computed = {key: module.compute(confidence_level=confidence_level) for key, module in modules.items()}
    return {p: {name: value for m in metrics for name, value in computed[p, m].items()} for p in PREDICTORS}


def evaluate(accelerator: Accelerator, model, loader: DataLoader, processor, units: int, seed: int) -> dict[str, float]:
    """Mean squared error over the pixels of masked patches, in units of [0, 1], of the model and two baselines."""
    config = accelerator.unwrap_model(model).config
    masks = evaluation_masks(config, len(loader.dataset), units, seed)
    scores = score_predictions(accelerator, model, loader, processor, masks)
    error, mean_color, neighbors = (scores[predictor]["masked_mse"] for predictor in PREDICTORS)
    return {
        "eval_masked_mse": error,
        "eval_mean_color_mse": mean_color,
        "eval_neighbor_average_mse": neighbors,
        "eval_ratio_to_mean_color": _ratio(error, mean_color),
        "eval_ratio_to_neighbor_average": _ratio(error, neighbors),
        "eval_samples": loader.dataset.num_readable,
    }


def _ratio(error: float, baseline: float) -> float:
    """No number where the images are so plain that the baseline has no error to compare with."""
    return error / baseline if baseline > LEAST_ERROR else math.nan


def save_pictures(
    model: EnergyTransformerForMaskedImageModeling,
    images: ImageTensors,
    processor,
    units: int,
    args: MaskedImageModelingArguments,
    folder: Path,
) -> None:
    """The pictures of some held-out images, chosen evenly with the seed."""
    rows = even_sample(len(images), args.num_visual_samples, args.seed)
    pixel_values = normalize(images.__getitems__(rows)["image"].to(model.device), processor)
    mask = evaluation_masks(model.config, len(images), units, args.seed)[rows].to(model.device)
    result = reconstruct(model, processor, pixel_values, mask)
    baselines = {
        "neighbor average": neighbor_average(result.images, mask, result.patch_size),
        "mean color": mean_visible_color(result.images, mask, result.patch_size),
    }
    reconstruction_figure(result, baselines).save(folder / "reconstructions.png")
    descent_figure(result, max_images=4).save(folder / "descent.png")
    energy_figure(result).save(folder / "energy.png")
    token_energy_figure(result).save(folder / "token_energies.png")
