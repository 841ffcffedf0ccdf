"""The options of a run as others may read them: in results, cards, trackers and pushed states."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..utils.files import LOCAL_PATH
from .arguments import CommonArguments

PATHS = ("output_dir", "train_dir", "validation_dir")
PATHS_OR_NAMES = ("dataset_name", "model_name_or_path", "config_name", "resume_from_checkpoint")
_WORDS = ("demo", "mnist5k", "latest")  # what these options take beside paths and repositories


def is_local_path(value: str) -> bool:
    """Whether an option names a place on this machine, not a repository of the Hub."""
    if value in _WORDS:
        return False
    return value.startswith(("/", ".", "~")) or "\\" in value or value.count("/") > 1 or Path(value).exists()


def public_options(args: CommonArguments) -> dict[str, Any]:
    """All options and their values; a path of this machine, which nobody else can use, is told as being one."""
    options = asdict(args)
    for name in (*PATHS, *PATHS_OR_NAMES):
        value = options.get(name)
        if value is not None and (name in PATHS or is_local_path(value)):
            options[name] = LOCAL_PATH
    # what JSON has no number for
    return {name: str(value) if value in (math.inf, -math.inf) else value for name, value in options.items()}
