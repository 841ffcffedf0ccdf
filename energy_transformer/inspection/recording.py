"""A descent with all that its pictures show.

Shapes: B images, C channels, N tokens (CLS first where there is one), P patches, D token width, H heads, T steps.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from ..block import Record
from ..data import denormalize
from ..masking import split_mask_values
from ..modeling_energy_transformer import EnergyTransformerModel, EnergyTransformerPreTrainedModel
from ..patches import patch_mask_to_pixels
from .pictures import HIDDEN


@dataclass(kw_only=True)
class DescentRecord:
    """A descent of images, from [`record_descent`].

    Attributes:
        images: the originals in [0, 1], (B, C, H, W).
        mask: True for the patches that were hidden, (B, P).
        patch_size: height and width of a patch in pixels.
        tokens: the normalized tokens at each state, (T + 1, B, N, D).
        token_energies: of each term by its name the energy of each token at each state, (B, T + 1, N).
        attentions: (T, B, H, N, N), if they were asked for.
        block_starts: of a model of several blocks, the state at which each block begins.
    """

    images: torch.Tensor
    mask: torch.Tensor
    patch_size: tuple[int, int]
    tokens: torch.Tensor
    token_energies: dict[str, torch.Tensor]
    attentions: torch.Tensor | None = None
    block_starts: tuple[int, ...] = (0,)

    @property
    def num_steps(self) -> int:
        """T, of all blocks together."""
        return len(self.tokens) - 1

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = self.images.shape[-2:]
        return height // self.patch_size[0], width // self.patch_size[1]

    @property
    def energies(self) -> torch.Tensor:
        """Energy of each image at each state, (B, T + 1)."""
        return self.energy_of()

    def energy_of(self, term: str | None = None) -> torch.Tensor:
        """Energy of each image at each state, (B, T + 1), in one term or in all of them.

        Raises:
            ValueError: for a term that the model has not.
        """
        return self._of_tokens(term).sum(-1)

    def energy_map(self, term: str | None = None) -> torch.Tensor:
        """Energy of each patch at each state, (B, T + 1, rows, columns), in one term or in all of them."""
        return self.on_grid(self._of_tokens(term))

    def _of_tokens(self, term: str | None) -> torch.Tensor:
        if term is None:
            return torch.stack(list(self.token_energies.values())).sum(0)
        if term not in self.token_energies:
            raise ValueError(f"term must be one of {', '.join(self.token_energies)}, got {term!r}")
        return self.token_energies[term]

    def on_grid(self, values: torch.Tensor) -> torch.Tensor:
        """Values of the tokens (..., N) as (..., rows, columns), without the CLS token."""
        rows, columns = self.grid
        return values[..., values.shape[-1] - rows * columns :].unflatten(-1, (rows, columns))

    @property
    def changes(self) -> torch.Tensor:
        """How far each step moves the normalized tokens of an image, |g' − g| / |g|, (B, T)."""
        moved, before = self.tokens.diff(dim=0).flatten(2).norm(dim=-1), self.tokens[:-1].flatten(2).norm(dim=-1)
        return (moved / before).T

    @property
    def masked_images(self) -> torch.Tensor:
        """The originals with the hidden patches gray, (B, C, H, W)."""
        color = torch.tensor(HIDDEN if self.images.shape[1] == 3 else HIDDEN[:1]).to(self.images)
        return self.filled_in(color[:, None, None].expand_as(self.images))

    def filled_in(self, predictions: torch.Tensor) -> torch.Tensor:
        """The originals with `predictions` (..., B, C, H, W) in the hidden patches alone."""
        return torch.where(patch_mask_to_pixels(self.mask, self.patch_size, self.grid), predictions, self.images)


@torch.no_grad()
def record_descent(
    model: EnergyTransformerPreTrainedModel,
    processor,
    pixel_values: torch.Tensor,
    mask: torch.Tensor | None = None,
    num_steps: int | None = None,
    attentions: bool = False,
) -> DescentRecord:
    """Let any model of the package descend and keep what its pictures show; [`reconstruct`] also decodes the states.

    Args:
        model: with or without a head; it is set to evaluation mode.
        processor: that normalized the images.
        pixel_values: (B, C, H, W), of any size that the patch size divides.
        mask: patches to hide, in any form that the model takes; none when None.
        num_steps: of each block; the model's when None.
        attentions: keep them too, T·B·H·N² numbers.
    """
    model.eval()
    outputs = model.base_model(
        pixel_values,
        bool_masked_pos=mask,
        interpolate_pos_encoding=True,
        output_hidden_states=True,
        output_attentions=attentions,
        num_steps=num_steps,
    )
    return DescentRecord(**recorded(model, processor, pixel_values, mask, outputs, num_steps))


def recorded(model, processor, pixel_values, mask, outputs, num_steps: int | None) -> dict:
    """The fields of a [`DescentRecord`], from what a model returned with its hidden states."""
    tokens, energies = _look(model.base_model, outputs.hidden_states, num_steps)
    return {
        "images": denormalize(pixel_values, processor),
        "mask": hidden_patches(model, pixel_values, mask),
        "patch_size": model.config.patch_height_width,
        "tokens": tokens,
        "token_energies": energies,
        "attentions": torch.stack(outputs.attentions) if outputs.attentions else None,
        "block_starts": (0, *accumulate(model.base_model.steps_of_layers(num_steps)[:-1])),
    }


def hidden_patches(model, pixel_values: torch.Tensor, mask) -> torch.Tensor:
    """A mask in any form that the model takes, as booleans (B, P): True for what is in the loss."""
    embeddings = model.base_model.embeddings
    if mask is None:
        rows, columns = embeddings.grid_of(*pixel_values.shape[2:])
        return torch.zeros(len(pixel_values), rows * columns, dtype=torch.bool, device=pixel_values.device)
    return split_mask_values(embeddings.patch_mask("mask", mask, pixel_values))[0]


def layers_of_states(base: EnergyTransformerModel, num_steps: int | None = None) -> list[Any]:
    """The block that each of the states x_0 … x_T belongs to: the one whose step comes next, at the end the last."""
    steps = base.steps_of_layers(num_steps)
    layers = [layer for layer, count in zip(base.layers, steps, strict=True) for _ in range(count)]
    return [*layers, base.layers[-1] if layers else base.layers[0]]


def _look(base: EnergyTransformerModel, states, num_steps: int | None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The normalized tokens of the states, and the energies of each term."""
    layers = layers_of_states(base, num_steps)
    found = [layer(x, 0, record=Record(energies=True)) for layer, x in zip(layers, states, strict=True)]
    names = found[-1].energies
    energies = {name: torch.cat([each.energies[name] for each in found], -2) for name in names}
    return torch.stack([each.normalized for each in found]), energies
