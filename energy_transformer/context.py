"""What a descent is told beside its tokens: one small object, made once for a call.

Shapes: B any leading axes, H heads, N tokens, R some of the rows of an N×N matrix.
"""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Edges(NamedTuple):
    """Who may attend to whom in a graph, one edge after the other: nothing of N×N is ever made of it.

    Attributes:
        index (`torch.LongTensor` of shape `(2, E)`):
            The token that is attended to (the source of an edge, a key) and the one that attends (its target, a
            query). Edges may be parallel, and then count each; a token without an edge to it adds nothing to the
            energy of the attention.
        bias (`torch.FloatTensor` of shape `(E, H or 1)`, *optional*): added to the scores, outside of beta.
        clamp: the scores are held between −clamp and clamp, as zhuergou's code does, when not None. What the attention
            then returns is no gradient of its energy where a score is held.
    """

    index: Tensor
    bias: Tensor | None = None
    clamp: float | None = None


@dataclass(frozen=True, eq=False)
class EnergyContext:
    """Who may attend to whom, how strongly, and by which backend.

    Attributes:
        tokens (`torch.BoolTensor` of shape `(..., N)`, *optional*):
            False for padding, which may hold anything, NaN too: no token attends to it, it has no energy and does
            not move.
        pairs (`torch.BoolTensor` broadcastable to `(..., N, N)`, *optional*):
            True where the token of the row may attend to the token of the column. A row without any True adds
            nothing to the energy of the attention.
        bias (`torch.FloatTensor` of shape `(..., H or 1, N, N)`, *optional*):
            Added to the scores, outside of beta: s = β q kᵀ + bias. It must be finite and may have a gradient.
        causal: a token attends to itself and to the tokens before it. The energy is shared by both tokens of a pair,
            so that its gradient still moves an early token because of a late one.
        attend_to_self: False leaves the diagonal out, as the paper's equation does.
        backend: how to compute the attention, one of `attention_backends.ATTENTION_BACKENDS`.
        generator: of the noise of a descent with a temperature; torch's own when None.
        data: what a term of the energy needs of its own, by a name that the term chooses.
        edges ([`Edges`], *optional*):
            The pairs and their bias as a list, for tokens of shape (N, D); the attention then works along the edges,
            and `tokens`, `pairs`, `bias`, `causal` and the backend do not apply.
    """

    tokens: Tensor | None = None
    pairs: Tensor | None = None
    bias: Tensor | None = None
    causal: bool = False
    attend_to_self: bool = True
    backend: str = "auto"
    generator: torch.Generator | None = None
    data: dict[str, Any] = field(default_factory=dict)
    edges: Edges | None = None

    def check(self, x: Tensor) -> None:
        """Raises ValueError unless the masks and the bias fit tokens x (..., N, D) in shape and dtype."""
        *leading, count, _ = x.shape
        if self.edges is not None:
            self._check_edges(x)
        expected = {"tokens": [*leading, count], "pairs": [*leading, count, count]}
        for name, shape in expected.items():
            mask = getattr(self, name)
            if mask is None:
                continue
            if mask.dtype != torch.bool:
                raise ValueError(f"{name} must be a boolean tensor, True to attend, got {mask.dtype}")
            if not _broadcasts(mask.shape, shape) or mask.shape[-1] != count:
                raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(mask.shape)}")
        if self.bias is not None:
            if not self.bias.is_floating_point():
                raise ValueError(f"bias must be a floating point tensor, got {self.bias.dtype}")
            heads = self.bias.shape[-3] if self.bias.ndim > 2 else 1
            fits = _broadcasts(self.bias.shape, [*leading, heads, count, count])
            if not fits or self.bias.shape[-2:] != (count, count):
                raise ValueError(
                    f"bias must have shape (..., H or 1, N, N), here {tuple(leading)} + (H or 1, {count}, {count}), "
                    f"got {tuple(self.bias.shape)}"
                )

    def _check_edges(self, x: Tensor) -> None:
        if x.ndim != 2:
            raise ValueError(f"edges need tokens of shape (N, D), got {tuple(x.shape)}")
        if self.causal or any(given is not None for given in (self.tokens, self.pairs, self.bias)):
            raise ValueError("edges cannot be combined with tokens, pairs, bias or causal: they say it all")
        index, bias, _ = self.edges
        if index.dtype != torch.long or index.ndim != 2 or len(index) != 2:
            raise ValueError(f"edges need an index of int64 and shape (2, E), got {index.dtype} {tuple(index.shape)}")
        if bias is not None and (bias.ndim != 2 or len(bias) != index.shape[1]):
            raise ValueError(f"the bias of edges must have shape ({index.shape[1]}, H or 1), got {tuple(bias.shape)}")

    def allowed(self, count: int, device: torch.device, rows: slice = slice(None)) -> Tensor | None:
        """True where a row of `rows` may attend to a column, broadcastable to (..., R, N); None for everywhere."""
        allowed = None
        if self.pairs is not None:
            allowed = self.pairs.expand(*self.pairs.shape[:-2], count, count)[..., rows, :]
        if self.tokens is not None:
            allowed = _both(allowed, self.tokens[..., rows, None] & self.tokens[..., None, :])
        if self.causal or not self.attend_to_self:
            positions = torch.arange(count, device=device)
            behind = positions[rows, None] - positions
            if self.causal:
                allowed = _both(allowed, behind >= 0)
            if not self.attend_to_self:
                allowed = _both(allowed, behind != 0)
        return allowed

    def of_images(self, images: Tensor | slice, x: Tensor) -> "EnergyContext":
        """The context of some of the images x (B, ...), given their indices."""
        axes = {"tokens": 2, "pairs": 3, "bias": 4}
        changed = {}
        for name, ndim in axes.items():
            tensor = getattr(self, name)
            if tensor is not None and tensor.ndim == ndim and len(tensor) == len(x):
                changed[name] = tensor[images]
        return replace(self, **changed)


def _both(allowed: Tensor | None, more: Tensor) -> Tensor:
    return more if allowed is None else allowed & more


def _broadcasts(shape, wanted) -> bool:
    return len(shape) <= len(wanted) and all(
        size in (1, wish) for size, wish in zip(reversed(shape), reversed(wanted), strict=False)
    )
