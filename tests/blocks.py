"""A block of any norm, attention and Hopfield network, and one step, gradient or energy of it."""

import torch

from energy_transformer import EnergyBlock, EnergyContext, Record, Update


def make_block(norm, attention, hopfield, step_size=0.1) -> EnergyBlock:
    return EnergyBlock({"attention": attention, "hopfield": hopfield}, norm, Update(step_size))


def descent_step(x, norm, attention, hopfield, step_size, context=None) -> torch.Tensor:
    """The tokens (..., N, D) after one step."""
    return make_block(norm, attention, hopfield, step_size)(x, 1, context).state


def energy_parts(block: EnergyBlock, x, context=None) -> list[torch.Tensor]:
    """For each term of a block, the energy of each token of norm(x), (..., N)."""
    found = block(x, 0, context, Record(energies=True)).energies
    return [energies[..., 0, :] for energies in found.values()]


def token_energies(g, attention, hopfield, context=None) -> torch.Tensor:
    """Energy of each token, (..., N), of the normalized tokens g (..., N, D)."""
    return sum(energy_parts(make_block(torch.nn.Identity(), attention, hopfield), g, context))


def energy_gradient(g, attention, hopfield, context=None) -> torch.Tensor:
    """∂E/∂g, (..., N, D), by calls of the terms; zero for padding, which may hold anything."""
    if context is None or context.tokens is None:
        return attention(g, context) + hopfield(g, context)
    padding = ~context.tokens[..., None]
    g = g.masked_fill(padding, 0.0)
    return (attention(g, context) + hopfield(g, context)).masked_fill(padding, 0.0)


def attention_weights(attention, g, context=None) -> torch.Tensor:
    """A, (..., H, N, N), of the tokens g (..., N, D)."""
    return attention.attention_weights(attention.project(g), context or EnergyContext(), **attention.constants())


def without_context(backend):
    """A function of attention_backends as one of query, key, beta, and what the context holds."""

    def run(query, key, beta, mask=None, tokens=None, attend_to_self=True, bias=None, causal=False):
        return backend(query, key, beta, EnergyContext(tokens, mask, bias, causal, attend_to_self))

    return run
