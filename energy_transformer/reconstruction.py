"""Fill in the hidden patches of images and keep the way there."""

from dataclasses import dataclass

import torch
from transformers import AutoModelForMaskedImageModeling

from .data import denormalize, load_image, normalize, resize_to_tensor
from .errors import UserError
from .hub import load_pretrained
from .image_processing import load_image_processor, processor_sizes
from .masking import draw_masks
from .modeling_energy_transformer import EnergyTransformerForMaskedImageModeling


@dataclass
class Reconstruction:
    """Images in [0, 1], predictions unclipped.

    Attributes:
        images: the originals, (B, C, H, W).
        mask: True for the patches that were hidden, (B, patches).
        prediction: the decoded result, hidden and visible patches alike, (B, C, H, W).
        frames: the decoded states of the descent, (T + 1, B, C, H, W).
        energies: of each image at each state, (B, T + 1).
    """

    images: torch.Tensor
    mask: torch.Tensor
    prediction: torch.Tensor
    frames: torch.Tensor
    energies: torch.Tensor


@torch.no_grad()
def reconstruct(
    model: EnergyTransformerForMaskedImageModeling,
    processor,
    pixel_values: torch.Tensor,
    mask: torch.Tensor,
    num_steps: int | None = None,
) -> Reconstruction:
    """Hide the patches of `mask` (B, patches) in `pixel_values` (B, C, H, W) and let the model descend.

    The images may be of any size that the patch size divides; `processor` is the one that normalised them.
    """
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
    frames = [denormalize(frame, processor) for frame in model.decode_states(outputs.hidden_states, grid)]
    return Reconstruction(
        images=denormalize(pixel_values, processor),
        mask=mask,
        prediction=denormalize(outputs.reconstruction, processor),
        frames=torch.stack(frames),
        energies=outputs.energies,
    )


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
    if model.config.norm_pix_loss:
        raise UserError(f"checkpoint {checkpoint} predicts normalised patches (norm_pix_loss), which are no picture")
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
