r"""The block: a norm, the terms of an energy, and the descent on it.

$$x \leftarrow x - \alpha\, \frac{\partial E}{\partial g}, \qquad g = \mathrm{norm}(x), \qquad
  E(g) = -\sum \varphi(g W)$$

Hoover et al. 2023 (arXiv 2302.07253), equation 7. Shapes: B any leading axes, N tokens, D token width, P columns of all
terms together, T steps.

A step computes one norm, one product g W with the projections of all terms, their pulls ∂Σφ/∂h, one product with Wᵀ,
and one update. When the energy is sure to fall, and when it is not: `docs/guarantees.md`.
"""

from collections.abc import Collection
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .attention_backends import at_least_float32, is_eager
from .context import EnergyContext
from .energies import EnergyTerm, RMSNormalized, project, vjp
from .updates import State, Update


class Record(NamedTuple):
    """What a descent keeps beside its end.

    Attributes:
        states: indices of the states x_0 … x_T to keep.
        energies: the energy of each token by each term, at all states.
        attentions: the weights of the attention at all states but the last.
    """

    states: Collection[int] = ()
    energies: bool = False
    attentions: bool = False


class Descent(NamedTuple):
    """What a block returns.

    Attributes:
        state (`torch.Tensor` of shape `(..., N, D)`): x_T.
        normalized (`torch.Tensor` of shape `(..., N, D)`): norm(x_T).
        states: the T + 1 states, None in the place of those that were not asked for.
        energies: for each term by its name the energy of each token at each state, `(..., T + 1, N)`.
        attentions: for each step the weights `(..., H, N, N)` of all terms that have any.
        num_steps_taken (`torch.LongTensor` of shape `(B,)`, *optional*): with a tolerance.
    """

    state: Tensor
    normalized: Tensor
    states: tuple[Tensor | None, ...] = ()
    energies: dict[str, Tensor] | None = None
    attentions: tuple[Tensor, ...] = ()
    num_steps_taken: Tensor | None = None

    @property
    def energy(self) -> Tensor:
        """The energy of each image at each state, (..., T + 1): the sum over terms and tokens."""
        return sum(self.energies.values()).sum(-1)


class _Part(NamedTuple):
    """A term during a descent, with its constants and the width P of its projection."""

    term: EnergyTerm
    width: int
    constants: dict[str, Any]


class _Energy(NamedTuple):
    """The energy during a descent: its terms, and their projections side by side, W (D, P) and b (P,)."""

    parts: dict[str, _Part]
    weight: Tensor
    offset: Tensor | None
    context: EnergyContext

    def look(self, g: Tensor) -> list[tuple[_Part, Tensor]]:
        """The terms with their projections h of g."""
        h = project(g, self.weight, self.offset)
        widths = [part.width for part in self.parts.values()]
        return list(zip(self.parts.values(), h.split(widths, -1) if len(widths) > 1 else [h], strict=True))

    def pull(self, g: Tensor, attentions: list | None = None) -> Tensor:
        """−∂E/∂g; to a list of `attentions` it adds the weights of all heads, (..., H, N, N), that it came from."""
        pulls: list[Tensor] = []
        weights: list[Tensor] = []
        rectified: list[tuple[int, int]] = []
        for part, h in self.look(g):
            if part.term.rectifies and is_eager(h):
                rectified.append((sum(pull.shape[-1] for pull in pulls), part.width))
                pulls.append(h)
            else:
                kept = None if attentions is None else weights
                pulls.append(part.term.pull_of_raw(h, self.context, kept, **part.constants))
        if attentions is not None:
            nothing = g.new_zeros(*g.shape[:-2], 0, *2 * g.shape[-2:-1])
            attentions.append(weights[0] if len(weights) == 1 else torch.cat([nothing, *weights], -3))
        joined = torch.cat(pulls, -1)
        del pulls, h  # of a long sequence, they would be a third of what the step holds
        return (
            _RectifiedProduct.apply(joined, self.weight, rectified)[0] if rectified else F.linear(joined, self.weight)
        )

    def by_term(self, g: Tensor) -> dict[str, Tensor]:
        """The energy of each token, (..., N), in each term."""
        energies = {}
        for name, (part, h) in zip(self.parts, self.look(g), strict=True):
            h = RMSNormalized.of(at_least_float32(h), part.term.norm_groups).value
            energy = -part.term.potential(h, self.context, **part.constants)
            if energy.shape != g.shape[:-1]:
                shapes = f"{tuple(g.shape[:-1])}, got {tuple(energy.shape)}"
                raise ValueError(f"the potential of the energy term {name!r} must have shape (..., N) = {shapes}")
            tokens = self.context.tokens
            energies[name] = energy if tokens is None else energy.masked_fill(~tokens, 0.0)
        return energies


class _RectifiedProduct(torch.autograd.Function):
    """p Wᵀ of joined pulls p, some columns of which still need their ReLU: they get it in place.

    Autograd would keep the result of the ReLU beside its copy in the joined matrix, which is a quarter of all that a
    training step holds. p is returned too, so that a second derivative sees where it came from.
    """

    @staticmethod
    def forward(ctx, p: Tensor, weight: Tensor, columns: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        for start, width in columns:
            p.narrow(-1, start, width).relu_()
        ctx.mark_dirty(p)
        ctx.save_for_backward(p, weight)
        ctx.columns = columns
        ctx.set_materialize_grads(False)
        return F.linear(p, weight), p

    @staticmethod
    def backward(ctx, grad: Tensor | None, grad_p: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        p, weight = ctx.saved_tensors
        through = grad_weight = None
        if grad is not None and ctx.needs_input_grad[0]:
            through = grad @ weight
        if grad_p is not None:
            through = grad_p.clone() if through is None else through + grad_p
        for start, width in ctx.columns if through is not None else ():
            _rectify_gradient(through.narrow(-1, start, width), p.narrow(-1, start, width))
        if grad is not None and ctx.needs_input_grad[1]:  # last, for it would be held beside what the ReLU needs
            grad_weight = grad.reshape(-1, grad.shape[-1]).mT @ p.reshape(-1, p.shape[-1])
        return through, grad_weight, None


def _rectify_gradient(gradient: Tensor, rectified: Tensor) -> None:
    """Zero, in place, where the ReLU was zero."""
    if not torch.is_grad_enabled():
        try:  # five times as fast as what serves for second derivatives
            torch.ops.aten.threshold_backward.grad_input(gradient, rectified, 0, grad_input=gradient)
            return
        except RuntimeError:  # a batch of gradients at once (`is_grads_batched`) knows no such operator
            pass
    gradient.masked_fill_(rectified <= 0, 0.0)


class EnergyBlock(nn.Module):
    """A block with its descent.

    Args:
        terms: the parts of the energy; each becomes a submodule of its name.
        norm: maps x to g, both (..., N, D). For `descent_gradient="state"` a norm without a method `pullback` is
            differentiated automatically.
        update: what a step does.
        descent_gradient: descend along `"normalized"`, ∂E/∂g, as the paper does, or along `"state"`,
            ∂E/∂x = Jᵀ ∂E/∂g with the Jacobian J of the norm, which is the steepest descent.
    """

    gradient_checkpointing = False  # by this name, transformers turns it on

    def __init__(self, terms: dict[str, EnergyTerm], norm: nn.Module, update: Update, descent_gradient="normalized"):
        super().__init__()
        if descent_gradient not in ("normalized", "state"):
            raise ValueError(f"descent_gradient must be 'normalized' or 'state', got {descent_gradient!r}")
        if not terms:
            raise ValueError("an energy needs at least one term, got none")
        self.term_names = tuple(terms)
        for name, term in terms.items():
            self.add_module(name, term)
        self.norm, self.update, self.descent_gradient = norm, update, descent_gradient

    def forward(
        self,
        x: Tensor,
        num_steps: int,
        context: EnergyContext | None = None,
        record: Record | None = None,
        tolerance: float | None = None,
    ) -> Descent:
        """Descend `num_steps` steps from the tokens x (..., N, D).

        Args:
            x: in half precision the descent works on float32, since it sums many small steps.
            num_steps: T; 0 gives norm(x) and, when asked for, the energies of x.
            context: masks, bias and backend of the attention, and what else the terms need.
            record: what to keep of the descent.
            tolerance: end the descent of each image of x (B, N, D) when a step changes its normalized tokens by at
                most this share of their length. Needs `torch.no_grad()`, and goes with no record.

        Raises:
            ValueError: for tokens, masks, `num_steps` or a `tolerance` that do not fit.
        """
        check_num_steps(num_steps)
        context, record, x = context or EnergyContext(), record or Record(), at_least_float32(x)
        context.check(x)
        energy = self._fetch(x, context)
        # autocast would cast at every step what is cast once a descent here
        with torch.autocast(x.device.type if _knows_autocast(x) else "cpu", enabled=False):
            if tolerance is None:
                return self._descend(x, int(num_steps), energy, record)
            check_tolerance(tolerance, record)
            if x.ndim != 3 or context.data:
                raise ValueError("tolerance needs tokens of shape (B, N, D), and a context without data of the terms")
            return self._settle(x, int(num_steps), energy, tolerance)

    def _fetch(self, x: Tensor, context: EnergyContext) -> _Energy:
        """One call of each term, and the weights joined and cast."""
        fetched = {name: getattr(self, name)(None) for name in self.term_names}
        weights, offsets = [each.weight for each in fetched.values()], [each.offset for each in fetched.values()]
        weight, offset = torch.cat(weights, 1) if len(weights) > 1 else weights[0], None
        if _knows_autocast(x) and torch.is_autocast_enabled(x.device.type) and weight.dtype != torch.float64:
            weight = weight.to(torch.get_autocast_dtype(x.device.type))
        if any(given is not None for given in offsets):
            zeros = [each.new_zeros(each.shape[1]) for each in weights]
            offset = torch.cat([zero if b is None else b for b, zero in zip(offsets, zeros, strict=True)])
        parts = {name: _Part(each.term, each.weight.shape[1], each.constants) for name, each in fetched.items()}
        return _Energy(parts, weight, offset, context)

    def _step(self, x: Tensor, state: State, energy: _Energy, attentions: list | None = None) -> tuple[Tensor, State]:
        """The next tokens, and what the step changes of the state."""
        real = _without_padding(x, energy.context)
        g = self.norm(real)
        pull = energy.pull(g, attentions)
        if self.descent_gradient == "state":
            pull = self._pullback(real, pull)
        following, changes = self.update.step(real, g, pull, state)
        if energy.context.tokens is not None:
            following = torch.where(energy.context.tokens[..., None], following, x)
        return following, changes

    def _pullback(self, x: Tensor, pull: Tensor) -> Tensor:
        """Jᵀ of the norm at x times the pull."""
        if hasattr(self.norm, "pullback"):
            return self.norm.pullback(x, pull.to(x.dtype))
        g, pullback = vjp(self.norm, x, self.norm)
        return pullback(pull.to(g.dtype))

    def _descend(self, x: Tensor, num_steps: int, energy: _Energy, record: Record) -> Descent:
        checkpointed = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        state, states = self.update.init(x), [x if 0 in record.states else None]
        energies: list[dict[str, Tensor]] = []
        attentions: list[Tensor] = []
        for t in range(num_steps):
            if record.energies:
                energies.append(energy.by_term(self._normalize(x, energy)))
            state = self.update.prepare(x, state, t, energy.context.generator)
            if checkpointed and not record.attentions:
                # never the reentrant kind: it does not see the weights, which were fetched before
                x, changes = checkpoint(self._step, x, state, energy, use_reentrant=False, preserve_rng_state=False)
            else:
                x, changes = self._step(x, state, energy, attentions if record.attentions else None)
            state = state | changes
            states.append(x if t + 1 in record.states else None)
        if record.energies:
            energies.append(energy.by_term(self._normalize(x, energy)))
        by_term = {name: torch.stack([at[name] for at in energies], -2) for name in energy.parts if energies}
        return Descent(x, self._normalize(x, energy), tuple(states), by_term or None, tuple(attentions))

    def _normalize(self, x: Tensor, energy: _Energy) -> Tensor:
        return self.norm(_without_padding(x, energy.context))

    def _settle(self, x: Tensor, num_steps: int, energy: _Energy, tolerance: float) -> Descent:
        """At most `num_steps` steps of each image x (B, N, D), which leaves the batch when its result has settled.

        It has when a step changes its normalized tokens g by at most τ times their length, |g' − g| ≤ τ|g| over all
        tokens that are no padding. The raw tokens have no fixed point: their norm grows with every step.
        """
        end, taken, whole = x.clone(), torch.zeros(len(x), dtype=torch.long, device=x.device), energy.context
        active, state = torch.arange(len(x), device=x.device), self.update.init(x)
        g = _without_padding(self.norm(x), whole)
        for t in range(num_steps):
            # the noise is drawn for all images, as without a tolerance
            state = _of_images(self.update.prepare(end, state, t, whole.generator), active, end)
            x, changes = self._step(x, state, energy)
            end[active], taken[active], state = x, taken[active] + 1, state | changes
            before, g = g, _without_padding(self.norm(x), energy.context)
            moving = ~((g - before).flatten(1).norm(dim=1) <= tolerance * before.flatten(1).norm(dim=1))  # also NaN
            if not moving.all():
                state, active, x, g = _of_images(state, moving, x), active[moving], x[moving], g[moving]
                energy = energy._replace(context=whole.of_images(active, end))
            if not len(active):
                break
        return Descent(end, self._normalize(end, energy._replace(context=whole)), num_steps_taken=taken)


def _of_images(state: State, images: Tensor, x: Tensor) -> State:
    """Of what has as many axes and images as x (B, N, D), some images; of the rest, all."""
    belongs = {key: value.ndim == x.ndim and len(value) == len(x) for key, value in state.items()}
    return {key: value[images] if belongs[key] else value for key, value in state.items()}


def _without_padding(tensor: Tensor, context: EnergyContext) -> Tensor:
    """Zeros for padding (..., N, ·): a masked NaN is still NaN in a product with a weight of zero."""
    return tensor if context.tokens is None else tensor.masked_fill(~context.tokens[..., None], 0.0)


def _knows_autocast(x: Tensor) -> bool:
    return torch.amp.is_autocast_available(x.device.type)


def check_num_steps(num_steps: int) -> None:
    """Raises ValueError unless `num_steps` is a whole number of at least 0."""
    if not isinstance(num_steps, Integral) or isinstance(num_steps, bool) or num_steps < 0:
        raise ValueError(f"num_steps must be a whole number of at least 0, got {num_steps!r}")


def check_tolerance(tolerance: float, record: Record) -> None:
    """Raises ValueError unless a descent with this tolerance and record is possible now."""
    if not isinstance(tolerance, Real) or not tolerance >= 0:
        raise ValueError(f"tolerance must be a number of at least 0, got {tolerance!r}")
    if torch.is_grad_enabled():
        raise ValueError("tolerance needs torch.no_grad(): the number of steps would depend on the weights")
    if record.states or record.energies or record.attentions:
        raise ValueError(
            "tolerance cannot be combined with output_hidden_states, output_attentions, output_energies or "
            "output_energy_parts: the images take different numbers of steps"
        )
