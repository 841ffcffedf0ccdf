"""How the tokens of an image lie to each other along the descent."""

from collections.abc import Sequence

import torch

from .pictures import Picture, draw_spread, spread_note
from .recording import DescentRecord


def effective_rank(tokens: torch.Tensor) -> torch.Tensor:
    """The number of directions that tokens (..., N, D) spread over, (...): exp of the entropy of the shares of the
    singular values (Roy and Vetterli 2007), from 1, all tokens on one line, to min(N, D)."""
    values = torch.linalg.svdvals(tokens.float())
    shares = values / values.sum(-1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)
    return torch.special.entr(shares).sum(-1).exp()


def mean_angle(tokens: torch.Tensor) -> torch.Tensor:
    """Mean angle between two different tokens of (..., N, D) in degrees, (...); 90 is what random directions have."""
    unit = torch.nn.functional.normalize(tokens.float(), dim=-1)
    angles = (unit @ unit.mT).clamp(-1, 1).acos().rad2deg()
    count = tokens.shape[-2]
    others = ~torch.eye(count, dtype=torch.bool, device=tokens.device)
    return torch.where(others, angles, 0.0).sum((-2, -1)) / max(count * (count - 1), 1)


def geometry_figure(record: DescentRecord) -> Picture:
    """Effective rank and mean angle of the normalized tokens, and how far each step moves them, over the steps.

    Values:
        effective_rank, mean_angle: (B, T + 1).
        changes: |g' − g| / |g| of each step, (B, T).
    """
    rank, angle = effective_rank(record.tokens).T, mean_angle(record.tokens).T
    changes = record.changes
    picture = Picture(8.4, 2.9, {"effective_rank": rank, "mean_angle": angle, "changes": changes})
    left, middle, right = picture.subplots(1, 3)
    draw_spread(left, rank, "tab:green")
    left.set_title("Directions that the tokens span", fontsize=9)
    left.set_ylabel(f"effective rank (at most {min(record.tokens.shape[-2:])})", fontsize=8)
    draw_spread(middle, angle, "tab:purple")
    middle.set_title("Angle between two tokens", fontsize=9)
    middle.set_ylabel("mean angle in degrees", fontsize=8)
    draw_changes(right, changes)
    picture.supxlabel(spread_note(len(record.images)), fontsize=6, color="0.4", x=0.99, ha="right")
    return picture


def draw_changes(axis, changes: torch.Tensor, shown: Sequence[int] = ()) -> None:
    """How far each step moves the tokens, (B, T), at the step that it leads to; red dots at the steps `shown`."""
    if not changes.shape[1]:
        axis.text(0.5, 0.5, "no step", ha="center", va="center", transform=axis.transAxes, fontsize=8)
        return
    before = torch.full_like(changes[:, :1], float("nan"))
    draw_spread(axis, torch.cat([before, changes], 1) * 100, "tab:blue", shown=shown)
    axis.set_ylim(bottom=0)
    axis.set_title("How far a step moves the tokens", fontsize=9)
    axis.set_ylabel("change in % of their length", fontsize=8)
