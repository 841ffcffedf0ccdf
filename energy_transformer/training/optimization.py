"""Parameter groups and the learning-rate schedule."""

import torch
from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup

from .arguments import CommonArguments


def is_decayed(name: str, parameter: torch.nn.Parameter) -> bool:
    """Weight matrices and memories are; biases, norms, betas, tokens and positions are not."""
    return parameter.ndim >= 2 and not name.endswith(("_token", "position_embeddings", ".bq", ".bk"))


def build_optimizer(model: torch.nn.Module, args: CommonArguments) -> torch.optim.AdamW:
    """AdamW with one group of decayed parameters and one without."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for name, p in named if is_decayed(name, p)], "weight_decay": args.weight_decay},
        {"params": [p for name, p in named if not is_decayed(name, p)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=args.learning_rate, betas=(args.adam_beta1, args.adam_beta2))


def build_schedule(optimizer, args: CommonArguments, total_steps: int):
    """Linear warm-up, then half a cosine from `learning_rate` to `min_learning_rate`, in optimizer steps."""
    warmup = args.num_warmup_steps or round(args.warmup_ratio * total_steps)
    return get_cosine_with_min_lr_schedule_with_warmup(
        optimizer, warmup, total_steps, min_lr_rate=args.min_learning_rate / args.learning_rate
    )
