"""Descent on the energy: x ← x − α ∂E/∂g at g = norm(x), with the same weights at every step.

Hoover et al. 2023 (arXiv 2302.07253), equation 7. Shapes: B any leading axes, N tokens, D token width.
"""

import torch
from torch import nn

from .energies import BaseModernHopfield, EnergyAttention


def energy_gradient(
    g: torch.Tensor, attention: EnergyAttention, hopfield: BaseModernHopfield, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Gradient (..., N, D) of the attention energy plus the Hopfield energy at the normalised tokens g."""
    return attention.grad(g, mask) + hopfield.grad(g)


def token_energies(
    g: torch.Tensor, attention: EnergyAttention, hopfield: BaseModernHopfield, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Energy of each token, (..., N), at the normalised tokens g: the quantity that the descent lowers."""
    return attention.token_energies(g, mask) + hopfield.token_energies(g)


def descent_step(
    x: torch.Tensor,
    norm: nn.Module,
    attention: EnergyAttention,
    hopfield: BaseModernHopfield,
    step_size: float,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """One step of size α: tokens x (..., N, D) to the next tokens, in the dtype of x or wider."""
    return x - step_size * energy_gradient(norm(x), attention, hopfield, mask)
