"""The baseline: the descent with its gradient from autograd, as the first PyTorch implementation has it.

Every step differentiates the energy, written with logsumexp as in the paper (Hoover et al. 2023, arXiv 2302.07253),
and training differentiates through that. Parameters have the names of `energy_transformer.EnergyTransformer`.
"""

import torch
from torch import Tensor, nn


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        width = dim // heads
        self.beta = nn.Parameter(torch.full((heads,), width**-0.5))
        self.Wq = nn.Parameter(torch.empty(heads, width, dim))
        self.Wk = nn.Parameter(torch.empty(heads, width, dim))

    def energy(self, g: Tensor) -> Tensor:
        query = torch.einsum("...nd,hyd->...nhy", g, self.Wq)
        key = torch.einsum("...nd,hyd->...nhy", g, self.Wk)
        scores = torch.einsum("h,...qhy,...khy->...hqk", self.beta, query, key)
        return -(scores.logsumexp(-1).sum(-1) / self.beta).sum()


class _Hopfield(nn.Module):
    def __init__(self, dim: int, memories: int):
        super().__init__()
        self.beta = nn.Parameter(torch.ones(1))
        self.W = nn.Parameter(torch.empty(dim, memories))

    def energy(self, g: Tensor) -> Tensor:
        return -0.5 * (self.beta * (g @ self.W)).relu().square().sum()


class AutogradTransformer(nn.Module):
    """One block and `num_steps` steps of size 0.1 on tokens (B, N, dim)."""

    def __init__(self, dim: int, memories: int, heads: int, num_steps: int):
        super().__init__()
        self.num_steps = num_steps
        self.mha = _Attention(dim, heads)
        self.hopfield = _Hopfield(dim, memories)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        training = torch.is_grad_enabled()
        with torch.enable_grad():
            for _ in range(self.num_steps):
                g = self.norm(x if training else x.detach())
                g = g if training else g.detach().requires_grad_()
                energy = self.mha.energy(g) + self.hopfield.energy(g)
                (step,) = torch.autograd.grad(energy, g, create_graph=training)
                x = x - 0.1 * step
        return x
