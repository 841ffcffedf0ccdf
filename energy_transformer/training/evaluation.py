"""Held-out evaluation: masked error beside two baselines on the same masks, and pictures.

In evaluation every masked patch is hidden, and an image's mask depends on its place in the dataset and the seed
alone, so that figures of different runs and numbers of processes are comparable.
"""

from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from ..data import ImageTensors, normalize
from ..masking import scatter_masks
from ..metrics import masked_squared_error, mean_visible_color, neighbor_average
from ..modeling_energy_transformer import EnergyTransformerForMaskedImageModeling
from ..visualization import descent_figure, energy_figure, reconstruction_figure, save_figure
from .arguments import MaskedImageModelingArguments


def evaluation_noise(num_images: int, units: int, seed: int) -> torch.Tensor:
    """The noise behind the mask of each held-out image, (num_images, units), on the CPU."""
    return torch.rand(num_images, units, generator=torch.Generator().manual_seed(seed))


def to_unit_range(pixel_values: torch.Tensor, processor) -> torch.Tensor:
    """Normalised pixels (B, C, H, W) back to [0, 1], without clipping."""
    mean, std = (torch.tensor(v, device=pixel_values.device) for v in (processor.image_mean, processor.image_std))
    return pixel_values.float() * std[:, None, None] + mean[:, None, None]


@torch.no_grad()
def evaluate(accelerator: Accelerator, model, loader: DataLoader, processor, units: int, seed: int) -> dict[str, float]:
    """Mean squared error over the pixels of masked patches, in units of [0, 1], of the model and two baselines."""
    model.eval()
    config = accelerator.unwrap_model(model).config
    patch_size = config.patch_height_width
    noise = evaluation_noise(len(loader.dataset), units, seed)
    errors = []
    for batch in loader:
        pixel_values = normalize(batch["image"], processor)
        mask, _ = scatter_masks(
            noise[batch["index"].cpu()].to(pixel_values.device), config.grid_size, config.mask_ratio
        )
        reconstruction = to_unit_range(model(pixel_values, bool_masked_pos=mask).reconstruction, processor)
        images = to_unit_range(pixel_values, processor)
        predictions = (
            reconstruction,
            mean_visible_color(images, mask, patch_size),
            neighbor_average(images, mask, patch_size),
        )
        error = torch.stack([masked_squared_error(p, images, mask, patch_size) for p in predictions], dim=-1)
        errors.append(accelerator.gather_for_metrics(error).cpu())
    mean = torch.cat(errors).double().mean(0).tolist()
    return {
        "eval_masked_mse": mean[0],
        "eval_mean_color_mse": mean[1],
        "eval_neighbor_average_mse": mean[2],
        "eval_ratio_to_mean_color": mean[0] / mean[1],
        "eval_ratio_to_neighbor_average": mean[0] / mean[2],
        "eval_samples": len(loader.dataset),
    }


@torch.no_grad()
def save_pictures(
    model: EnergyTransformerForMaskedImageModeling,
    images: ImageTensors,
    processor,
    units: int,
    args: MaskedImageModelingArguments,
    folder: Path,
) -> None:
    """`reconstructions.png`, `descent.png` and `energy.png` of the first held-out images."""
    model.eval()
    config, patch_size = model.config, model.config.patch_height_width
    count = min(args.num_visual_samples, len(images))
    pixel_values = normalize(images.__getitems__(list(range(count)))["image"].to(model.device), processor)
    noise = evaluation_noise(len(images), units, args.seed)[:count].to(model.device)
    mask, _ = scatter_masks(noise, config.grid_size, config.mask_ratio)
    outputs = model(pixel_values, bool_masked_pos=mask, output_hidden_states=True, output_energies=True)
    originals = to_unit_range(pixel_values, processor)
    baselines = {
        "neighbour average": neighbor_average(originals, mask, patch_size),
        "mean colour": mean_visible_color(originals, mask, patch_size),
    }
    reconstruction = to_unit_range(outputs.reconstruction, processor)
    save_figure(
        reconstruction_figure(originals, mask, reconstruction, patch_size, baselines), folder / "reconstructions.png"
    )
    frames = torch.stack([to_unit_range(frame, processor) for frame in model.decode_states(outputs.hidden_states)])
    shown = slice(0, min(4, count))
    figure = descent_figure(
        frames[:, shown], originals[shown], mask[shown], patch_size, energies=outputs.energies[shown]
    )
    save_figure(figure, folder / "descent.png")
    save_figure(energy_figure(outputs.energies), folder / "energy.png")
