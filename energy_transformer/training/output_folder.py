"""The folder of a run: what is in it, and what a new run may delete."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from accelerate.logging import get_logger

from ..utils.errors import UserError
from ..utils.files import SAVING, remove
from .arguments import CommonArguments
from .checkpoints import BEST
from .monitoring import LOG
from .resumption import PATHS_FILE
from .saved_states import SavedState, holds_run, state_folders

logger = get_logger(__name__)
_RUN_FILES = (
    "README.md", "all_results.json", "config.json", "model.safetensors", "preprocessor_config.json", BEST, LOG,
    PATHS_FILE,
)  # fmt: skip
_ON_THE_WAY = (LOG, PATHS_FILE)  # what a run leaves that has saved nothing yet


def continues_in(folder: Path, state: SavedState | None) -> bool:
    """Whether the run of `state` is that of the folder, which keeps its files then."""
    return state is not None and holds_run(folder, state.run_id)


def check_output_dir(args: CommonArguments, state: SavedState | None) -> None:
    """See that no other run is lost in the folder, nor mixed with this one.

    `--resume_from_checkpoint` where the folder holds no state starts there, `latest` anew with a warning: a job that is
    killed before its first state and started again with the same words goes on. It is refused where there are files
    that the run would replace.

    Raises:
        UserError: when it is a file, or not empty while the run is neither resumed nor told to overwrite.
    """
    folder = Path(args.output_dir)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output_dir {folder} is a file, not a folder")
    is_used = folder.exists() and any(path.name != PATHS_FILE for path in folder.iterdir())
    if not args.overwrite_output_dir and is_used and not continues_in(folder, state):
        replaced = [name for name in _RUN_FILES if name not in _ON_THE_WAY and (folder / name).exists()]
        if args.resume_from_checkpoint and not state and replaced:
            what = "a finished model" if "model.safetensors" in replaced else f"a file to be replaced: {replaced[0]}"
            raise UserError(f"resume_from_checkpoint: there is no saved state in {folder}, but {what}")
        if not args.resume_from_checkpoint or replaced or state_folders(folder):
            raise UserError(
                f"output_dir {folder} already holds files of another run: choose another folder, "
                "or pass --overwrite_output_dir or --resume_from_checkpoint latest"
            )
    if args.resume_from_checkpoint and not state:
        logger.warning(f"resume_from_checkpoint: there is no saved state in {folder}, the run starts anew")


def prepare_output_dir(folder: Path, resumed: bool, pictures: Sequence[str]) -> None:
    """Make the folder of the run; without the files of an earlier one, unless it is resumed there.

    `pictures` are names of files in its folder `samples`.

    Raises:
        UserError: when the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for pattern in (f"{SAVING}*", f"samples/**/{SAVING}*", ".pushing-*", ".deleting-checkpoint-*"):
            for unfinished in folder.glob(pattern):
                remove(unfinished)
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
