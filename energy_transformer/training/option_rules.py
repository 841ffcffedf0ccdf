"""Which values an option may have: the tests, and what is allowed in words."""

import math
from collections.abc import Callable
from typing import Any

from ..utils.errors import UserError

# names of options, the test that a value must pass (None is never tested), and what is allowed in words
Rule = tuple[tuple[str, ...], Callable[[Any], bool], str]


def check(options: Any, rules: list[Rule]) -> None:
    """Raises:
    UserError: for the first value that is not allowed.
    """
    for names, is_allowed, allowed in rules:
        for name in names:
            value = getattr(options, name)
            if value is not None and not is_allowed(value):
                raise UserError(f"{name} must {allowed}, got {value!r}")


IS_SHARE = (lambda value: 0 < value < 1, "lie between 0 and 1, both excluded")
COMMON_RULES: list[Rule] = [
    (("train_val_split",), *IS_SHARE),
    (
        (
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "global_batch_size",
            "max_train_steps",
            "max_train_samples",
            "max_eval_samples",
            "checkpoints_total_limit",
            "num_visual_samples",
            "logging_steps",
            "sample_steps",
            "ddp_timeout",
        ),
        lambda value: value >= 1,
        "be at least 1",
    ),
    (("adam_beta1", "adam_beta2"), lambda value: 0 <= value < 1, "lie in [0, 1)"),
    (("ema_decay",), *IS_SHARE),
    (("warmup_ratio",), lambda value: value <= 1, "be at most 1"),
    (("layer_decay",), lambda value: 0 < value <= 1, "lie in (0, 1]"),
    (("seed",), lambda value: value < 2**32, "be below 2**32"),
    (("learning_rate", "num_train_epochs"), lambda value: 0 < value < math.inf, "be greater than 0"),
    (("max_grad_norm",), lambda value: value > 0, "be greater than 0, where inf stands for no clipping"),
    (
        (
            "min_learning_rate",
            "num_warmup_steps",
            "warmup_ratio",
            "weight_decay",
            "seed",
        ),
        lambda value: value >= 0,
        "not be negative",
    ),
    (
        ("eval_steps", "checkpointing_steps"),
        lambda value: value == "epoch" or (value.isdigit() and int(value) > 0),
        "be 'epoch' or a number above 0",
    ),
]
IMAGE_RULES: list[Rule] = [
    (("shuffle_buffer_size", "max_image_pixels"), lambda value: value >= 1, "be at least 1"),
    (("dataloader_num_workers", "max_cached_bytes"), lambda value: value >= 0, "not be negative"),
    (
        ("image_size", "patch_size"),
        lambda value: 1 <= len(value) <= 2 and min(value) >= 1,
        "be one number or height and width, at least 1",
    ),
]
