"""The folder of a run: what is in it, and what a new run may delete."""

import errno
import shutil
from collections.abc import Sequence
from pathlib import Path

from accelerate.logging import get_logger
from filelock import FileLock, Timeout

from ..utils.errors import UserError
from ..utils.files import SAVING, remove
from .arguments import CommonArguments
from .checkpoints import BEST
from .monitoring import LOG
from .resumption import PATHS_FILE
from .saved_states import SavedState, holds_run, state_folders

logger = get_logger(__name__)
LOCK = ".lock"
_PATIENCE = 6.0  # seconds; the loading processes of a run that was killed hold its lock for up to five
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
_locks: dict[Path, FileLock] = {}  # of this process, in which one run takes over from another
_RUN_FILES = (
    "README.md", "all_results.json", "config.json", "model.safetensors", "preprocessor_config.json", BEST, LOG,
    PATHS_FILE,
)  # fmt: skip
_ON_THE_WAY = (LOG, PATHS_FILE)  # what a run leaves that has saved nothing yet


class RunLock:
    """Lets one run alone work in a folder, as long as its process lives.

    The lock is one of the operating system on the file `.lock`, on NFS too where its server has locks; where there are
    none, a warning says so.
    """

    def __init__(self) -> None:
        self._lock: FileLock | None = None
        self._made: Path | None = None  # the folder, if there was none

    def acquire(self, folder: Path) -> None:
        """Raises:
        UserError: when another run has it, or the folder is a file or cannot be written.
        """
        if folder.exists() and not folder.is_dir():
            raise UserError(f"output_dir {folder} is a file, not a folder")
        path = folder / LOCK
        try:
            self._made = None if folder.exists() else folder
            folder.mkdir(parents=True, exist_ok=True)
            lock = _locks.setdefault(path.resolve(), FileLock(path))
            if not lock.is_locked:
                lock.acquire(timeout=_PATIENCE)
            self._lock = lock
        except Timeout as error:
            raise UserError(
                f"output_dir {folder} is in use by another run: wait for its end, or choose another folder"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise UserError(f"output_dir {folder} cannot be written: {error.strerror or error}") from error
            logger.warning(f"output_dir {folder} lies where files cannot be locked: see that no other run writes there")

    def release(self) -> None:
        if self._lock is not None:
            self._lock.release(force=True)
            self._lock = None

    def give_up(self) -> None:
        """Release it before anything was written, and leave no folder that was not there."""
        if self._made is not None and self._lock is not None and {path.name for path in self._made.iterdir()} == {LOCK}:
            (self._made / LOCK).unlink()
            self._made.rmdir()
        self.release()


def continues_in(folder: Path, state: SavedState | None) -> bool:
    """Whether the run of `state` is that of the folder, which keeps its files then."""
    return state is not None and holds_run(folder, state.run_id)


def check_output_dir(args: CommonArguments, state: SavedState | None) -> None:
    """See that no other run is lost in the folder, nor mixed with this one.

    `--resume_from_checkpoint` where the folder holds no state starts there, `latest` anew with a warning: a job that is
    killed before its first state and started again with the same words goes on. It is refused where there are files
    that the run would replace.

    Raises:
        UserError: when it is not empty while the run is neither resumed nor told to overwrite.
    """
    folder = Path(args.output_dir)
    if not args.overwrite_output_dir and folder.exists() and _holds_files(folder) and not continues_in(folder, state):
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


def _holds_files(folder: Path) -> bool:
    return any(path.name not in (LOCK, PATHS_FILE) for path in folder.iterdir())


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
