"""Models, images and masks to look at, from checkpoints, files and the embedded photographs."""

from collections.abc import Sequence

import torch
import transformers
from transformers import AutoConfig, AutoModelForMaskedImageModeling

from ..data import load_image, normalize, resize_to_tensor
from ..data.image_processing import load_image_processor, processor_sizes
from ..hub import load_pretrained
from ..hub.tasks import TASKS
from ..masking import draw_masks
from ..modeling_energy_transformer import EnergyTransformerForMaskedImageModeling, EnergyTransformerPreTrainedModel
from ..utils.errors import UserError
from .pictures import even_sample


def load_for_reconstruction(checkpoint: str, image_size: list[int] | None = None, device: str | None = None):
    """Model and image processor of a masked-image checkpoint, the processor for another size of image if asked.

    Raises:
        UserError: when there is no such checkpoint, the model cannot run at that size, the processor is for images of
            another number of channels, or there is no such device.
    """
    model, info = load_pretrained(AutoModelForMaskedImageModeling, checkpoint, output_loading_info=True)
    if not isinstance(model, EnergyTransformerForMaskedImageModeling):
        raise UserError(f"checkpoint {checkpoint} holds a {type(model).__name__}, not an Energy Transformer")
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"]))
        raise UserError(f"checkpoint {checkpoint} holds no masked-image model: it lacks {missing}")
    return _with_processor(model, checkpoint, image_size, device)


def load_for_inspection(checkpoint: str, image_size: list[int] | None = None, device: str | None = None):
    """Model and image processor of a checkpoint of any head, or of none; arguments as for [`load_for_reconstruction`].

    Raises:
        UserError: for the same mistakes.
    """
    architectures = load_pretrained(AutoConfig, checkpoint).architectures or [""]
    task = TASKS.get(architectures[0])
    if task is not None and task.auto_class == AutoModelForMaskedImageModeling.__name__:
        return load_for_reconstruction(checkpoint, image_size, device)
    model = load_pretrained(getattr(transformers, task.auto_class if task else "AutoModel"), checkpoint)
    if not isinstance(model, EnergyTransformerPreTrainedModel):
        raise UserError(f"checkpoint {checkpoint} holds a {type(model).__name__}, not an Energy Transformer")
    return _with_processor(model, checkpoint, image_size, device)


def _with_processor(model, checkpoint: str, image_size: list[int] | None, device: str | None):
    processor = load_image_processor(checkpoint)
    if image_size is not None:
        sizes = processor_sizes(*_checked_size(image_size, model.config.patch_height_width))
        processor = load_image_processor(checkpoint, **sizes)
    channels = len(processor.image_mean)
    if channels != model.config.num_channels:
        raise UserError(
            f"checkpoint {checkpoint} has a model of images with num_channels {model.config.num_channels}, but its "
            f"preprocessor_config.json normalizes {channels}"
        )
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
    pixel_values = normalize(image_files([path], processor).to(model.device), processor)
    return pixel_values, random_masks(model, pixel_values, mask_ratio, seed)


def image_files(paths: Sequence[str], processor) -> torch.Tensor:
    """Image files as uint8 (B, C, H, W) of the processor's size.

    Raises:
        UserError: when a file is no image.
    """
    channels = len(processor.image_mean)
    return torch.stack([resize_to_tensor(load_image({"path": path}, channels, path), processor) for path in paths])


def demo_images(split: str, number: int, processor, seed: int = 0) -> torch.Tensor:
    """Crops of the embedded photographs as uint8 (B, C, H, W), chosen evenly with the seed: of the `"train"` or the
    held-out `"validation"` images."""
    from ..data import ImageTensors, load_image_datasets  # which need the extra `train`

    splits, column = load_image_datasets("demo")
    images = ImageTensors(splits[split], column, processor)
    return images.__getitems__(even_sample(len(images), number, seed))["image"]


def random_masks(
    model: EnergyTransformerForMaskedImageModeling,
    pixel_values: torch.Tensor,
    mask_ratio: float | None = None,
    seed: int = 0,
) -> torch.Tensor:
    """Masks (B, patches) of the model's kind, and of its ratio if none is given.

    Raises:
        UserError: when `mask_ratio` is outside (0, 1).
    """
    config, grid = model.config, model.base_model.embeddings.grid_of(*pixel_values.shape[2:])
    noise = torch.rand(len(pixel_values), grid[0] * grid[1], generator=torch.Generator().manual_seed(seed))
    mask_ratio = config.mask_ratio if mask_ratio is None else mask_ratio
    try:
        return draw_masks(config.mask_type, noise.to(pixel_values.device), grid, mask_ratio)[0]
    except ValueError as error:
        raise UserError(str(error)) from error
