"""What the app computes: no interface, so that it can be tested and read without one.

Pictures that are shown are uint8 (side, side', C), enlarged by a whole number so that a patch can be pointed at.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..data import load_image, normalize
from ..data.pixels import resize_to_tensor
from ..energies import BaseModernHopfield
from ..inspection import (
    Picture,
    Reconstruction,
    attention_figure,
    demo_images,
    load_for_reconstruction,
    memory_figure,
    reconstruct,
)
from ..inspection.energy_pictures import color_scale, draw_energy, draw_map, label_bar
from ..inspection.token_geometry import draw_changes
from ..modeling_energy_transformer import EnergyTransformerForMaskedImageModeling
from ..utils.errors import UserError

SHOWN = 384  # pixels of the longer side of a picture, at least
MAX_IMAGE_PIXELS = 40_000_000  # of an upload
MAX_LAYERS = 4  # of the editor, which makes one; a browser may send anything
MAX_LAYER_PIXELS = 4_000_000
_DATASET = 256  # crops that are searched for what activates the memories


@dataclass
class Explorer:
    """A masked-image model with its processor, which all users of the app share; nothing of a user is kept here."""

    model: EnergyTransformerForMaskedImageModeling
    processor: object

    @classmethod
    def of(cls, checkpoint: str, device: str | None = None) -> "Explorer":
        return cls(*load_for_reconstruction(checkpoint, device=device))

    @property
    def enlargement(self) -> int:
        return max(1, -(-SHOWN // max(self.model.config.image_height_width)))

    @property
    def has_memories(self) -> bool:
        layer: Any = self.model.energy_transformer.layers[0]
        return any(isinstance(getattr(layer, name), BaseModernHopfield) for name in layer.term_names)

    @property
    def most_steps(self) -> int:
        return 4 * max(self.model.config.steps_of_blocks)

    def open(self, path: str) -> np.ndarray:
        """An uploaded file as the picture that the model works on, uint8 (H, W, C).

        Raises:
            UserError: for a file that is no image, is damaged, or has too many pixels.
        """
        return self.fit(load_image({"path": path}, self.model.config.num_channels, "the upload", MAX_IMAGE_PIXELS))

    def fit(self, image) -> np.ndarray:
        """A PIL image at the size of the model, uint8 (H, W, C)."""
        image = image.convert("L" if self.model.config.num_channels == 1 else "RGB")
        return resize_to_tensor(image, self.processor).permute(1, 2, 0).numpy()

    def enlarged(self, picture: np.ndarray) -> np.ndarray:
        shown = picture.repeat(self.enlargement, 0).repeat(self.enlargement, 1)
        return shown.repeat(3, 2) if shown.shape[2] == 1 else shown

    def mask_of(self, painted: np.ndarray | None) -> torch.Tensor:
        """Where an enlarged picture was painted on, booleans of its size, as a mask of the pixels (1, H, W).

        Raises:
            UserError: when nothing or everything is painted over.
        """
        height, width = self.model.config.image_height_width
        if painted is None or not painted.any():
            raise UserError("nothing is hidden: paint over a part of the picture first")
        rows, columns = (np.linspace(0, side, count, endpoint=False).astype(int) for side, count in
                         zip(painted.shape, (height, width), strict=True))  # fmt: skip
        covered = np.maximum.reduceat(np.maximum.reduceat(painted.astype(np.uint8), rows, 0), columns, 1) > 0
        patch = self.model.config.patch_height_width
        if covered.reshape(height // patch[0], patch[0], width // patch[1], patch[1]).any((1, 3)).all():
            raise UserError("every patch is hidden: leave a part of the picture free, for the model to look at")
        return torch.from_numpy(covered)[None]

    def descend(self, picture: np.ndarray, painted: np.ndarray | None, num_steps: int) -> Reconstruction:
        """Hide what is painted over, and keep all that the app shows of the descent."""
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None]
        pixel_values = normalize(pixels.to(self.model.device), self.processor)
        mask, num_steps = self.mask_of(painted), min(num_steps, self.most_steps)
        return on_cpu(reconstruct(self.model, self.processor, pixel_values, mask, num_steps, attentions=True))

    def memories(self) -> Picture:
        """The memories, and the patches of the embedded photographs that activate each most.

        Raises:
            UserError: when the model has no Hopfield term.
        """
        if not self.has_memories:
            raise UserError("this model has no Hopfield term, and so no memories")
        dataset = normalize(demo_images("train", _DATASET, self.processor).to(self.model.device), self.processor)
        return memory_figure(self.model, self.processor, dataset)

    def frame(self, found: Reconstruction, step: int) -> np.ndarray:
        """The picture with the hidden patches as they are decoded at a step."""
        filled = found.filled_in(found.frames[step])[0].clamp(0, 1)
        return self.enlarged(filled.mul(255).round().byte().permute(1, 2, 0).cpu().numpy())

    def attention(self, found: Reconstruction, x: int, y: int) -> Picture:
        """The attention of the patch at a place of a shown picture."""
        height, width = found.patch_size
        rows, columns = found.grid
        place = y // self.enlargement // height, x // self.enlargement // width
        return attention_figure(found, 0, (min(place[0], rows - 1), min(place[1], columns - 1)))


def painted_on(editor: dict | None) -> np.ndarray | None:
    """Where any layer (H, W, 4) of the editor is not transparent, booleans; None where it has no layer.

    Raises:
        UserError: for more than four layers, layers of different sizes, or more than four million pixels in one.
    """
    layers = [layer for layer in (editor or {}).get("layers", []) if layer is not None]
    if not layers:
        return None
    sizes = {layer.shape[:2] for layer in layers}
    if len(layers) > MAX_LAYERS or len(sizes) > 1 or layers[0].shape[0] * layers[0].shape[1] > MAX_LAYER_PIXELS:
        raise UserError(
            f"layers must be at most {MAX_LAYERS} of one size and of at most {MAX_LAYER_PIXELS:,} pixels, got "
            f"{len(layers)} of {', '.join('x'.join(map(str, size)) for size in sorted(sizes)[:3])}"
        )
    return np.logical_or.reduce([layer[..., 3] > 0 for layer in layers])


def on_cpu(found: Reconstruction) -> Reconstruction:
    """Without the memory of a GPU, of which every open window would hold some."""
    moved = {name: value.cpu() for name, value in vars(found).items() if isinstance(value, torch.Tensor)}
    energies = {name: value.cpu() for name, value in found.token_energies.items()}
    return replace(found, **moved, token_energies=energies)


def energy_map(found: Reconstruction, step: int) -> Picture:
    """The energy of each patch at a step, in colors that are the same for all steps."""
    maps = found.energy_map()
    picture = Picture(3.6, 3.0, {"token_energies": maps[0, step]})
    axis = picture.subplots()
    label_bar(picture.colorbar(draw_map(axis, maps[0, step], color_scale(maps), f"energy of each patch, step {step}")))
    return picture


def energy_curve(found: Reconstruction, step: int) -> Picture:
    """The energy, and how far each step moves the tokens, with a red dot at the step that is shown."""
    picture = Picture(4.2, 3.0, {"energies": found.energies, "changes": found.changes})
    energy, change = picture.subplots(2, 1, sharex=True)
    draw_energy(energy, found, shown=[step])
    energy.set(xlabel="", ylabel="energy − its start")
    energy.set_title("the energy of the picture at each step", fontsize=9)
    draw_changes(change, found.changes, [step])
    change.set(title="", ylabel="change in %")
    return picture
