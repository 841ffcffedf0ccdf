"""The folder of a run: what is in it, and what a new run may delete."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from accelerate.logging import get_logger

from ..errors import UserError
from .arguments import CommonArguments
from .checkpoints import BEST, SavedState, state_folders
from .monitoring import LOG

logger = get_logger(__name__)
_RUN_FILES = (
    "README.md", "all_results.json", "config.json", "model.safetensors", "preprocessor_config.json", BEST, LOG
)  # fmt: skip


def check_output_dir(args: CommonArguments, state: SavedState | None) -> None:
    """See that no other run is lost in the folder.

    `--resume_from_checkpoint latest` without a state starts anew, with a warning: a job that is killed before its
    first state and started again with the same words goes on. It is refused where there is a finished model.

    Raises:
        UserError: when it is a file, or not empty while the run is neither resumed nor told to overwrite.
    """
    folder = Path(args.output_dir)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output_dir {folder} is a file, not a folder")
    if state or args.overwrite_output_dir or not folder.exists() or not any(folder.iterdir()):
        starts = bool(args.resume_from_checkpoint) and not state
    elif args.resume_from_checkpoint and not (folder / "model.safetensors").exists():
        starts = True
    elif args.resume_from_checkpoint:
        raise UserError(f"resume_from_checkpoint: there is no saved state in {folder}, but a finished model")
    else:
        raise UserError(
            f"output_dir {folder} already holds files of another run: choose another folder, "
            "or pass --overwrite_output_dir or --resume_from_checkpoint latest"
        )
    if starts:
        logger.warning(f"resume_from_checkpoint: there is no saved state in {folder}, the run starts anew")


def prepare_output_dir(folder: Path, resumed: bool, pictures: Sequence[str]) -> None:
    """Make the folder of the run; without the files of an earlier one, unless it is resumed.

    `pictures` are names of files in its folder `samples`.

    Raises:
        UserError: when the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for unfinished in (
            *folder.glob(".saving-*"),
            *folder.glob(".pushing-*"),
            *folder.glob(".deleting-checkpoint-*"),
        ):
            shutil.rmtree(unfinished)
        if not resumed:
            _delete_run(folder, pictures)
    except OSError as error:
        raise UserError(f"output_dir {folder} cannot be written: {error.strerror}") from error


def _delete_run(folder: Path, pictures: Sequence[str]) -> None:
    """Delete what a run writes, and nothing else that may stand in the folder."""
    for name in [*_RUN_FILES, *(f"samples/{name}" for name in pictures)]:
        (folder / name).unlink(missing_ok=True)
    for state in [*state_folders(folder), *folder.glob("samples/step-*")]:
        shutil.rmtree(state)
