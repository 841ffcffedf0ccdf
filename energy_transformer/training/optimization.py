"""Parameter groups and the learning-rate schedule."""

import re

import torch
from transformers import PreTrainedModel
from transformers.optimization import get_scheduler

from .arguments import CommonArguments


def is_decayed(name: str, parameter: torch.nn.Parameter) -> bool:
    """Weight matrices and memories are; biases, norms, betas, step sizes, tokens and positions are not."""
    return parameter.ndim >= 2 and not name.endswith(("_token", "position_embeddings", ".bq", ".bk", ".step_size"))


def layer_depth(name: str, num_layers: int) -> int:
    """0 for the embeddings, 1 to `num_layers` for the blocks, and one more for the head."""
    if ".embeddings." in name:
        return 0
    block = re.search(r"\.layers\.(\d+)\.", name)
    return int(block[1]) + 1 if block else num_layers + 1


def build_optimizer(model: PreTrainedModel, args: CommonArguments) -> torch.optim.AdamW:
    """AdamW with weight decay on the parameters of [`is_decayed`] alone.

    With `layer_decay` d below 1 the learning rate is scaled by d for each layer between a parameter and the head
    (Clark et al. 2020, ELECTRA; Bao et al. 2021, BEiT).
    """
    num_layers = model.config.num_hidden_layers
    groups: dict[tuple[bool, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = args.layer_decay ** (num_layers + 1 - layer_depth(name, num_layers))
            groups.setdefault((is_decayed(name, parameter), scale), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": group, "weight_decay": args.weight_decay if decayed else 0.0, "lr": args.learning_rate * scale}
            for (decayed, scale), group in sorted(groups.items(), key=lambda item: item[0], reverse=True)
        ],
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
    )


def build_schedule(optimizer, args: CommonArguments, total_steps: int):
    """Linear warm-up, then `lr_scheduler_type`: half a cosine from `learning_rate` to `min_learning_rate`, a line to 0,
    or no change; in optimizer steps."""
    warmup = args.num_warmup_steps or round(args.warmup_ratio * total_steps)
    if args.lr_scheduler_type != "cosine":
        return get_scheduler(args.lr_scheduler_type, optimizer, warmup, total_steps)
    least = {"min_lr_rate": args.min_learning_rate / args.learning_rate}
    return get_scheduler("cosine_with_min_lr", optimizer, warmup, total_steps, scheduler_specific_kwargs=least)
