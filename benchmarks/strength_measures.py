"""What happens inside a contestant of `strength.py` after its training: what may explain its score.

Shapes: B images, N tokens, D token width, T steps.
"""

from contextlib import contextmanager

import torch
from torch import Tensor, nn

from energy_transformer.inspection.token_geometry import effective_rank

FACTORS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)


def along_the_steps(model: nn.Module, given: dict[str, Tensor]) -> dict[str, list[float]]:
    """For each state x_0 … x_T, a mean over images and tokens: `size`, the root mean square of x over its channels;
    `gradient`, that of the gradient of an image's loss with respect to x; and `effective_rank`, that of an image's
    normalized tokens."""
    model.eval()
    outputs = model(**given, output_hidden_states=True)
    states = outputs.hidden_states
    gradients = torch.autograd.grad(outputs.loss * len(states[0]), states)
    norm = model.energy_transformer.layers[-1].norm
    return {
        "size": [_size(state) for state in states],
        "gradient": [_size(gradient) for gradient in gradients],
        "effective_rank": [effective_rank(norm(state).detach()).mean().item() for state in states],
    }


def _size(tensor: Tensor) -> float:
    return tensor.detach().square().mean(-1).sqrt().mean().item()


@torch.no_grad()
def rises_by_step_size(model: nn.Module, given: dict[str, Tensor]) -> dict[str, float]:
    """The share of pairs of image and step at which the energy rises, with the trained step size times each of
    `FACTORS`: where it is still zero, the step is shorter than what the curvature of the energy allows."""
    model.eval()
    shares = {}
    for factor in FACTORS:
        with _scaled_steps(model, factor):
            energies = model(**given, output_energies=True).energies
        shares[f"{factor:g}"] = (energies.diff(dim=1) > 0).float().mean().item()
    return shares


@contextmanager
def _scaled_steps(model: nn.Module, factor: float):
    updates = [layer.update for layer in model.energy_transformer.layers]
    sizes = [update.step_size for update in updates]
    learned = [isinstance(size, nn.Parameter) for size in sizes]
    for update, size, is_learned in zip(updates, sizes, learned, strict=True):
        update.step_size = nn.Parameter(size * factor) if is_learned else size * factor
    try:
        yield
    finally:
        for update, size in zip(updates, sizes, strict=True):
            update.step_size = size
