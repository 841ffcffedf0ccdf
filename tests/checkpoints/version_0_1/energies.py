"""The energies of an Energy Transformer and their gradients in closed form.

Hoover et al. 2023, "Energy Transformer" (arXiv 2302.07253), sections 2.1 to 2.3; reference code
`bhoov/energy-transformer-jax`, `architecture.py`.

Shapes: B any leading axes, N tokens, D token width, H heads, Y head width (H·Y need not be D), M memories.
Every module has `energy(g)`, the sum over all tokens and images; `token_energies(g)`, the same sum's share of each
token; and `grad(g)`, which is dE/dg without automatic differentiation and is also what a call returns. The gradient
is made of ordinary differentiable operations, so a loss behind the descent differentiates through it.

Precision: norms, logsumexp, softmax and energies are computed in float32 when the weights or autocast are of half
precision; matrix products stay in half precision.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from .attention_backends import (
    at_least_float32,
    attention_backend,
    check_attention_backend,
    eager_attention,
    eager_attention_weights,
)
from .operators import only_plain_operators
from .products import product


def _require_width(tokens: torch.Tensor, width: int) -> None:
    if tokens.ndim < 2 or tokens.shape[-1] != width:
        raise ValueError(f"tokens must have shape (..., N, {width}), got {tuple(tokens.shape)}")


def plain(weight: torch.Tensor) -> torch.Tensor:
    """An int8 weight of torchao, which can neither be flattened nor transposed, dequantized; any other as it is."""
    return weight.dequantize() if hasattr(weight, "qdata") else weight


def _set_beta(
    module: nn.Module, beta: float | Sequence[float] | torch.Tensor, shape: tuple[int, ...], learnable: bool
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
    elif isinstance(beta, torch.Tensor):
        one_number = given == () and shape != ()
        module.beta = nn.Parameter(beta.detach().clone().reshape((1,) if one_number else given))
    else:
        start = torch.tensor(beta, dtype=torch.get_default_dtype())
        module.beta = nn.Parameter(start.expand(given or shape).clone())


class EnergyLayerNorm(nn.Module):
    r"""Layer normalisation with a scalar gain: the gradient of a Lagrangian (paper, equations 1 and 2).

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

    def extra_repr(self) -> str:
        return f"{self.dim}, eps={self.eps}, regularization={self.regularization}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (..., D) to g (..., D), in float32 for half-precision input."""
        x = at_least_float32(x)
        gains = self.gamma.to(x.dtype).expand(self.dim)
        normed = F.layer_norm(x, (self.dim,), gains, self.delta.to(x.dtype), self.eps)
        return normed + self.regularization * x if self.regularization else normed

    def lagrangian(self, x: torch.Tensor) -> torch.Tensor:
        """L of each token: (..., D) to (...)."""
        x = at_least_float32(x)
        scale = torch.sqrt(x.var(-1, correction=0) + self.eps)
        value = self.dim * self.gamma.to(x.dtype) * scale + (x * self.delta.to(x.dtype)).sum(-1)
        return value + 0.5 * self.regularization * x.square().sum(-1) if self.regularization else value

    def token_energies(self, x: torch.Tensor) -> torch.Tensor:
        """`g·x − L(x)` of each token: (..., D) to (...). Nearly zero for λ = 0: compare absolutely, in float64."""
        x = at_least_float32(x)
        return (self(x) * x).sum(-1) - self.lagrangian(x)

    def energy(self, x: torch.Tensor) -> torch.Tensor:
        """Sum of [`token_energies`], a scalar."""
        return self.token_energies(x).sum()


class LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm` that computes and returns float32 for half-precision input or weights.

    Its vector gain makes g the gradient of no single Lagrangian of the paper's form, so the energy is not
    guaranteed to fall.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = at_least_float32(x)
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class _Energy(nn.Module):
    """`energy` and the call, given `token_energies` and `grad`."""

    def energy(self, g: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """Sum of `token_energies` over all tokens and images, a scalar."""
        return self.token_energies(g, *args, **kwargs).sum()

    def forward(self, g: torch.Tensor, *args, method: str = "grad", **kwargs) -> torch.Tensor:
        """dE/dg, shape (..., N, D), or what another method of these arguments returns.

        Whatever moves or adapts weights, such as accelerate's offloading and peft, does so around this call.
        """
        return getattr(self, method)(g, *args, **kwargs)


class EnergyAttention(_Energy):
    r"""Multi-head energy attention (paper, equation 3): no values and no output projection.

    $$E = -\sum_h \frac{1}{\beta_h} \sum_C \log \sum_B \exp(\beta_h\, q_{hC} \cdot k_{hB}), \qquad
      \frac{\partial E}{\partial g} = -\sum_h \left[(A k) W^q_h + (A^\top q) W^k_h\right]$$

    with q = g Wqᵀ + bq, k = g Wkᵀ + bk, and A the softmax over each row of β q kᵀ.

    Args:
        embed_dim: token width D.
        n_heads: H.
        beta: inverse temperature, a number or one for each head, or a tensor of shape (H,) or (1,); 1/sqrt(Y) when
            None.
        scale: standard deviation of the initial Wq and Wk.
        head_dim: Y; D / H when None.
        use_bias: biases bq, bk, initially zero; `True` for one of each head, shape (H, Y) (the paper's flax code),
            `"shared"` for one of all heads, shape (Y,) (Lemon-cmd/energy-transformer-torch).
        learnable_beta: beta is a parameter, as in the seed; otherwise a constant, as in the paper.
        attend_to_self: a token attends to itself too, as in all released image code; False is the paper's B ≠ C.
        attn_implementation: one of `ATTENTION_BACKENDS`, see [`attention_backends`]; a call may name another.

    Raises:
        ValueError: when `head_dim` is None and H does not divide D, for a beta of another shape, and for another
            `use_bias`.
    """

    def __init__(
        self,
        embed_dim: int,
        n_heads: int,
        beta: float | Sequence[float] | torch.Tensor | None = None,
        scale: float = 0.002,
        *,
        head_dim: int | None = None,
        use_bias: bool | str = False,
        learnable_beta: bool = True,
        attend_to_self: bool = True,
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
        _set_beta(self, 1 / math.sqrt(self.head_dim) if beta is None else beta, (n_heads,), learnable_beta)
        self.Wq = nn.Parameter(torch.randn(n_heads, self.head_dim, embed_dim) * scale)
        self.Wk = nn.Parameter(torch.randn(n_heads, self.head_dim, embed_dim) * scale)
        if use_bias not in (False, True, "shared"):
            raise ValueError(f"use_bias must be False, True or 'shared', got {use_bias!r}")
        bias_shape = (self.head_dim,) if use_bias == "shared" else (n_heads, self.head_dim)
        self.bq = nn.Parameter(torch.zeros(bias_shape)) if use_bias else None
        self.bk = nn.Parameter(torch.zeros(bias_shape)) if use_bias else None

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, n_heads={self.n_heads}, head_dim={self.head_dim}"

    def _project(self, g, weight, bias):
        projected = product(g.to(weight.dtype).flatten(0, -2), plain(weight).flatten(0, 1), transposed=True)
        if bias is not None:
            projected = projected + bias.to(projected.dtype).expand(self.n_heads, -1).flatten()
        # contiguous, because each of the four products with it would make a copy of its own
        by_head = projected.view(*g.shape[:-1], self.n_heads, self.head_dim).transpose(-3, -2)
        return by_head.contiguous()

    def _arguments(self, g, mask, tokens):
        """What a backend takes."""
        _require_width(g, self.embed_dim)
        query, key = self._project(g, self.Wq, self.bq), self._project(g, self.Wk, self.bk)
        dtype = torch.promote_types(query.dtype, torch.float32)
        beta = self.beta
        if isinstance(beta, tuple):
            beta = torch.tensor(beta, dtype=dtype, device=query.device)
        elif isinstance(beta, torch.Tensor):
            beta = beta.to(dtype)
        return query, key, beta, mask, tokens, self.attend_to_self

    def _backend(self, name, query):
        return attention_backend(self.attn_implementation if name is None else name, query)

    def token_energies(
        self,
        g: torch.Tensor,
        mask: torch.Tensor | None = None,
        tokens: torch.Tensor | None = None,
        attn_implementation: str | None = None,
    ) -> torch.Tensor:
        """Energy of each token as a query, summed over the heads.

        Args:
            g (`torch.Tensor` of shape `(..., N, D)`): normalised tokens.
            mask (`torch.BoolTensor` broadcastable to `(..., N, N)`, *optional*):
                True where the token of the row may attend to the token of the column. A row without any True
                contributes nothing.
            tokens (`torch.BoolTensor` of shape `(..., N)`, *optional*): False for padding, which no token attends to
                and which contributes nothing.
            attn_implementation: in place of the module's own.

        Returns:
            `torch.Tensor` of shape `(..., N)`, float32 or float64.
        """
        query, key, beta, *masks = self._arguments(g, mask, tokens)
        rows = self._backend(attn_implementation, query).logsumexp(query, key, beta, *masks)
        return -(rows / (beta[:, None] if isinstance(beta, torch.Tensor) else beta)).sum(-2)

    def attention_weights(
        self, g: torch.Tensor, mask: torch.Tensor | None = None, tokens: torch.Tensor | None = None
    ) -> torch.Tensor:
        """A, shape (..., H, N, N), rows for queries."""
        return eager_attention_weights(*self._arguments(g, mask, tokens))

    def grad(
        self,
        g: torch.Tensor,
        mask: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
        tokens: torch.Tensor | None = None,
        attn_implementation: str | None = None,
    ) -> torch.Tensor:
        """dE/dg in closed form, shape (..., N, D), with the [`attention_weights`] given or computed.

        Other arguments as for [`token_energies`].
        """
        arguments = self._arguments(g, mask, tokens)
        if weights is None:
            by_keys, by_queries = self._backend(attn_implementation, arguments[0]).attention(*arguments)
        else:
            by_keys, by_queries = eager_attention(*arguments, weights=weights)
        by_keys, by_queries = (term.transpose(-3, -2).flatten(-2).flatten(0, -2) for term in (by_keys, by_queries))
        pull = product(by_keys, plain(self.Wq).flatten(0, 1))
        return product(by_queries, plain(self.Wk).flatten(0, 1), total=pull).neg_().view(g.shape)


def _overlaps(rows, memories, beta):
    """β g W for rows g (R, D) and memories W (D, M)."""
    if isinstance(beta, torch.Tensor) or beta != 1:
        rows = beta * rows  # rather than the overlaps, which are several times as wide
    return product(rows, memories)


def _relu_gradient(rows, memories, beta):
    """−β relu(β g W) Wᵀ, and relu(β g W)."""
    active = _overlaps(rows, memories, beta).relu_()
    return -beta * product(active, memories, transposed=True), active


def _relu_backward(upstream, active):
    """`upstream` where `active` is positive and 0 elsewhere; in place, but not within `torch.func.vmap` nor the older
    vmap of `torch.autograd.grad(is_grads_batched=True)`, which refuse that."""
    if torch.compiler.is_compiling() or only_plain_operators() or torch._C._functorch.is_legacy_batchedtensor(upstream):
        return torch.ops.aten.threshold_backward(upstream, active, 0)
    return torch.ops.aten.threshold_backward.grad_input(upstream, active, 0, grad_input=upstream)


class _ReluGradient(torch.autograd.Function):
    """The gradient of the ReLU energy, with a derivative in closed form that keeps only g and a = relu(β g W).

    With G the upstream gradient, and P = G W where a > 0 and 0 elsewhere:
    dg = −β² P Wᵀ,  dW = −β² gᵀ P − β Gᵀ a,  dβ = −2 Σ P ∘ a = −2β Σ g ∘ P Wᵀ.
    """

    @staticmethod
    def forward(ctx, rows, memories, beta):
        gradient, active = _relu_gradient(rows, memories, beta)
        learned = isinstance(beta, torch.Tensor)
        ctx.save_for_backward(rows, memories, active, beta if learned else None)
        ctx.constant = None if learned else beta
        return gradient

    @staticmethod
    def backward(ctx, upstream):
        rows, memories, active, beta = ctx.saved_tensors
        beta = ctx.constant if beta is None else beta
        if torch.is_grad_enabled():
            return _ReluGradient._differentiable_backward(ctx, upstream, rows, memories, beta)
        needs_rows, needs_memories, needs_beta = ctx.needs_input_grad
        grad_rows = grad_memories = grad_beta = None
        through = _relu_backward(product(upstream, memories), active)
        if needs_memories:
            grad_memories = product((-beta * upstream).mT, active)
            grad_memories = product((-(beta**2) * rows).mT, through, total=grad_memories)
        if needs_rows or needs_beta:
            pulled = product(through, memories, transposed=True)
        if needs_beta:
            grad_beta = (-2 * beta * (rows * pulled).sum()).view_as(beta)
        if needs_rows:
            grad_rows = pulled * -(beta**2)
        return grad_rows, grad_memories, grad_beta

    @staticmethod
    def _differentiable_backward(ctx, upstream, *inputs):
        # views of their own, for g depends on W and β through the steps before, and only partial derivatives are meant
        inputs = [tensor.view_as(tensor) if isinstance(tensor, torch.Tensor) else tensor for tensor in inputs]
        wanted = [tensor for tensor, needed in zip(inputs, ctx.needs_input_grad, strict=True) if needed]
        gradient, _ = _relu_gradient(*inputs)
        found = iter(torch.autograd.grad(gradient, wanted, upstream, create_graph=True))
        return tuple(next(found) if needed else None for needed in ctx.needs_input_grad)


class BaseModernHopfield(_Energy):
    r"""Modern Hopfield network with a ReLU (paper, equation 5): the memories are the columns of W.

    Another kind overrides `token_energies` and `grad`; the seed's hooks `activation`, `activation_energy` and
    `_init_activation` are not called, for the gradient is in closed form.

    $$E = -\tfrac12 \sum \mathrm{relu}(h)^2, \qquad h = \beta\, g W + b, \qquad
      \frac{\partial E}{\partial g} = -\beta\, \mathrm{relu}(h)\, W^\top$$

    Args:
        in_dim: token width D.
        hidden_dim: number of memories M.
        use_bias: without effect, as in the seed, so that its state_dicts fit; see `bias`.
        beta: the constant inverse temperature, 1 when None. A learned one starts at 1 whatever `beta` is, as in the
            seed.
        scale: standard deviation of the initial memories.
        bias: a bias b of shape (M,), initially zero. `True` adds it after the multiplication by beta (the paper's
            flax code; the ReLU networks of flax and of Lemon-cmd/energy-transformer-torch have no beta),
            `"before_beta"` before it: h = β (g W + b) (b-vitamins/energy-transformer).
        learnable_beta: beta is a parameter, as in the seed; otherwise a constant.
    """

    beta_shape: tuple[int, ...] = (1,)
    default_beta: float = 1.0

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int,
        use_bias: bool = False,
        beta: float | torch.Tensor | None = None,
        scale: float = 0.002,
        *,
        bias: bool | str = False,
        learnable_beta: bool = True,
    ):
        super().__init__()
        self.in_dim = in_dim
        self.hidden_dim = hidden_dim
        self.use_bias = use_bias
        if bias not in (False, True, "before_beta"):
            raise ValueError(f"bias must be False, True or 'before_beta', got {bias!r}")
        self.bias_before_beta = bias == "before_beta"
        _set_beta(self, self._initial_beta(beta, learnable_beta), self.beta_shape, learnable_beta)
        self.W = nn.Parameter(torch.randn(in_dim, hidden_dim) * scale)
        self.bias = nn.Parameter(torch.zeros(hidden_dim)) if bias else None

    def _initial_beta(self, beta, learnable_beta):
        return self.default_beta if beta is None or learnable_beta else beta

    def extra_repr(self) -> str:
        return f"{self.in_dim}, {self.hidden_dim}"

    def _rows(self, g: torch.Tensor) -> torch.Tensor:
        """Tokens (..., N, D) one after the other, shape (..·N, D), in the dtype of the weights."""
        _require_width(g, self.in_dim)
        return g.flatten(0, -2).to(self.W.dtype)

    def _overlaps(self, g: torch.Tensor) -> torch.Tensor:
        """h of the tokens one after the other, shape (..·N, M)."""
        overlaps = _overlaps(self._rows(g), plain(self.W), self.beta)
        if self.bias is None:
            return overlaps
        return overlaps + (self.beta * self.bias if self.bias_before_beta else self.bias)

    def token_energies(self, g: torch.Tensor) -> torch.Tensor:
        """Energy of each token: g (..., N, D) to (..., N), float32 or float64."""
        return -0.5 * at_least_float32(self._overlaps(g)).relu().square().sum(-1).view(g.shape[:-1])

    def grad(self, g: torch.Tensor) -> torch.Tensor:
        """dE/dg in closed form, shape (..., N, D)."""
        if self.bias is not None:
            pull = product(self._overlaps(g).relu_(), plain(self.W), transposed=True)
            return (-self.beta * pull).view(g.shape)
        inputs = self._rows(g), plain(self.W), self.beta
        if g.is_meta or only_plain_operators() or torch.is_autocast_enabled(g.device.type):  # meta knows no autocast
            gradient, _ = _relu_gradient(*inputs)
        else:
            gradient = _ReluGradient.apply(*inputs)
        return gradient.view(g.shape)


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

    def token_energies(self, g: torch.Tensor) -> torch.Tensor:
        rows = at_least_float32(self._overlaps(g)).logsumexp(-1).view(g.shape[:-1])
        return -rows / (self.beta.to(rows.dtype) if isinstance(self.beta, torch.Tensor) else self.beta)

    def grad(self, g: torch.Tensor) -> torch.Tensor:
        weights = at_least_float32(self._overlaps(g)).softmax(-1)
        return product(weights.to(self.W.dtype), plain(self.W), transposed=True).neg_().view(g.shape)
