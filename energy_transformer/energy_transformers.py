"""The plain torch module `EnergyTransformer`, with the interface and parameter names of the package that this one
descends from (`LumenPallidium/energy_transformer`), on the same core as the Hugging Face models."""

from collections.abc import Callable
from pathlib import Path

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import nn

from .block import Descent, EnergyBlock, Record, check_num_steps
from .context import EnergyContext
from .energies import BaseModernHopfield, EnergyAttention, EnergyLayerNorm, LayerNorm, SoftmaxModernHopfield
from .masking import whole_number_mask
from .updates import Update

EnergyMHA = EnergyAttention
NORMS: dict[str, Callable[[int], nn.Module]] = {"layer_norm": LayerNorm, "energy_layer_norm": EnergyLayerNorm}
HOPFIELD_TYPES = {"relu": BaseModernHopfield, "softmax": SoftmaxModernHopfield}


class EnergyTransformer(
    EnergyBlock,
    PyTorchModelHubMixin,
    library_name="energy-transformer",
    coders={torch.Tensor: (lambda tensor: tensor.flatten().tolist(), torch.tensor)},
):
    """One block and its descent on tokens (..., N, dim) of any kind.

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
        norm: `"layer_norm"`, `"energy_layer_norm"` (the paper's, with which the descent is sure to lower the energy),
            or a class that is called with `dim`.
        ema_decay: decay of [`ema_update`].
        return_energy: let `forward` return the states and energies after each step too.
        attn_implementation: how to compute the attention, one of `ATTENTION_BACKENDS`. `"eager"` differentiates any
            number of times, as LumenPallidium does; `"auto"` needs less memory.
        initialization: `"normal"`, weights with a standard deviation of 0.002 as in LumenPallidium, or `"scaled"`,
            the start of the models' `initialization="scaled"`, which lets a small block learn at once.

    Raises:
        ValueError: for another name of a Hopfield network, norm or initialization.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        n_heads: int,
        context: int = 0,
        n_iters_default: int = 12,
        alpha: float = 0.1,
        beta: float | torch.Tensor | list[float] | None = None,
        hopfield_type: str = "relu",
        use_positional_embedding: bool = True,
        norm: str | Callable[[int], nn.Module] = nn.LayerNorm,
        ema_decay: float = 0.996,
        return_energy: bool = False,
        *,
        attn_implementation: str = "eager",
        initialization: str = "normal",
    ):
        _check_choice("hopfield_type", hopfield_type, HOPFIELD_TYPES)
        _check_choice("initialization", initialization, ("normal", "scaled"))
        if isinstance(norm, str):
            _check_choice("norm", norm, NORMS)
        beta = torch.tensor(beta) if isinstance(beta, list) else beta
        hopfield_beta = beta if hopfield_type == "softmax" else None
        terms = {
            "mha": EnergyAttention(dim, n_heads, beta, attn_implementation=attn_implementation),
            "hopfield": HOPFIELD_TYPES[hopfield_type](dim, hidden_dim, beta=hopfield_beta),
        }
        norm = "layer_norm" if norm is nn.LayerNorm else norm  # the same, but it takes half precision
        make_norm = NORMS[norm] if isinstance(norm, str) else norm
        super().__init__(terms, make_norm(dim), Update(alpha))
        self.dim = dim
        self.hidden_dim = hidden_dim
        self.n_heads = n_heads
        self.context = context
        self.n_iters = n_iters_default
        self.num_quantizers = n_iters_default
        self.ema_decay = ema_decay
        self.return_energy = return_energy
        self._norm_given = norm
        if use_positional_embedding and context:
            self.pos_embedding = nn.Parameter(torch.randn(1, context, dim))
        else:
            self.pos_embedding = 0
        if initialization == "scaled":
            self._scale_weights()

    @property
    def alpha(self) -> float:
        """The step size."""
        return self.update.step_size

    @alpha.setter
    def alpha(self, value: float) -> None:
        self.update.step_size = value

    @torch.no_grad()
    def _scale_weights(self) -> None:
        self.mha.Wq.normal_(std=self.dim**-0.5)
        self.mha.Wk.copy_(self.mha.Wq)
        self.hopfield.W.normal_(std=0.02)

    def energy(self, x: torch.Tensor) -> torch.Tensor:
        """Energy of the tokens as they are (not normalized), summed over all of them: a scalar."""
        return self.mha.energy(x) + self.hopfield.energy(x)

    def forward_step(self, g: torch.Tensor) -> torch.Tensor:
        """Gradient of [`energy`] at the normalized tokens g, same shape."""
        return self.mha(g) + self.hopfield(g)

    def forward(
        self,
        x: torch.Tensor,
        n_iters: int | None = None,
        *,
        attention_mask: torch.Tensor | None = None,
        attention_bias: torch.Tensor | None = None,
        is_causal: bool = False,
    ):
        """Tokens (..., N, dim) after `n_iters` steps (`n_iters_default` when None).

        Masks and bias as for [`descend`]. LumenPallidium ignores other keyword arguments; here they are refused, so
        that a misspelled one is noticed.

        With `return_energy`, also the detached states after each step and the energies of these states as they are;
        the descended energy is that of the normalized states, see [`descend`].

        Raises:
            ValueError: for tokens, masks or a number of steps that do not fit.
        """
        x = self._place(x)
        num_steps = self.n_iters if n_iters is None else n_iters
        check_num_steps(num_steps)
        record = Record(states=range(1, num_steps + 1)) if self.return_energy else None
        found = super().forward(
            x, num_steps, _context(x, attention_mask, attention_bias, is_causal, self.n_heads), record
        )
        if not self.return_energy:
            return found.state
        features = [state.detach().clone() for state in found.states[1:]]
        with torch.no_grad():
            return found.state, features, [self.energy(state) for state in features]

    def descend(
        self,
        x: torch.Tensor,
        n_iters: int | None = None,
        *,
        attention_mask: torch.Tensor | None = None,
        attention_bias: torch.Tensor | None = None,
        is_causal: bool = False,
    ) -> Descent:
        """The whole descent: its states, and the energy that it lowers.

        Args:
            x (`torch.Tensor` of shape `(..., N, dim)`): tokens.
            n_iters: number of steps T; `n_iters_default` when None.
            attention_mask (`torch.BoolTensor` of shape `(..., N)` or `(..., N, N)`, *optional*):
                (..., N): False for padding. (..., N, N): True where the token of the row may attend to that of the
                column.
            attention_bias (`torch.FloatTensor` of shape `(..., n_heads or 1, N, N)`, *optional*): added to the scores.
            is_causal: a token attends to itself and to those before it.

        Returns:
            [`Descent`]: `states`, the T + 1 states from x_0 on; `energies`, for `"mha"` and `"hopfield"` the energy of
            each token of norm(x) at each state, (..., T + 1, N).
        """
        x = self._place(x)
        num_steps = self.n_iters if n_iters is None else n_iters
        check_num_steps(num_steps)
        record = Record(states=range(num_steps + 1), energies=True)
        return super().forward(
            x, num_steps, _context(x, attention_mask, attention_bias, is_causal, self.n_heads), record
        )

    def _place(self, x: torch.Tensor) -> torch.Tensor:
        """The tokens with their positions."""
        if x.ndim < 2 or x.shape[-1] != self.dim:
            raise ValueError(f"x must have shape (..., N, dim) with dim={self.dim}, got {tuple(x.shape)}")
        if isinstance(self.pos_embedding, torch.Tensor) and x.shape[-2] != self.context:
            raise ValueError(f"x must have as many tokens as there are positions, {self.context}, got {x.shape[-2]}")
        return x + self.pos_embedding

    def filtered_forward(self, x: torch.Tensor, indices, n_iters: int | None = None) -> torch.Tensor:
        """As `forward`, for tokens (B, k, dim) that stand at the positions `indices`, (k,).

        `indices` of shape (B, k) give every image positions of its own; the result is then (1, B, k, dim), as in
        LumenPallidium. Energies are never returned.
        """
        if not isinstance(self.pos_embedding, torch.Tensor):
            raise ValueError("filtered_forward needs positional embeddings: context > 0 and use_positional_embedding")
        x = x + self.pos_embedding[:, indices, :]
        return super().forward(x, self.n_iters if n_iters is None else n_iters).state

    def ema_update(self, new_model: nn.Module) -> None:
        """Move every parameter towards that of `new_model`, in order: p ← decay·p + (1 − decay)·p_new.

        Raises:
            ValueError: when the models have different numbers of parameters.
        """
        for average, new in zip(self.parameters(), new_model.parameters(), strict=True):
            average.data.copy_(average.data * self.ema_decay + (1 - self.ema_decay) * new.data)

    def save_pretrained(self, save_directory: str | Path, *, config: dict | None = None, **kwargs):
        """Weights and constructor arguments to a folder, and to the Hub with `push_to_hub=True`; see
        `huggingface_hub.PyTorchModelHubMixin`.

        Raises:
            ValueError: for a `norm` that is neither a name nor a class that has one, which no file could tell.
        """
        names = [name for name, known in NORMS.items() if self._norm_given in (name, known)]
        if not names:
            raise ValueError(
                f"norm={self._norm_given!r} cannot be saved: make the block with one of {', '.join(NORMS)}, or save "
                "its state_dict() yourself"
            )
        config = dict(config or self._hub_mixin_config or {}) | {"norm": names[0]}
        return super().save_pretrained(save_directory, config=config, **kwargs)

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **kwargs):
        """As the mixin has it, but a weight that is missing or not known is an error."""
        return super()._from_pretrained(strict=strict, **kwargs)


def _check_choice(name: str, value: str, choices) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(repr(choice) for choice in choices)}, got {value!r}")


def _context(x, attention_mask, attention_bias, is_causal, heads) -> EnergyContext:
    """Raises ValueError for a mask or a bias that is not of the very shape that the tokens ask for."""
    tokens = pairs = None
    if attention_mask is not None:
        attention_mask = whole_number_mask("attention_mask", attention_mask, 1).to(x.device, torch.bool)
        if attention_mask.shape == x.shape[:-1]:
            tokens = attention_mask
        elif attention_mask.shape == (*x.shape[:-1], x.shape[-2]):
            pairs = attention_mask
        else:
            allowed = f"{tuple(x.shape[:-1])} or {(*x.shape[:-1], x.shape[-2])}"
            raise ValueError(f"attention_mask must have shape {allowed}, got {tuple(attention_mask.shape)}")
    if attention_bias is not None:
        shapes = [(*x.shape[:-2], number, x.shape[-2], x.shape[-2]) for number in (1, heads)]
        if attention_bias.shape not in shapes:
            raise ValueError(
                f"attention_bias must have shape {shapes[0]} or {shapes[1]}, got {tuple(attention_bias.shape)}"
            )
    return EnergyContext(tokens=tokens, pairs=pairs, bias=attention_bias, causal=is_causal)
