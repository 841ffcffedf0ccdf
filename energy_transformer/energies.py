"""The energies of an Energy Transformer: layer norms, and the terms that a block adds up.

Hoover et al. 2023, "Energy Transformer" (arXiv 2302.07253), sections 2.1 to 2.3; reference code
`bhoov/energy-transformer-jax`, `architecture.py`.

Shapes: B any leading axes, N tokens, D token width, H heads, Y head width (H·Y need not be D), M memories, P columns.

All energies have one form: minus a potential of the projected tokens, summed over the tokens,

    E(g) = −Σ φ(h),  h = g W + b,  so that  ∂E/∂g = −(∂Σφ/∂h) Wᵀ.

A term gives W, φ and ∂Σφ/∂h, which is called its pull. The pulls of the terms that ship are closed forms made of
ordinary differentiable operations, so a loss behind the descent differentiates through them.

A term may ask for its projected tokens to be normalized in groups of columns (see `RMSNormalized`), E = −Σ φ(ĥ): then
its potential and pull take ĥ, and the Jacobian of the normalization stands between the pull and Wᵀ.

Precision: norms, logsumexp, softmax and energies are computed in float32 when the weights or autocast are of half
precision; matrix products stay in half precision.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention_backends import (
    AttentionBackend,
    at_least_float32,
    attention_backend,
    check_attention_backend,
    eager_attention_weights,
    is_transformed,
)
from .context import EnergyContext
from .sparse_attention import EDGE_BACKEND


class EnergyLayerNorm(nn.Module):
    r"""Layer normalization with a scalar gain: the gradient of a Lagrangian (paper, equations 1 and 2).

    $$g = \gamma \frac{x - \bar x}{\sqrt{\mathrm{var}(x) + \epsilon}} + \delta + \lambda x
        = \nabla L(x), \qquad
      L(x) = D \gamma \sqrt{\mathrm{var}(x) + \epsilon} + \delta \cdot x + \tfrac{\lambda}{2} |x|^2$$

    Args:
        dim: token width D.
        eps: added to the variance.
        regularization: λ, 0 in the paper; the reference's `RegularizedEnergyLayerNorm` has 1e-3.
    """

    def __init__(self, dim: int, eps: float = 1e-5, regularization: float = 0.0):
        super().__init__()
        self.dim = dim
        self.eps = eps
        self.regularization = regularization
        self.gamma = nn.Parameter(torch.ones(()))
        self.delta = nn.Parameter(torch.zeros(dim))
        self.register_load_state_dict_pre_hook(_keep_shape)

    def extra_repr(self) -> str:
        return f"{self.dim}, eps={self.eps}, regularization={self.regularization}"

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (..., D) to g (..., D), in float32 for half-precision input."""
        x = at_least_float32(x)
        gains = self.gamma.to(x.dtype).expand(self.dim)
        normed = F.layer_norm(x, (self.dim,), gains, self.delta.to(x.dtype), self.eps)
        return normed + self.regularization * x if self.regularization else normed

    def pullback(self, x: Tensor, v: Tensor) -> Tensor:
        """Jᵀ v of each token, with J = ∂g/∂x at x: γ/σ (v − mean(v) − x̂ mean(x̂ ∘ v)) + λ v; J is symmetric."""
        pulled = _standardized_pullback(at_least_float32(x), self.gamma.to(v.dtype) * v, self.eps)
        return pulled + self.regularization * v if self.regularization else pulled

    def lagrangian(self, x: Tensor) -> Tensor:
        """L of each token: (..., D) to (...)."""
        x = at_least_float32(x)
        scale = torch.sqrt(x.var(-1, correction=0) + self.eps)
        value = self.dim * self.gamma.to(x.dtype) * scale + (x * self.delta.to(x.dtype)).sum(-1)
        return value + 0.5 * self.regularization * x.square().sum(-1) if self.regularization else value

    def token_energies(self, x: Tensor) -> Tensor:
        """`g·x − L(x)` of each token: (..., D) to (...). Nearly zero for λ = 0: compare absolutely, in float64."""
        x = at_least_float32(x)
        return (self(x) * x).sum(-1) - self.lagrangian(x)

    def energy(self, x: Tensor) -> Tensor:
        """Sum of [`token_energies`], a scalar."""
        return self.token_energies(x).sum()


def _keep_shape(module: nn.Module, state_dict: dict, prefix: str, *_) -> None:
    """Let what is loaded take the shape of a parameter of one number, (1,) where the model is sharded, else ()."""
    for name, parameter in module.named_parameters(recurse=False):
        loaded = state_dict.get(prefix + name)
        if loaded is not None and loaded.numel() == parameter.numel() == 1:
            state_dict[prefix + name] = loaded.reshape(parameter.shape)


class LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm` that computes and returns float32 for half-precision input or weights.

    Its vector gain makes g the gradient of no single Lagrangian of the paper's form, so the energy is not
    guaranteed to fall.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = at_least_float32(x)
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)

    def pullback(self, x: Tensor, v: Tensor) -> Tensor:
        """Jᵀ v of each token, with J = ∂g/∂x at x and the gains w: 1/σ (w ∘ v − mean(w ∘ v) − x̂ mean(x̂ ∘ w ∘ v))."""
        return _standardized_pullback(at_least_float32(x), self.weight.to(v.dtype) * v, self.eps)


def _standardized_pullback(x: Tensor, v: Tensor, eps: float) -> Tensor:
    """Jᵀ v of x̂ = (x − mean(x)) / σ with σ = sqrt(var(x) + ε), which has no parameters."""
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    inverse = torch.rsqrt(variance + eps)
    standardized = (x - mean) * inverse
    along = _mean_product(standardized, v)
    return inverse * torch.addcmul(v - v.mean(-1, keepdim=True), standardized, along, value=-1)


def _mean_product(a: Tensor, b: Tensor) -> Tensor:
    """The mean of a ∘ b over the last axis, which is kept; without a matrix of the products for autograd to keep."""
    return torch.linalg.vecdot(a, b).unsqueeze(-1) / a.shape[-1]


class FetchedTerm(NamedTuple):
    """What a descent needs of a term; only a call of the term gives it, see [`EnergyTerm.forward`].

    Attributes:
        term: whose `potential` and `pull` are meant.
        weight, offset, constants: see the methods of these names.
    """

    term: "EnergyTerm"
    weight: Tensor
    offset: Tensor | None
    constants: dict[str, Any]


class EnergyTerm(nn.Module):
    """One part of the energy, E(g) = −Σ φ(g W + b). A new one needs `projection` and `potential`; see
    `docs/your_own_energy.md` and [`register_energy_term`]."""

    options: ClassVar[dict[str, Any]] = {}  # of the term in the configuration that it was made from
    norm_groups: int = 0  # in how many groups of columns the projected tokens are normalized; 0 for not at all
    rectifies: bool = False  # whether the pull is the ReLU of what is projected, which a block then applies in place

    @classmethod
    def from_config(cls, config, **options) -> "EnergyTerm":
        """The term of a model, given its configuration and the options of the term in `config.energy_terms`."""
        return cls(config.hidden_size, **options)

    def projection(self) -> Tensor:
        """W, shape (D, P): the columns that the tokens are projected on. (A method `weight` would let peft fail.)"""
        raise NotImplementedError(
            f"{type(self).__name__} has to define projection(), the (D, P) columns of its projection"
        )

    def offset(self) -> Tensor | None:
        """b, shape (P,), added to the projected tokens; None for none."""
        return None

    def constants(self) -> dict[str, Any]:
        """What `potential` and `pull` take beside h and the context, by name, such as an inverse temperature."""
        return {}

    def potential(self, h: Tensor, context: EnergyContext, **constants) -> Tensor:
        """φ of each token, (..., N), at the projected tokens h (..., N, P): the definition of the energy."""
        raise NotImplementedError(f"{type(self).__name__} has to define potential(h, context), of shape (..., N)")

    def pull(self, h: Tensor, context: EnergyContext, **constants) -> Tensor:
        """∂Σφ/∂h, (..., N, P): by automatic differentiation, unless a term has a closed form."""
        total, pullback = vjp(lambda h: self.potential(h, context, **constants).sum(), h, self)
        return pullback(torch.ones_like(total))

    def pull_and_weights(self, h: Tensor, context: EnergyContext, **constants) -> tuple[Tensor, Tensor | None]:
        """The pull, and the attention weights (..., H, N, N) that it came from, where there are any."""
        return self.pull(h, context, **constants), None

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "potential" in vars(cls) and "pull" not in vars(cls):
            cls.pull = EnergyTerm.pull  # the closed form of a parent is that of another potential

    def fetch(self) -> FetchedTerm:
        """Weight, offset and constants as they are now."""
        return FetchedTerm(self, dense(self.projection()), self.offset(), self.constants())

    def project(self, g: Tensor) -> Tensor:
        """What the potential and the pull take, (..., N, P), of tokens g (..., N, D): g W + b, normalized if asked."""
        return RMSNormalized.of(project(g, self.projection(), self.offset()), self.norm_groups).value

    def token_energies(self, g: Tensor, context: EnergyContext | None = None) -> Tensor:
        """Energy of each token, (..., N), of g (..., N, D): minus the potential."""
        return -self.potential(self.project(g), context or EnergyContext(), **self.constants())

    def energy(self, g: Tensor, context: EnergyContext | None = None) -> Tensor:
        """Sum of [`token_energies`] over all tokens and images, a scalar."""
        return self.token_energies(g, context).sum()

    def grad(self, g: Tensor, context: EnergyContext | None = None) -> Tensor:
        """∂E/∂g, shape (..., N, D)."""
        weight = self.projection()
        h = RMSNormalized.of(project(g, weight, self.offset()), self.norm_groups)
        pull = h.pull_back(self.pull(h.value, context or EnergyContext(), **self.constants()))
        return (pull @ weight.mT).neg()

    def forward(self, g: Tensor | None, context: EnergyContext | None = None) -> Tensor | FetchedTerm:
        """∂E/∂g of tokens g; without tokens (None) the [`FetchedTerm`] of a descent.

        Whatever moves or adapts weights, such as accelerate's offloading and peft, does so around this call. So a
        block calls each of its terms once a descent, and works with what it got.
        """
        return self.fetch() if g is None else self.grad(g, context)


class RMSNormalized(NamedTuple):
    """ĥ = h / sqrt(mean(h²) + ε), the mean over each of some groups of columns of h (..., P), with ε = 1e-6.

    Its Jacobian is symmetric: v goes to (v − ĥ mean(ĥ ∘ v)) / sqrt(mean(h²) + ε) in each group.

    Attributes:
        value: ĥ in the dtype of h, or h itself without groups.
        inverse: the number that each group was multiplied with, (..., groups, 1), in float32 for half precision.
    """

    value: Tensor
    inverse: Tensor | None = None

    @classmethod
    def of(cls, h: Tensor, groups: int) -> "RMSNormalized":
        if not groups:
            return cls(h)
        grouped = at_least_float32(h).unflatten(-1, (groups, -1))
        inverse = torch.rsqrt(_mean_product(grouped, grouped) + 1e-6)
        return cls((grouped * inverse).flatten(-2).to(h.dtype), inverse)

    def pull_back(self, pull: Tensor) -> Tensor:
        """The derivative with respect to h, given the one with respect to ĥ, both (..., P)."""
        if self.inverse is None:
            return pull
        shape = self.inverse.shape[-2], -1
        v, normalized = (at_least_float32(tensor).unflatten(-1, shape) for tensor in (pull, self.value))
        along = _mean_product(normalized, v)
        return (self.inverse * torch.addcmul(v, normalized, along, value=-1)).flatten(-2).to(pull.dtype)


def vjp(function, h: Tensor, module: nn.Module) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """function(h), and its vector-Jacobian product, in every mode of torch and differentiable as the function is.

    Args:
        module: whose parameters the function depends on.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or is_transformed(h):
        value, pullback = torch.func.vjp(function, h)
        return value, lambda v: pullback(v)[0]
    # torch.func refuses the hooks by which checkpointing works
    needed = h.requires_grad or any(parameter.requires_grad for parameter in module.parameters())
    start = h if h.requires_grad else h.detach().requires_grad_()
    value = function(start)

    def pull_back(v: Tensor) -> Tensor:
        if not value.requires_grad:
            return torch.zeros_like(h)
        options = {"create_graph": needed, "allow_unused": True, "materialize_grads": True}
        return torch.autograd.grad(value, start, v, **options)[0]

    return value if needed else value.detach(), pull_back


def project(g: Tensor, weight: Tensor, offset: Tensor | None) -> Tensor:
    """g W + b in the dtype of the weight: tokens (..., N, D), (D, P) and (P,) to (..., N, P)."""
    if g.ndim < 2 or g.shape[-1] != weight.shape[0]:
        raise ValueError(f"tokens must have shape (..., N, {weight.shape[0]}), got {tuple(g.shape)}")
    h = g.to(weight.dtype) @ weight
    return h if offset is None else h + offset.to(h.dtype)


ENERGY_TERMS: dict[str, type[EnergyTerm]] = {}
_TAKEN = ("norm", "update", "config", "training", "term_names", "descent_gradient", "gradient_checkpointing")


def register_energy_term(name: str):
    """Class decorator that lets `config.energy_terms` choose a term by this name.

    Raises:
        ValueError: for a name that another class has, or that no submodule of a block can have.
        TypeError: for what is no subclass of [`EnergyTerm`].
    """

    def register(cls: type[EnergyTerm]) -> type[EnergyTerm]:
        if not name.isidentifier() or name in _TAKEN or hasattr(nn.Module, name):
            raise ValueError(f"an energy term is a submodule of its name, and {name!r} cannot be that of one")
        if not (isinstance(cls, type) and issubclass(cls, EnergyTerm)):
            raise TypeError(f"register_energy_term takes a subclass of EnergyTerm, got {cls!r}")
        known = ENERGY_TERMS.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"the energy term {name!r} is {known.__qualname__} already; choose another name")
        ENERGY_TERMS[name] = cls
        return cls

    return register


def dense(weight: Tensor) -> Tensor:
    """A quantized weight, which can neither be flattened nor joined, as ordinary numbers; any other as it is."""
    quantized = type(weight).dequantize is not Tensor.dequantize
    return weight.dequantize() if quantized else weight


def _set_beta(
    module: nn.Module, beta: float | Sequence[float] | Tensor, shape: tuple[int, ...], learnable: bool
) -> None:
    """Make `beta` a parameter (of `shape` when it is a number), or a number or tuple that no cast of dtype rounds.

    A tensor is copied: two modules, or a module and its caller, never share one.

    Raises:
        ValueError: when it is neither one number nor of `shape`.
    """
    given = tuple(torch.as_tensor(beta).shape)
    if given not in ((), (1,), shape):
        raise ValueError(f"beta must be a number or have shape {shape} or (1,), got {given}")
    if not learnable:
        numbers = torch.as_tensor(beta, dtype=torch.float64, device="cpu").flatten().tolist()
        module.beta = tuple(numbers) if len(numbers) > 1 else numbers[0]
    elif isinstance(beta, Tensor):
        one_number = given == () and shape != ()
        module.beta = nn.Parameter(beta.detach().clone().reshape((1,) if one_number else given))
    else:
        start = torch.tensor(beta, dtype=torch.get_default_dtype())
        module.beta = nn.Parameter(start.expand(given or shape).clone())


@register_energy_term("attention")
class EnergyAttention(EnergyTerm):
    r"""Multi-head energy attention (paper, equation 3): no values and no output projection.

    $$E = -\sum_h \frac{1}{\beta_h} \sum_C \log \sum_B \exp(\beta_h\, q_{hC} \cdot k_{hB}), \qquad
      \frac{\partial E}{\partial g} = -\sum_h \left[(A k) W^q_h + (A^\top q) W^k_h\right]$$

    with q = g Wqᵀ + bq, k = g Wkᵀ + bk, and A the softmax over each row of β q kᵀ. Its projection is W = [Wq; Wk]ᵀ, its
    pull [A k | Aᵀ q].

    Args:
        embed_dim: token width D.
        n_heads: H.
        beta: inverse temperature, a number or one for each head, or a tensor of shape (H,) or (1,); 1/sqrt(Y) when
            None.
        scale: standard deviation of the initial Wq and Wk.
        head_dim: Y; D / H when None.
        use_bias: biases bq, bk, initially zero; `True` for one of each head, shape (H, Y) (the paper's flax code),
            `"shared"` for one of all heads, shape (Y,) (Lemon-cmd/energy-transformer-torch).
        learnable_beta: beta is a parameter, as in LumenPallidium; otherwise a constant, as in the paper.
        attend_to_self: a token attends to itself too, as in all released image code; False is the paper's B ≠ C.
        qk_norm: normalize the query and the key of each head to a mean square of 1, inside the energy, so that the
            scores are β Y cos(q, k).
        attn_implementation: one of `ATTENTION_BACKENDS`, see [`attention_backends`]; the context of a call may name
            another. Eager differentiates any number of times, as LumenPallidium does.

    Raises:
        ValueError: when `head_dim` is None and H does not divide D, for a beta of another shape, and for another
            `use_bias`.
    """

    def __init__(
        self,
        embed_dim: int,
        n_heads: int,
        beta: float | Sequence[float] | Tensor | None = None,
        scale: float = 0.002,
        *,
        head_dim: int | None = None,
        use_bias: bool | str = False,
        learnable_beta: bool = True,
        attend_to_self: bool = True,
        qk_norm: bool = False,
        attn_implementation: str = "eager",
    ):
        super().__init__()
        check_attention_backend(attn_implementation)
        self.attn_implementation = attn_implementation
        if head_dim is None and embed_dim % n_heads:
            raise ValueError(f"embed_dim must be divisible by n_heads, got embed_dim={embed_dim}, n_heads={n_heads}")
        self.embed_dim = embed_dim
        self.n_heads = n_heads
        self.head_dim = embed_dim // n_heads if head_dim is None else head_dim
        self.attend_to_self = attend_to_self
        self.norm_groups = 2 * n_heads if qk_norm else 0
        _set_beta(self, 1 / math.sqrt(self.head_dim) if beta is None else beta, (n_heads,), learnable_beta)
        self.Wq = nn.Parameter(torch.randn(n_heads, self.head_dim, embed_dim) * scale)
        self.Wk = nn.Parameter(torch.randn(n_heads, self.head_dim, embed_dim) * scale)
        if use_bias not in (False, True, "shared"):
            raise ValueError(f"use_bias must be False, True or 'shared', got {use_bias!r}")
        bias_shape = (self.head_dim,) if use_bias == "shared" else (n_heads, self.head_dim)
        self.bq = nn.Parameter(torch.zeros(bias_shape)) if use_bias else None
        self.bk = nn.Parameter(torch.zeros(bias_shape)) if use_bias else None

    @classmethod
    def from_config(cls, config, **options) -> "EnergyAttention":
        of_config = {
            "n_heads": config.num_attention_heads,
            "beta": config.attention_beta,
            "head_dim": config.head_dim,
            "use_bias": config.attention_bias,
            "learnable_beta": config.learnable_beta,
            "attend_to_self": config.attend_to_self,
            "qk_norm": config.attention_qk_norm,
            "attn_implementation": "auto",
        }
        made = cls(config.hidden_size, **of_config | options)
        made.options = options
        return made

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, n_heads={self.n_heads}, head_dim={self.head_dim}"

    def projection(self) -> Tensor:
        return torch.cat([dense(self.Wq).flatten(0, 1), dense(self.Wk).flatten(0, 1)]).mT

    def offset(self) -> Tensor | None:
        if self.bq is None:
            return None
        return torch.cat([bias.expand(self.n_heads, -1).flatten() for bias in (self.bq, self.bk)])

    def constants(self) -> dict[str, Any]:
        beta = self.beta
        if isinstance(beta, Tensor):
            beta = at_least_float32(beta)
        elif isinstance(beta, tuple):  # made on the device, for an upload would make a GPU wait
            dtype = torch.promote_types(self.Wq.dtype, torch.float32)
            beta = torch.cat([torch.full((1,), number, dtype=dtype, device=self.Wq.device) for number in beta])
        return {"beta": beta}

    def queries_and_keys(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """h (..., N, 2·H·Y) as queries and keys of the heads, both (..., H, N, Y) and without a copy."""
        query, key = h.unflatten(-1, (2, self.n_heads, self.head_dim)).unbind(-3)
        return query.transpose(-3, -2), key.transpose(-3, -2)

    def in_context(self, context: EnergyContext) -> EnergyContext:
        """The context with what this module was made for."""
        backend = self.attn_implementation if context.backend == "auto" else context.backend
        attend_to_self = context.attend_to_self and self.attend_to_self
        return replace(context, backend=backend, attend_to_self=attend_to_self)

    @staticmethod
    def _backend(query: Tensor, context: EnergyContext) -> AttentionBackend:
        if context.edges is not None:
            return EDGE_BACKEND
        return attention_backend(context.backend, query, context.bias)

    def potential(self, h: Tensor, context: EnergyContext, *, beta) -> Tensor:
        """Σ_h 1/β_h logsumexp of the row of each token as a query."""
        context, (query, key) = self.in_context(context), self.queries_and_keys(h)
        rows = self._backend(query, context).logsumexp(query, key, beta, context)
        return (rows / (beta[:, None] if isinstance(beta, Tensor) else beta)).sum(-2)

    def pull(self, h: Tensor, context: EnergyContext, *, beta) -> Tensor:
        """[A k | Aᵀ q]."""
        context, (query, key) = self.in_context(context), self.queries_and_keys(h)
        return self._join(*self._backend(query, context).attention(query, key, beta, context))

    def attention_weights(self, h: Tensor, context: EnergyContext, *, beta) -> Tensor:
        """A, shape (..., H, N, N), rows for queries, of the projected tokens h (see [`EnergyTerm.project`])."""
        if context.edges is not None:
            raise ValueError("attention weights need pairs, not edges, along which the N×N matrix is never made")
        return eager_attention_weights(*self.queries_and_keys(h), beta, self.in_context(context))

    def pull_and_weights(self, h: Tensor, context: EnergyContext, *, beta) -> tuple[Tensor, Tensor]:
        weights = self.attention_weights(h, context, beta=beta)
        if type(self).pull is not EnergyAttention.pull:
            return self.pull(h, context, beta=beta), weights
        query, key = self.queries_and_keys(h)
        return self._join(weights.to(h.dtype) @ key, weights.to(h.dtype).mT @ query), weights

    @staticmethod
    def _join(by_keys: Tensor, by_queries: Tensor) -> Tensor:
        return torch.cat([by_keys.transpose(-3, -2), by_queries.transpose(-3, -2)], dim=-2).flatten(-2)


@register_energy_term("hopfield")
class BaseModernHopfield(EnergyTerm):
    r"""Modern Hopfield network with a ReLU (paper, equation 5): the memories are the columns of W.

    $$E = -\tfrac12 \sum \mathrm{relu}(h)^2, \qquad h = \beta\, g W + b, \qquad
      \frac{\partial E}{\partial g} = -\beta\, \mathrm{relu}(h)\, W^\top$$

    Args:
        in_dim: token width D.
        hidden_dim: number of memories M.
        use_bias: without effect, as in LumenPallidium, so that its state_dicts fit; see `bias`.
        beta: the constant inverse temperature, 1 when None. A learned one starts at 1 whatever `beta` is, as in
            LumenPallidium.
        scale: standard deviation of the initial memories.
        bias: a bias b of shape (M,), initially zero. `True` adds it after the multiplication by beta (the paper's
            flax code; the ReLU networks of flax and of Lemon-cmd/energy-transformer-torch have no beta),
            `"before_beta"` before it: h = β (g W + b) (b-vitamins/energy-transformer).
        learnable_beta: beta is a parameter, as in LumenPallidium; otherwise a constant.
        norm: normalize g W to a mean square of 1 over the memories, inside the energy: h = β RMS(g W) + b.

    Raises:
        ValueError: for another `bias`, or `"before_beta"` together with `norm`.
    """

    beta_shape: tuple[int, ...] = (1,)
    default_beta: float = 1.0

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int,
        use_bias: bool = False,
        beta: float | Tensor | None = None,
        scale: float = 0.002,
        *,
        bias: bool | str = False,
        learnable_beta: bool = True,
        norm: bool = False,
    ):
        super().__init__()
        self.in_dim = in_dim
        self.hidden_dim = hidden_dim
        self.use_bias = use_bias
        if bias not in (False, True, "before_beta"):
            raise ValueError(f"bias must be False, True or 'before_beta', got {bias!r}")
        if norm and bias == "before_beta":
            raise ValueError("bias='before_beta' cannot be combined with norm: the normalization stands between them")
        self.norm_groups = 1 if norm else 0
        self.bias_before_beta = bias == "before_beta"
        _set_beta(self, self._initial_beta(beta, learnable_beta), self.beta_shape, learnable_beta)
        self.register_load_state_dict_pre_hook(_keep_shape)
        self.W = nn.Parameter(torch.randn(in_dim, hidden_dim) * scale)
        self.bias = nn.Parameter(torch.zeros(hidden_dim)) if bias else None

    @classmethod
    def from_config(cls, config, **options) -> "BaseModernHopfield":
        kinds = {"relu": BaseModernHopfield, "gelu": GELUModernHopfield, "softmax": SoftmaxModernHopfield}
        of_config = {
            "hidden_dim": config.intermediate_size,
            "beta": config.hopfield_beta,
            "bias": config.hopfield_bias,
            "learnable_beta": config.learnable_beta,
            "norm": config.hopfield_norm,
        }
        activation = options.pop("activation", config.hopfield_activation)
        if activation not in kinds:
            raise ValueError(f"activation must be one of {', '.join(kinds)}, got {activation!r}")
        kind = kinds[activation] if cls is BaseModernHopfield else cls
        made = kind(config.hidden_size, **of_config | options)
        made.options = options
        return made

    def _initial_beta(self, beta, learnable_beta):
        return self.default_beta if beta is None or learnable_beta else beta

    def extra_repr(self) -> str:
        return f"{self.in_dim}, {self.hidden_dim}"

    def _times_beta(self, tensor: Tensor) -> Tensor:
        return tensor if isinstance(self.beta, float) and self.beta == 1 else self.beta * tensor

    def projection(self) -> Tensor:
        """β W: the ReLU network's beta scales its memories, unless a norm would undo it."""
        return dense(self.W) if self.norm_groups else self._times_beta(dense(self.W))

    def offset(self) -> Tensor | None:
        if self.norm_groups:
            return None
        return self._times_beta(self.bias) if self.bias_before_beta else self.bias

    @property
    def rectifies(self) -> bool:
        """True for the ReLU alone: no norm, and nothing that a subclass or a user put in its place."""
        own = type(self).pull_and_weights is EnergyTerm.pull_and_weights
        return own and not self.norm_groups and getattr(self.pull, "__func__", None) is _RELU

    def constants(self) -> dict[str, Any]:
        """With a norm, beta and the bias, which stand behind it."""
        if not self.norm_groups:
            return {}
        beta = at_least_float32(self.beta) if isinstance(self.beta, Tensor) else self.beta
        return {"beta": beta, "bias": self.bias}

    def potential(self, h: Tensor, context: EnergyContext, *, beta=1.0, bias=None) -> Tensor:
        """½ Σ relu(h)²."""
        return 0.5 * _scaled(at_least_float32(h), beta, bias).relu().square().sum(-1)

    def pull(self, h: Tensor, context: EnergyContext, *, beta=1.0, bias=None) -> Tensor:
        return _scaled(_scaled(h, beta, bias).relu(), beta).to(h.dtype)


_RELU = BaseModernHopfield.pull


def _scaled(h: Tensor, beta: float | Tensor, bias: Tensor | None = None) -> Tensor:
    """β h + b."""
    scaled = h if isinstance(beta, float) and beta == 1 else beta * h
    return scaled if bias is None else scaled + bias


class GELUModernHopfield(BaseModernHopfield):
    r"""Modern Hopfield network whose pull is the GELU of the hidden vector (Hendrycks and Gimpel 2016).

    With the normal distribution function Φ and its density, the energy that has this gradient is

    $$E = -\tfrac12 \sum \left[(h^2 - 1)\, \Phi(h) + h\, \Phi'(h)\right], \qquad h = \beta\, g W + b$$

    Arguments as for [`BaseModernHopfield`].
    """

    def potential(self, h: Tensor, context: EnergyContext, *, beta=1.0, bias=None) -> Tensor:
        """½ Σ [(h² − 1) Φ(h) + h Φ'(h)], whose derivative is h Φ(h)."""
        h = _scaled(at_least_float32(h), beta, bias)
        density = torch.exp(-0.5 * h.square()) / math.sqrt(2 * math.pi)
        return 0.5 * ((h.square() - 1) * torch.special.ndtr(h) + h * density).sum(-1)

    def pull(self, h: Tensor, context: EnergyContext, *, beta=1.0, bias=None) -> Tensor:
        return _scaled(F.gelu(_scaled(h, beta, bias)), beta).to(h.dtype)


class SoftmaxModernHopfield(BaseModernHopfield):
    r"""Modern Hopfield network with a softmax over the memories (paper, section 2.2).

    $$E = -\frac1\beta \sum_{\text{tokens}} \log \sum_m \exp(h_m), \qquad h = \beta\, g W + b, \qquad
      \frac{\partial E}{\partial g} = -\mathrm{softmax}(h)\, W^\top$$

    Arguments as for [`BaseModernHopfield`], but a learned beta starts at `beta`, and at 0.01 when None, as in the
    references.
    """

    beta_shape = ()
    default_beta = 0.01

    def _initial_beta(self, beta, learnable_beta):
        return self.default_beta if beta is None else beta

    def projection(self) -> Tensor:
        return dense(self.W)

    def offset(self) -> Tensor | None:
        return self.bias if self.bias_before_beta else None

    def constants(self) -> dict[str, Any]:
        beta = at_least_float32(self.beta) if isinstance(self.beta, Tensor) else self.beta
        return {"beta": beta, "bias": None if self.bias_before_beta else self.bias}

    def potential(self, h: Tensor, context: EnergyContext, *, beta, bias) -> Tensor:
        """1/β logsumexp(β h + b)."""
        return _scaled(at_least_float32(h), beta, bias).logsumexp(-1) / beta

    def pull(self, h: Tensor, context: EnergyContext, *, beta, bias) -> Tensor:
        return _scaled(at_least_float32(h), beta, bias).softmax(-1).to(h.dtype)
