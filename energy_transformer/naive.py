"""The definition of an Energy Transformer in plain torch, with its gradient by automatic differentiation.

Read this first: all that the package computes faster, with more options or in less memory is held to it by tests.
Hoover et al. 2023, "Energy Transformer" (arXiv 2302.07253), sections 2.1 to 2.3.

Shapes: B images, N tokens, D token width, H heads, Y head width, M memories.
"""

import torch


def layer_norm(x, gamma, delta, eps=1e-5):
    """g (B, N, D) of the tokens x (B, N, D), with one gain γ for all channels and a shift δ (D,): equation 1."""
    centered = x - x.mean(-1, keepdim=True)
    return gamma * centered / torch.sqrt(centered.square().mean(-1, keepdim=True) + eps) + delta


def attention_energy(g, Wq, Wk, beta):
    """−Σ over heads and queries of 1/β log Σ over keys of exp(β q·k); Wq and Wk are (H, Y, D), β (H,): equation 3."""
    q = torch.einsum("bnd,hyd->bhny", g, Wq)
    k = torch.einsum("bnd,hyd->bhny", g, Wk)
    scores = torch.einsum("h,bhqy,bhky->bhqk", beta, q, k)
    return -(torch.logsumexp(scores, -1).sum(-1) / beta).sum()


def hopfield_energy(g, memories):
    """−½ Σ over tokens and memories of relu(g·ξ)², with the memories ξ as columns of a (D, M) matrix: equation 5."""
    return -0.5 * torch.relu(g @ memories).square().sum()


def energy(g, Wq, Wk, beta, memories):
    """What the descent lowers, a scalar."""
    return attention_energy(g, Wq, Wk, beta) + hopfield_energy(g, memories)


def descend(x, gamma, delta, Wq, Wk, beta, memories, num_steps=12, step_size=0.1):
    """The tokens after `num_steps` steps x ← x − α ∂E/∂g at g = norm(x): equation 7.

    A loss behind the descent is differentiated through every step when gradients are enabled.
    """
    training = torch.is_grad_enabled()
    with torch.enable_grad():
        for _ in range(num_steps):
            g = layer_norm(x, gamma, delta)
            g = g if training else g.detach().requires_grad_()
            total = energy(g, Wq, Wk, beta, memories)
            (gradient,) = torch.autograd.grad(total, g, create_graph=training)
            x = x - step_size * gradient
    return x if training else x.detach()
