"""Ways to compute the energy attention.

Shapes: B leading axes, H heads, N tokens, Y head width. Scores are s = beta q kᵀ with rows for queries, and
A = softmax over each row of s.
"""

from typing import NamedTuple

import torch


class AttentionTerms(NamedTuple):
    """What a descent step needs of the attention.

    Attributes:
        pulled_by_keys: `A k`, shape (..., H, N, Y); ordinary attention whose values are the keys.
        pulled_by_queries: `Aᵀ q`, shape (..., H, N, Y); the same attention seen from the keys.
    """

    pulled_by_keys: torch.Tensor
    pulled_by_queries: torch.Tensor


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """float16 and bfloat16 become float32; float32 and float64 pass unchanged."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def eager_scores(query, key, beta, mask=None):
    """Scores `beta q kᵀ` in float32 (or float64), `-inf` where `mask` is False.

    Args:
        query, key (`torch.Tensor` of shape `(..., H, N, Y)`).
        beta (`float` or `torch.Tensor` of shape `(H,)` or `(1,)`, in float32 for half-precision queries).
        mask (`torch.BoolTensor`, *optional*): broadcastable to `(..., N, N)`, True where the row may attend.

    Returns:
        `torch.Tensor` of shape `(..., H, N, N)`.
    """
    if isinstance(beta, torch.Tensor):
        beta = beta[:, None, None]
    scores = at_least_float32((beta * query).to(key.dtype) @ key.transpose(-1, -2))
    return scores if mask is None else scores.masked_fill(~mask.unsqueeze(-3), float("-inf"))


def eager_attention_weights(query, key, beta, mask=None):
    """A, shape `(..., H, N, N)`; a row without any allowed key is zero. Arguments as for [`eager_scores`]."""
    scores = eager_scores(query, key, beta, mask)
    if mask is None:
        return scores.softmax(-1)
    # a row of only -inf would give NaN, in the value and, through `where`, in the gradient
    idle = ~mask.any(-1, keepdim=True).unsqueeze(-3)
    return scores.masked_fill(idle, 0.0).softmax(-1).masked_fill(~mask.unsqueeze(-3), 0.0)


def eager_logsumexp(query, key, beta, mask=None):
    """Row logsumexp of the scores, shape `(..., H, N)`; 0 for a row without any allowed key."""
    scores = eager_scores(query, key, beta, mask)
    if mask is None:
        return scores.logsumexp(-1)
    idle = ~mask.any(-1, keepdim=True).unsqueeze(-3)
    return scores.masked_fill(idle, 0.0).logsumexp(-1).masked_fill(idle.squeeze(-1), 0.0)


def eager_attention(query, key, beta, mask=None, weights=None) -> AttentionTerms:
    """Both terms of the gradient through the whole N×N matrix, `weights` (computed when None).

    Other arguments as for [`eager_scores`].
    """
    if weights is None:
        weights = eager_attention_weights(query, key, beta, mask)
    weights = weights.to(query.dtype)
    return AttentionTerms(weights @ key, weights.transpose(-1, -2) @ query)
