"""What a resumed run takes from the saved one, and which of its options may be others.

Each state records the options that it was made with. A run that goes on from it must have the same, where they decide
what the steps do: otherwise the card would tell of options that no step has had.
"""

import contextlib
import json
import math
import shlex
import sys
from collections.abc import Collection
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from ..utils.errors import UserError
from ..utils.files import LOCAL_PATH, write_json
from .arguments import CommonArguments
from .publishing import pull_state
from .records import PATHS, PATHS_OR_NAMES, is_local_path, public_options
from .saved_states import SavedState, holds_run, newest_state

PATHS_FILE = "paths.json"  # in the output folder, and never pushed
_NEVER_SAVED = ("hub_token", "resume_from_checkpoint", "overwrite_output_dir", "override_saved_options", "trust_state")
# what a state of another machine has no say in: where this run stands, what it is told to, and what the machine can do
_OF_THE_MACHINE = (
    "output_dir", "push_to_hub", "hub_model_id", "hub_private_repo", "hub_strategy", "report_to", "with_tracking",
    "cpu", "dataloader_num_workers", "max_cached_bytes", "ddp_timeout",
)  # fmt: skip
_FIXED = (
    "seed", "dataset_name", "dataset_config_name", "train_val_split", "max_train_samples", "streaming",
    "shuffle_buffer_size", "layer_decay", "freeze_backbone",
)  # fmt: skip
_CHANGEABLE = (
    "learning_rate", "lr_scheduler_type", "min_learning_rate", "num_warmup_steps", "warmup_ratio", "weight_decay",
    "adam_beta1", "adam_beta2", "max_grad_norm", "ema_decay", "horizontal_flip", "random_resized_crop", "color_jitter",
    "mask_ratio", "mask_replace_probability", "mask_patch_size", "label_smoothing", "mixup_alpha", "cutmix_alpha",
)  # fmt: skip
_NOT_OF_THE_MODEL = (
    "id2label",
    "label2id",
    "problem_type",
    "transformers_version",
    "architectures",
    "auto_map",
    "dtype",
)


Record = dict[str, Any]  # of a state: its `task`, `options`, fields of the `model`, and what was `overridden` before


def record_of(args: CommonArguments, config: PreTrainedConfig, saved: Record | None, step: int) -> Record:
    """What the states of this run record of its options, and of those that were others until `step` in `saved`."""
    before = saved["overridden"] if saved else []
    changed = differences(args, config, saved) if saved else {}
    overridden = [*before, {"step": step, "options": changed}] if changed else before
    model = {name: value for name, value in config.to_dict().items() if name not in _NOT_OF_THE_MODEL}
    options = {name: value for name, value in public_options(args).items() if name not in _NEVER_SAVED}
    if args.global_batch_size:  # from which it follows, for another number of processes another one
        options.pop("gradient_accumulation_steps")
    return _plain({"task": args.task, "options": options, "model": model, "overridden": overridden})


def options_of(state: SavedState) -> Record:
    """Raises:
    UserError: when they cannot be read.
    """
    try:
        return state.options()
    except UserError as error:
        raise UserError(f"resume_from_checkpoint: {error}") from error


def differences(args: CommonArguments, config: PreTrainedConfig, saved: Record) -> dict[str, tuple[Any, Any]]:
    """The options and the fields of the model that are not what they were, with both values."""
    options, now = saved["options"], _plain(public_options(args))
    names = [name for name in (*_FIXED, *_CHANGEABLE) if name in options and name in now]
    found = {name: (options[name], now[name]) for name in names if options[name] != now[name]}
    model = _plain(config.to_dict())
    fields_of_model = {
        name: (value, model[name])
        for name, value in saved["model"].items()
        if name in model and value != model[name] and name not in found
    }
    return {**found, **fields_of_model}


def check_options(args: CommonArguments, config: PreTrainedConfig, folder: Path, saved: Record) -> None:
    """See that the run goes on as it was begun in the state of `folder`.

    Raises:
        UserError: when options are others than those of the state, unless they may be and were asked for.
    """
    changed = differences(args, config, saved)
    fixed = [name for name in changed if name in _FIXED]
    if "ema_decay" in changed and None in changed["ema_decay"]:  # there is an average to go on with, or there is none
        fixed.append("ema_decay")
    if not changed or (args.override_saved_options and not fixed):
        return
    shown = {name: changed[name] for name in (fixed if args.override_saved_options else changed)}
    told = "; ".join(f"{name} was {_shown(old)}, now {_shown(new)}" for name, (old, new) in shown.items())
    way = "pass --override_saved_options to go on with the new ones, or leave them out"
    if fixed:
        way = f"start a new run for another {' or '.join(fixed)}"
    raise UserError(f"resume_from_checkpoint: {folder} was saved with other options: {told} ({way})")


def finished_results(args: CommonArguments, state: SavedState, total_steps: int) -> dict[str, Any] | None:
    """What stands in `all_results.json` of the output folder, if the run of `state` has ended there already.

    Raises:
        UserError: when it has gone on for more steps than it is to have now.
    """
    folder, results, ended = Path(args.output_dir), {}, 0
    if holds_run(folder, state.run_id):
        with contextlib.suppress(OSError, KeyError, TypeError, ValueError):
            results = json.loads((folder / "all_results.json").read_text())
            ended = int(results["train_steps"])
    done = max(state.step, ended if args.resume_from_checkpoint == "latest" else 0)
    if done > total_steps:
        raise UserError(
            f"resume_from_checkpoint: {done} steps are done already, and the run is to have {total_steps}: give at "
            "least as many max_train_steps, or another output_dir for a shorter run"
        )
    is_finished = done == total_steps == ended and (folder / "model.safetensors").is_file()
    return {name: math.nan if value is None else value for name, value in results.items()} if is_finished else None


def last_loss(log: Path, step: int) -> float | None:
    """The loss that was reported at a step, for a run that was stopped between it and its results."""
    try:
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        return next((line["loss"] for line in reversed(lines) if line["step"] == step and "loss" in line), None)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def saved_options(
    resume_from_checkpoint: str, output_dir: str | None, arguments_class: type[CommonArguments]
) -> dict[str, Any] | None:
    """The options that the state was saved with; None where `latest` finds no state.

    Paths that the state does not tell are [`LOCAL_PATH`].

    Raises:
        UserError: when there is no such state, or it is one of another task.
    """
    try:
        folder, is_ours = _state_folder(resume_from_checkpoint, output_dir)
        if folder is None:
            return None
        record = SavedState.read(folder).options()
    except UserError as error:
        raise UserError(f"resume_from_checkpoint: {error}") from error
    if record["task"] != arguments_class.task:
        raise UserError(f"resume_from_checkpoint: {folder} is of {record['task']}, not {arguments_class.task}")
    known = {each.name for each in fields(arguments_class)} - {*_NEVER_SAVED}
    options = {name: value for name, value in record["options"].items() if name in known}
    if is_ours:
        paths = {**_known_paths(folder.parent), "output_dir": str(folder.parent)}
        return options | {name: path for name, path in paths.items() if options.get(name) == LOCAL_PATH}
    for name in (*PATHS, *PATHS_OR_NAMES):  # whatever a stranger's state says
        if options.get(name) is not None and (name in PATHS or is_local_path(options[name])):
            options[name] = LOCAL_PATH
    return {name: value for name, value in options.items() if name == "output_dir" or name not in _OF_THE_MACHINE}


def require_paths(values: dict[str, Any]) -> None:
    """Raises:
    UserError: when a path is one of another machine.
    """
    unknown = [name for name, value in values.items() if value == LOCAL_PATH]
    if unknown:
        raise UserError(
            "resume_from_checkpoint: the state does not tell the paths of the machine on which it was saved: pass "
            f"{', '.join(f'--{name}' for name in unknown)}"
        )


def keep_paths(args: CommonArguments) -> None:
    """Write down the paths that states do not tell, for a run that is resumed on this machine.

    Raises:
        UserError: when the folder cannot be written.
    """
    public = public_options(args)
    paths = {name: getattr(args, name) for name in (*PATHS, *PATHS_OR_NAMES) if public.get(name) == LOCAL_PATH}
    for name in ("output_dir", "resume_from_checkpoint"):  # one is where the file stands, the other is not saved
        paths.pop(name, None)
    try:
        write_json(Path(args.output_dir) / PATHS_FILE, {name: _absolute(path) for name, path in paths.items()})
    except OSError as error:
        raise UserError(f"output_dir {args.output_dir} cannot be written: {error.strerror}") from error


def command_of(args: CommonArguments, left_out: Collection[str] = ("hub_token",)) -> str:
    """The whole command of a run: all its options that are not their defaults."""
    words = []
    for each in fields(args):
        value, default = getattr(args, each.name), each.default
        follows = each.name == "gradient_accumulation_steps" and args.global_batch_size
        if each.name in left_out or follows or value is None or (default is not MISSING and value == default):
            continue
        if isinstance(value, list):
            words += [f"--{each.name}", *map(str, value)]
        else:
            words.append(f"--{each.name}={str(value).lower() if isinstance(value, bool) else value}")
    return f"{Path(sys.argv[0]).name} {shlex.join(words)}"


def resuming(args: CommonArguments) -> str:
    """The command that goes on from the newest state of a run, which knows the options."""
    words = ["--output_dir", args.output_dir, "--resume_from_checkpoint", "latest"]
    return f"{Path(sys.argv[0]).name} {shlex.join(words)}"


def _state_folder(resume_from_checkpoint: str, output_dir: str | None) -> tuple[Path | None, bool]:
    """The folder, and whether it is one of this machine."""
    if resume_from_checkpoint == "latest":
        return newest_state(Path(output_dir)) if output_dir else None, True
    folder = Path(resume_from_checkpoint)
    return (folder.absolute(), True) if folder.exists() else (pull_state(resume_from_checkpoint), False)


def _known_paths(output_dir: Path) -> dict[str, str]:
    try:
        paths = json.loads((output_dir / PATHS_FILE).read_text())
        return {name: path for name, path in paths.items() if isinstance(path, str)}
    except (OSError, ValueError, AttributeError):
        return {}


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _plain(value: Any) -> Any:
    """As JSON gives it back, so that both sides can be compared."""
    return json.loads(json.dumps(value, default=str))


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value)
