"""The memories of a Hopfield term: which there are, what activates them, and models with some of them changed.

Shapes: B images, N tokens, P patches, D token width, M memories, T steps.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..context import EnergyContext
from ..data import denormalize
from ..energies import BaseModernHopfield, project
from ..modeling_energy_transformer import EnergyTransformerForMaskedImageModeling, EnergyTransformerPreTrainedModel

_BATCH = 64


def hopfield_term(model: EnergyTransformerPreTrainedModel, block: int = 0) -> BaseModernHopfield:
    """The Hopfield term of a block; its memories are the columns of `W` (D, M).

    Raises:
        ValueError: when there is no such block, or it has no Hopfield term.
    """
    layers: Any = model.base_model.layers
    if not 0 <= block < len(layers):
        raise ValueError(f"block must lie in [0, {len(layers)}), got {block}")
    terms = (getattr(layers[block], name) for name in layers[block].term_names)
    found = next((term for term in terms if isinstance(term, BaseModernHopfield)), None)
    if found is None:
        raise ValueError(f"block {block} has no Hopfield term, only {', '.join(layers[block].term_names)}")
    return found


@torch.no_grad()
def memory_activations(
    model: EnergyTransformerPreTrainedModel, pixel_values: torch.Tensor, block: int = 0, num_steps: int | None = None
) -> torch.Tensor:
    """How much each patch of each image activates each memory at the end of the descent, (B, P, M) float32.

    The activation is the strength with which a memory pulls the token towards itself, ∂Σφ/∂h of the projection h:
    relu(h) or softmax(β h), and with `hopfield_norm` what the Jacobian of the normalization makes of it, below zero
    where a memory pushes the token away. Nothing is hidden in the images, (B, C, H, W).
    """
    model.eval()
    base: Any = model.base_model
    term = hopfield_term(model, block)
    layer, end = base.layers[block], sum(base.steps_of_layers(num_steps)[: block + 1])
    found = []
    for images in pixel_values.split(_BATCH):
        outputs = base(images, interpolate_pos_encoding=True, output_hidden_states=[end], num_steps=num_steps)
        tokens = layer(outputs.hidden_states[end], 0).normalized
        h = project(tokens, term.projection(), term.offset())
        pull = term.pull_of_raw(h, EnergyContext(), **term.constants())
        found.append(pull[:, int(model.config.use_cls_token) :].float())
    return torch.cat(found)


@torch.no_grad()
def decoded_memories(
    model: EnergyTransformerForMaskedImageModeling, processor, memories: Sequence[int] | None = None, block: int = 0
) -> torch.Tensor:
    """What the decoder makes of tokens that are memories, (memories, C, patch height, patch width) in [0, 1] and
    unclipped; all of them when `memories` is None.

    Each memory is taken for a token and normalized by its block, as any token is before it is decoded. With
    `norm_pix_loss` the decoder gives a pattern without brightness and contrast, which is drawn around gray.
    """
    chosen = list(range(hopfield_term(model, block).W.shape[1])) if memories is None else list(memories)
    weight = hopfield_term(model, block).W[:, chosen].T[:, None]
    layers: Any = model.base_model.layers
    tokens = layers[block](weight, 0).normalized
    tokens = torch.cat([tokens.new_zeros(len(chosen), int(model.config.use_cls_token), tokens.shape[-1]), tokens], 1)
    patches = model.decode(tokens.to(weight.dtype), (1, 1)).float()
    return 0.5 + 0.2 * patches if model.config.norm_pix_loss else denormalize(patches, processor)


@contextmanager
def scaled_memories(
    model: EnergyTransformerPreTrainedModel, memories: Sequence[int], scale: float = 0.0, block: int = 0
) -> Iterator[None]:
    """Multiply memories by a number for a while: 0 switches them off, −1 turns them around.

    With `hopfield_norm` the others then grow a little, for the normalization is over all memories.

    Raises:
        ValueError: for a memory that there is not.
    """
    weight = hopfield_term(model, block).W
    chosen = list(memories)
    if any(not 0 <= memory < weight.shape[1] for memory in chosen):
        raise ValueError(f"memories must lie in [0, {weight.shape[1]}), got {chosen}")
    with torch.no_grad():
        before = weight[:, chosen].clone()
        weight[:, chosen] = before * scale
        try:
            yield
        finally:
            weight[:, chosen] = before


def most_active(activations: torch.Tensor, count: int) -> list[int]:
    """The memories of the greatest mean square activation over the patches (B, P, M); in a ReLU network without a norm
    that is their part in the energy."""
    strength = activations.square().mean((0, 1))
    return strength.topk(min(count, len(strength))).indices.tolist()
