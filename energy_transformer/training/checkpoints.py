"""The folder of a run: what is in it, saved states and going on from one."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError

from ..errors import UserError
from .arguments import CommonArguments
from .loaders import TrainLoader
from .publishing import pull_state

_PROGRESS = "progress.json"
_LOADER = "loader_{}.bin"
_KEPT = ("seed", "dataset_name", "train_dir")
_RUN_FILES = ("README.md", "all_results.json", "config.json", "model.safetensors", "preprocessor_config.json")


def saved_states(output_dir: Path) -> list[Path]:
    """The complete `checkpoint-STEP` folders, oldest first."""
    states = [path.parent for path in output_dir.glob(f"checkpoint-*/{_PROGRESS}") if _step(path.parent) is not None]
    return sorted(states, key=lambda path: _step(path) or 0)


def _step(folder: Path) -> int | None:
    suffix = folder.name.removeprefix("checkpoint-")
    return int(suffix) if suffix.isdigit() else None


def check_output_dir(args: CommonArguments) -> None:
    """See that no other run is lost in the folder.

    Raises:
        UserError: when it is a file, or not empty while the run is neither resumed nor told to overwrite.
    """
    folder = Path(args.output_dir)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output_dir {folder} is a file, not a folder")
    may_write = args.resume_from_checkpoint or args.overwrite_output_dir
    if folder.exists() and any(folder.iterdir()) and not may_write:
        raise UserError(
            f"output_dir {folder} already holds files of another run: choose another folder, "
            "or pass --overwrite_output_dir or --resume_from_checkpoint latest"
        )


def prepare_output_dir(args: CommonArguments, pictures: Sequence[str]) -> None:
    """Make the folder of the run; without the files of an earlier one, unless it is resumed.

    `pictures` are names of files in its folder `samples`.

    Raises:
        UserError: when the folder cannot be written.
    """
    folder = Path(args.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not args.resume_from_checkpoint:
            _delete_run(folder, pictures)
    except OSError as error:
        raise UserError(f"output_dir {folder} cannot be written: {error.strerror}") from error


def _delete_run(folder: Path, pictures: Sequence[str]) -> None:
    """Delete what a run writes, and nothing else that may stand in the folder."""
    for name in [*_RUN_FILES, *(f"samples/{name}" for name in pictures)]:
        (folder / name).unlink(missing_ok=True)
    for state in [*saved_states(folder), *folder.glob(".saving-*"), *folder.glob(".pushing-*")]:
        shutil.rmtree(state)


def find_state(args: CommonArguments) -> Path | None:
    """The saved state to go on from, None for a new run.

    Raises:
        UserError: when there is no such state.
    """
    if not args.resume_from_checkpoint:
        return None
    if args.resume_from_checkpoint != "latest":
        folder = Path(args.resume_from_checkpoint)
        if not folder.exists():
            folder = pull_state(args.resume_from_checkpoint)
        if not (folder / _PROGRESS).is_file():
            raise UserError(f"resume_from_checkpoint: {folder} is not a saved state (a folder checkpoint-STEP)")
        return folder
    states = saved_states(Path(args.output_dir))
    if not states:
        raise UserError(f"resume_from_checkpoint: there is no saved state in {args.output_dir}")
    return states[-1]


def save_state(
    accelerator: Accelerator, args: CommonArguments, step: int, images_per_step: int, loader: TrainLoader
) -> None:
    """Write `checkpoint-STEP` under a temporary name and move it into place; then delete the oldest ones."""
    folder = Path(args.output_dir)
    temporary, final = folder / f".saving-{step}", folder / f"checkpoint-{step}"
    if accelerator.is_main_process and temporary.exists():
        shutil.rmtree(temporary)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    torch.save(loader.state_dict(), temporary / _LOADER.format(accelerator.process_index))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        kept = {name: getattr(args, name) for name in _KEPT}
        progress = {
            "step": step,
            "images_per_step": images_per_step,
            "num_processes": accelerator.num_processes,
            **kept,
        }
        (temporary / _PROGRESS).write_text(json.dumps(progress))
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        if args.checkpoints_total_limit:
            for old in saved_states(folder)[: -args.checkpoints_total_limit]:
                shutil.rmtree(old)
    accelerator.wait_for_everyone()


def load_state(
    accelerator: Accelerator, args: CommonArguments, state: Path, images_per_step: int, loader: TrainLoader
) -> int:
    """Restore a saved state; returns the optimizer steps it had done.

    The number of processes may be another than that which saved it, if the images of a step are as many and the
    loader can take its place up.

    Raises:
        UserError: when it is damaged, or of a run with other data, another model, seed or batch.
    """
    try:
        progress = json.loads((state / _PROGRESS).read_text())
        _check_same_run(args, state, progress, images_per_step)
        accelerator.load_state(str(state))
        process = min(accelerator.process_index, progress["num_processes"] - 1)
        loader.load_state_dict(torch.load(state / _LOADER.format(process), weights_only=True))
    except (OSError, RuntimeError, KeyError, EOFError, json.JSONDecodeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"resume_from_checkpoint: {state} is damaged or of another model: {reason}") from error
    accelerator.step = 0  # of the accumulation, which is complete whenever a state is saved
    return progress["step"]


def _check_same_run(args: CommonArguments, state: Path, progress: dict, images_per_step: int) -> None:
    for name in _KEPT:
        if progress[name] != getattr(args, name):
            raise UserError(
                f"resume_from_checkpoint: {state} was saved with {name}={progress[name]}, got {getattr(args, name)}"
            )
    if progress["images_per_step"] != images_per_step:
        raise UserError(
            f"resume_from_checkpoint: {state} was saved with {progress['images_per_step']} images a step, got "
            f"{images_per_step}: per_device_train_batch_size x processes x gradient_accumulation_steps must stay"
        )
