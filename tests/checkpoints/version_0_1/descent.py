"""Descent on the energy: x ← x − α ∂E/∂g at g = norm(x), with the same weights at every step.

Hoover et al. 2023 (arXiv 2302.07253), equation 7. Shapes: B any leading axes, N tokens, D token width.

When the energy is sure to fall. To first order a step changes it by −α dᵀ J d, with d = ∂E/∂g and J = ∂g/∂x. With
[`EnergyLayerNorm`], J is the Hessian of the Lagrangian, symmetric and positive semidefinite for γ > 0 (and
regularisation λ ≥ 0), so that the energy never rises when the step is small enough, for every kind of attention and
Hopfield energy, bias, mask and β ≠ 0, learned or not and even negative. It is not covered when
- the norm is `torch.nn.LayerNorm`: J = diag(w) H is not symmetric unless all gains w are equal, and dᵀ J d can be
  negative (equal positive gains are covered, negative ones turn the descent into an ascent, as γ < 0 does);
- the step is not small for the curvature of the energy, or the rounding of half precision is larger than the fall;
- several blocks follow one another: the energy falls within each, and jumps from one to the next.
The energy of the *raw* tokens x, which the seed reports, has no such guarantee.
"""

from collections.abc import Callable

import torch
from torch import nn

from .energies import BaseModernHopfield, EnergyAttention


def _without_padding(g: torch.Tensor, tokens: torch.Tensor | None) -> torch.Tensor:
    """g with zeros for padding: a masked NaN is still NaN in a product with a weight of zero."""
    return g if tokens is None else g.masked_fill(~tokens[..., None], 0.0)


def energy_gradient(
    g: torch.Tensor,
    attention: EnergyAttention,
    hopfield: BaseModernHopfield,
    mask: torch.Tensor | None = None,
    tokens: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    attn_implementation: str | None = None,
) -> torch.Tensor:
    """Gradient (..., N, D) of the attention energy plus the Hopfield energy at the normalised tokens g.

    Args:
        mask (`torch.BoolTensor` broadcastable to `(..., N, N)`, *optional*):
            True where the token of the row may attend to the token of the column.
        tokens (`torch.BoolTensor` of shape `(..., N)`, *optional*):
            False for padding, which may hold anything, NaN too: no token attends to it, it has no energy and never
            moves.
        weights (`torch.Tensor` of shape `(..., H, N, N)`, *optional*): the attention weights at g, when known.
        attn_implementation: how to compute the attention, see [`attention_backends`]; the module's own when None.
    """
    g = _without_padding(g, tokens)
    by_hopfield = hopfield(g)
    if tokens is not None:
        by_hopfield = by_hopfield.masked_fill(~tokens[..., None], 0.0)
    return attention(g, mask, weights, tokens, attn_implementation) + by_hopfield


def energy_parts(
    g: torch.Tensor,
    attention: EnergyAttention,
    hopfield: BaseModernHopfield,
    mask: torch.Tensor | None = None,
    tokens: torch.Tensor | None = None,
    attn_implementation: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention and Hopfield energy of each token, both (..., N). Arguments as for [`energy_gradient`]."""
    g = _without_padding(g, tokens)
    by_hopfield = hopfield(g, method="token_energies")
    if tokens is not None:
        by_hopfield = by_hopfield.masked_fill(~tokens, 0.0)
    return attention(g, mask, tokens, attn_implementation, method="token_energies"), by_hopfield


def token_energies(
    g: torch.Tensor,
    attention: EnergyAttention,
    hopfield: BaseModernHopfield,
    mask: torch.Tensor | None = None,
    tokens: torch.Tensor | None = None,
) -> torch.Tensor:
    """Energy of each token, (..., N), at the normalised tokens g: the quantity that the descent lowers.

    Arguments as for [`energy_gradient`].
    """
    by_attention, by_hopfield = energy_parts(g, attention, hopfield, mask, tokens)
    return by_attention + by_hopfield


def descent_step(
    x: torch.Tensor,
    norm: nn.Module,
    attention: EnergyAttention,
    hopfield: BaseModernHopfield,
    step_size: float,
    mask: torch.Tensor | None = None,
    tokens: torch.Tensor | None = None,
    attn_implementation: str | None = None,
) -> torch.Tensor:
    """One step of size α: tokens x (..., N, D) to the next tokens, in the dtype of x or wider."""
    gradient = energy_gradient(norm(x), attention, hopfield, mask, tokens, attn_implementation=attn_implementation)
    return x - step_size * gradient


@torch.no_grad()
def descend_until_settled(
    x: torch.Tensor,
    step: Callable[..., torch.Tensor],
    norm: nn.Module,
    num_steps: int,
    tolerance: float,
    mask: torch.Tensor | None = None,
    tokens: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """At most `num_steps` steps of each image x (B, N, D), which leaves the batch when its result has settled.

    It has when a step changes its normalised tokens g by at most `tolerance` times their length, |g' − g| ≤ τ|g| over
    all tokens that are no padding. The raw tokens have no fixed point: their norm grows with every step.

    Args:
        step: maps x, mask and tokens of the remaining images to the next x.
        mask, tokens: as for [`energy_gradient`], with an entry for each image.

    Returns:
        The states (B, N, D), and the number of steps that each image took, (B,).
    """
    x, taken = x.clone(), torch.zeros(len(x), dtype=torch.long, device=x.device)
    active = torch.arange(len(x), device=x.device)
    moving, g = x, _without_padding(norm(x), tokens)
    for _ in range(num_steps):
        moving = step(moving, mask, tokens)
        x[active], taken[active] = moving, taken[active] + 1
        before, g = g, _without_padding(norm(moving), tokens)
        settled = (g - before).flatten(1).norm(dim=1) <= tolerance * before.flatten(1).norm(dim=1)
        unsettled = ~settled  # NaN never settles
        if not unsettled.all():
            active, moving, g = active[unsettled], moving[unsettled], g[unsettled]
            mask, tokens = (part if part is None else part[unsettled] for part in (mask, tokens))
        if not len(active):
            break
    return x, taken
