"""Held-out evaluation: masked error beside two baselines on the same masks, and pictures.

In evaluation every masked patch is hidden, and an image's mask depends on its place in the dataset and the seed
alone, so that figures of different runs and numbers of processes are comparable.
"""

from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from ..configuration_energy_transformer import EnergyTransformerConfig
from ..data import ImageTensors, denormalize, normalize
from ..masking import draw_masks
from ..metrics import masked_squared_error, mean_visible_color, neighbor_average
from ..modeling_energy_transformer import EnergyTransformerForMaskedImageModeling
from ..reconstruction import reconstruct
from ..visualization import descent_figure, energy_figure, reconstruction_figure, save_figure
from .arguments import MaskedImageModelingArguments


def evaluation_masks(config: EnergyTransformerConfig, num_images: int, units: int, seed: int) -> torch.Tensor:
    """The hidden patches of each held-out image, (num_images, patches), on the CPU."""
    noise = torch.rand(num_images, units, generator=torch.Generator().manual_seed(seed))
    return draw_masks(config.mask_type, noise, config.grid_size, config.mask_ratio)[0]


@torch.no_grad()
def evaluate(accelerator: Accelerator, model, loader: DataLoader, processor, units: int, seed: int) -> dict[str, float]:
    """Mean squared error over the pixels of masked patches, in units of [0, 1], of the model and two baselines."""
    model.eval()
    config = accelerator.unwrap_model(model).config
    patch_size = config.patch_height_width
    masks = evaluation_masks(config, len(loader.dataset), units, seed)
    errors = []
    for batch in loader:
        pixel_values = normalize(batch["image"], processor)
        mask = masks[batch["index"].cpu()].to(pixel_values.device)
        reconstruction = denormalize(model(pixel_values, bool_masked_pos=mask).reconstruction, processor)
        images = denormalize(pixel_values, processor)
        predictions = (
            reconstruction,
            mean_visible_color(images, mask, patch_size),
            neighbor_average(images, mask, patch_size),
        )
        error = torch.stack([masked_squared_error(p, images, mask, patch_size) for p in predictions], dim=-1)
        errors.append(accelerator.gather_for_metrics(error).cpu())
    tiny = torch.finfo(torch.float32).tiny
    mean = torch.cat(errors).double().mean(0).tolist()
    return {
        "eval_masked_mse": mean[0],
        "eval_mean_color_mse": mean[1],
        "eval_neighbor_average_mse": mean[2],
        "eval_ratio_to_mean_color": mean[0] / max(mean[1], tiny),  # constant images have no error to compare with
        "eval_ratio_to_neighbor_average": mean[0] / max(mean[2], tiny),
        "eval_samples": len(loader.dataset),
    }


def save_pictures(
    model: EnergyTransformerForMaskedImageModeling,
    images: ImageTensors,
    processor,
    units: int,
    args: MaskedImageModelingArguments,
    folder: Path,
) -> None:
    """`reconstructions.png`, `descent.png` and `energy.png` of the first held-out images."""
    patch_size = model.config.patch_height_width
    count = min(args.num_visual_samples, len(images))
    pixel_values = normalize(images.__getitems__(list(range(count)))["image"].to(model.device), processor)
    mask = evaluation_masks(model.config, len(images), units, args.seed)[:count].to(model.device)
    result = reconstruct(model, processor, pixel_values, mask)
    baselines = {
        "neighbour average": neighbor_average(result.images, mask, patch_size),
        "mean colour": mean_visible_color(result.images, mask, patch_size),
    }
    save_figure(reconstruction_figure(result, patch_size, baselines), folder / "reconstructions.png")
    save_figure(descent_figure(result, patch_size, max_images=4), folder / "descent.png")
    save_figure(energy_figure(result.energies), folder / "energy.png")
