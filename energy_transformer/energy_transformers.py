"""The plain torch module `EnergyTransformer`, with the interface and parameter names of the package that this one
descends from (`LumenPallidium/energy_transformer`); the mathematics is that of [`energies`] and [`descent`]."""

from collections.abc import Callable

import torch
from torch import nn

from .descent import descent_step
from .energies import BaseModernHopfield, EnergyAttention, SoftmaxModernHopfield

EnergyMHA = EnergyAttention


class EnergyTransformer(nn.Module):
    """One block and its descent on tokens (..., N, dim).

    Args:
        dim: token width D.
        hidden_dim: number of memories M of the Hopfield network.
        n_heads: number of heads, which must divide `dim`.
        context: number of positions; 0 for no positional embedding.
        n_iters_default: number of descent steps T.
        alpha: step size.
        beta: initial inverse temperature, a number or a tensor of shape (n_heads,) or (1,), of the attention and of
            the softmax Hopfield network (which takes a single one; the ReLU's is 1); learned in any case.
        hopfield_type: `"relu"` or `"softmax"`.
        use_positional_embedding: False for no positional embedding, whatever `context` is.
        norm: class of the norm, called with `dim`; [`EnergyLayerNorm`] for a descent that is sure to lower the energy.
        ema_decay: decay of [`ema_update`].
        return_energy: let `forward` return the states and energies after each step too.
        attn_implementation: how to compute the attention, one of `ATTENTION_BACKENDS`.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        n_heads: int,
        context: int = 0,
        n_iters_default: int = 12,
        alpha: float = 0.1,
        beta: float | torch.Tensor | None = None,
        hopfield_type: str = "relu",
        use_positional_embedding: bool = True,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        ema_decay: float = 0.996,
        return_energy: bool = False,
        *,
        attn_implementation: str = "eager",
    ):
        super().__init__()
        if hopfield_type not in ("relu", "softmax"):
            raise ValueError(f"hopfield_type must be 'relu' or 'softmax', got {hopfield_type!r}")
        self.dim = dim
        self.hidden_dim = hidden_dim
        self.n_heads = n_heads
        self.context = context
        self.n_iters = n_iters_default
        self.num_quantizers = n_iters_default
        self.alpha = alpha
        if use_positional_embedding and context:
            self.pos_embedding = nn.Parameter(torch.randn(1, context, dim))
        else:
            self.pos_embedding = 0
        self.mha = EnergyAttention(dim, n_heads, beta, attn_implementation=attn_implementation)
        if hopfield_type == "softmax":
            self.hopfield = SoftmaxModernHopfield(dim, hidden_dim, beta=beta)
        else:
            self.hopfield = BaseModernHopfield(dim, hidden_dim)
        self.norm = norm(dim)
        self.ema_decay = ema_decay
        self.return_energy = return_energy

    def energy(self, x: torch.Tensor) -> torch.Tensor:
        """Energy of the tokens as they are (not normalized), summed over all of them: a scalar."""
        return self.mha.energy(x) + self.hopfield.energy(x)

    def forward_step(self, g: torch.Tensor) -> torch.Tensor:
        """Gradient of [`energy`] at the normalized tokens g, same shape."""
        return self.mha(g) + self.hopfield(g)

    def _step(self, x: torch.Tensor) -> torch.Tensor:
        return descent_step(x, self.norm, self.mha, self.hopfield, self.alpha)

    def forward(self, x: torch.Tensor, n_iters: int | None = None, **kwargs):
        """Tokens (..., N, dim) after `n_iters` steps (`n_iters_default` when None).

        Other keyword arguments are ignored. With `return_energy`, also the detached states after each step and the
        energies of these states as they are; the descended energy is that of the normalized states.
        """
        x = x + self.pos_embedding
        features, energies = [], []
        for _ in range(self.n_iters if n_iters is None else n_iters):
            x = self._step(x)
            if self.return_energy:
                with torch.no_grad():
                    energies.append(self.energy(x))
                    features.append(x.detach().clone())
        return (x, features, energies) if self.return_energy else x

    def filtered_forward(self, x: torch.Tensor, indices, n_iters: int | None = None) -> torch.Tensor:
        """As `forward`, for tokens (B, k, dim) that stand at the positions `indices`, (k,).

        `indices` of shape (B, k) give every image positions of its own; the result is then (1, B, k, dim), as in the
        seed. Energies are never returned.
        """
        if not isinstance(self.pos_embedding, torch.Tensor):
            raise ValueError("filtered_forward needs positional embeddings: context > 0 and use_positional_embedding")
        x = x + self.pos_embedding[:, indices, :]
        for _ in range(self.n_iters if n_iters is None else n_iters):
            x = self._step(x)
        return x

    def ema_update(self, new_model: nn.Module) -> None:
        """Move every parameter towards that of `new_model`, in order: p ← decay·p + (1 − decay)·p_new.

        Raises:
            ValueError: when the models have different numbers of parameters.
        """
        for average, new in zip(self.parameters(), new_model.parameters(), strict=True):
            average.data.copy_(average.data * self.ema_decay + (1 - self.ema_decay) * new.data)
