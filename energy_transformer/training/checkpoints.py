"""Saved states of a run: `checkpoint-STEP` folders that are complete, verified when read, and kept within a limit.

A state is written under a temporary name, with a manifest of the size and SHA-256 of each file, synced to the disk
and moved into place. All processes must see the same output folder.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from safetensors import SafetensorError
from torch.distributed.checkpoint import CheckpointException

from ..utils.errors import UserError
from ..utils.files import SAVING, digest, write_json
from .loaders import TrainLoader
from .publishing import pull_state

logger = get_logger(__name__)
MANIFEST = "manifest.json"
BEST = "best.json"
RECORD = "record"  # of the options, in what a state says of its run
_LOADER = "loader_{}.bin"
# torch.save has no exception of its own for a full disk; it may meet it in any of these
_TORCH_WRITE_FAILURES = ("inline_container", "PytorchStreamWriter", "iostream", "file write failed")


@dataclass
class SavedState:
    """A folder whose manifest could be read.

    Attributes:
        written: a count that orders the states by when they were written, which their steps do not where a run went
            on from an earlier one.
        metric: the held-out figure at that step, None where it was not measured.
        run: what a run must share with that of the state to go on from it.
        files: size and SHA-256 of each file.
    """

    folder: Path
    step: int
    written: int
    num_processes: int
    metric: float | None
    run: dict[str, Any]
    run_id: str
    files: dict[str, dict[str, Any]] = field(repr=False)

    @classmethod
    def read(cls, folder: Path) -> "SavedState":
        """Raises:
        UserError: when there is no manifest, or it is damaged.
        """
        try:
            return cls(folder, **json.loads((folder / MANIFEST).read_text()))
        except FileNotFoundError as error:
            raise UserError(
                f"{folder} is not a saved state (a folder checkpoint-STEP): it has no {MANIFEST}"
            ) from error
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{folder} is damaged: {MANIFEST} cannot be read") from error

    def verify(self) -> None:
        """Raises:
        UserError: when a file is missing or has other bytes than were written.
        """
        for name, expected in self.files.items():
            path = self.folder / name
            try:
                size = path.stat().st_size
                if size != expected["size"]:
                    raise UserError(f"{self.folder} is damaged: {name} has {size} of {expected['size']} bytes")
                if digest(path) != expected["sha256"]:
                    raise UserError(f"{self.folder} is damaged: {name} has other bytes than were written")
            except OSError as error:
                raise UserError(f"{self.folder} is damaged: {name}: {error.strerror}") from error


def state_folders(output_dir: Path) -> list[Path]:
    return [path for path in output_dir.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]


def _saved_states(output_dir: Path, warn: bool = False) -> list[SavedState]:
    """Those with a manifest, in the order in which they were written."""
    states = []
    for folder in state_folders(output_dir):
        try:
            states.append(SavedState.read(folder))
        except UserError as error:
            if warn:
                logger.warning(f"passed over: {error}")
    return sorted(states, key=lambda state: state.written)


def newest_state(output_dir: Path) -> Path | None:
    """The folder that was written last, None where there is none."""
    states = _saved_states(output_dir)
    return states[-1].folder if states else None


def holds_run(output_dir: Path, run_id: str) -> bool:
    """Whether a state of this run is in the folder."""
    return any(state.run_id == run_id for state in _saved_states(output_dir))


def find_state(output_dir: Path, resume_from_checkpoint: str | None) -> SavedState | None:
    """The saved state to go on from, verified; None for a new run, also where `latest` finds no state at all.

    Raises:
        UserError: when the state that is named is none or is damaged, or all states are damaged.
    """
    if not resume_from_checkpoint:
        return None
    if resume_from_checkpoint != "latest":
        try:
            folder = Path(resume_from_checkpoint)
            state = SavedState.read(folder if folder.exists() else pull_state(resume_from_checkpoint))
            state.verify()
        except UserError as error:
            raise UserError(f"resume_from_checkpoint: {error}") from error
        return state
    for state in reversed(_saved_states(output_dir, warn=True)):
        try:
            state.verify()
        except UserError as error:
            logger.warning(f"passed over: {error}")
        else:
            return state
    if damaged := state_folders(output_dir):
        names = ", ".join(sorted(folder.name for folder in damaged))
        raise UserError(f"resume_from_checkpoint: every saved state in {output_dir} is damaged: {names}")
    return None


def ranked_states(output_dir: Path, minimize: bool) -> list[SavedState]:
    """Those with a `metric`, the one of the least, or else the greatest, first."""
    measured = [(state.metric, state) for state in _saved_states(output_dir) if state.metric is not None]
    return [state for _, state in sorted(measured, key=lambda pair: pair[0], reverse=not minimize)]


def best_state(output_dir: Path, minimize: bool) -> SavedState | None:
    return next(iter(ranked_states(output_dir, minimize)), None)


class Checkpoints:
    """Writes and reads the saved states of one run.

    Args:
        run: what must be the same in a run that goes on from a state.
        limit: keep only so many, of which the newest and the best are never deleted.
        minimize: whether the best has the least `metric`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        output_dir: Path,
        loader: TrainLoader,
        run: dict[str, Any],
        run_id: str,
        limit: int | None,
        minimize: bool,
    ):
        self.accelerator, self.output_dir, self.loader = accelerator, output_dir, loader
        self.run, self.run_id, self.limit, self.minimize = run, run_id, limit, minimize

    def save(self, step: int, metric: float | None = None) -> bool:
        """Write `checkpoint-STEP`. Where that fails, as on a full disk, warns, leaves nothing half and is False."""
        temporary = self.output_dir / f"{SAVING}checkpoint-{step}"
        failure = None
        try:
            with self._together(temporary):
                self.accelerator.save_state(str(temporary))
                torch.save(self.loader.state_dict(), temporary / _LOADER.format(self.accelerator.process_index))
        except (OSError, RuntimeError, SafetensorError, CheckpointException) as error:
            failure = _write_failure(error)
        if not self._failed_anywhere(failure) and self.accelerator.is_main_process:
            try:
                self._finish(temporary, step, metric)
            except OSError as error:
                failure = _write_failure(error)
        if not self._failed_anywhere(failure):
            return True
        if self.accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
            reason = failure or "another process could not write"
            logger.warning(f"step {step}: the state could not be saved, the last good one is kept: {reason}")
        self.accelerator.wait_for_everyone()
        return False

    @contextlib.contextmanager
    def _together(self, temporary: Path) -> Iterator[None]:
        """The main process makes the folder before the others write into it."""
        try:
            if self.accelerator.is_main_process:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir()
        finally:
            self.accelerator.wait_for_everyone()
        yield

    def _failed_anywhere(self, failure: str | None) -> bool:
        flag = torch.tensor(float(failure is not None), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum").item())

    def _finish(self, temporary: Path, step: int, metric: float | None) -> None:
        """Add the manifest, move into place, and delete the oldest states beyond the limit."""
        states = _saved_states(self.output_dir)
        manifest = {
            "step": step,
            "written": 1 + max((state.written for state in states), default=0),
            "num_processes": self.accelerator.num_processes,
            "metric": metric,
            "run": self.run,
            "run_id": self.run_id,
            "files": {
                str(path.relative_to(temporary)): {"size": path.stat().st_size, "sha256": digest(path)}
                for path in sorted(temporary.rglob("*"))
                if path.is_file()
            },
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for path in [*temporary.rglob("*"), temporary]:
            _sync(path)
        final = self.output_dir / f"checkpoint-{step}"
        if final.exists():
            _delete(final, temporary.rename, final)
        else:
            temporary.rename(final)
        _sync(self.output_dir)
        self._rotate(final)

    def _rotate(self, newest: Path) -> None:
        best = best_state(self.output_dir, self.minimize)
        if best is not None:
            write_json(self.output_dir / BEST, {"checkpoint": best.folder.name, "metric": best.metric})
        if self.limit is None:
            return
        states = _saved_states(self.output_dir)
        kept = {newest} | ({best.folder} if best else set())
        excess = len(states) - self.limit
        for state in [state for state in states if state.folder not in kept][: max(excess, 0)]:
            _delete(state.folder)

    def load(self, state: SavedState) -> int:
        """Restore a state; returns the optimizer steps it had done.

        The number of processes may be another, if the images of a step are as many and the loader can take its place
        up.

        Raises:
            UserError: when it is of a run with other data, another model, seed or batch.
        """
        for name, value in state.run.items():
            if name != RECORD and value != self.run.get(name):  # the record is compared by `resumption`
                raise UserError(
                    f"resume_from_checkpoint: {state.folder} was saved with {name}={value}, got {self.run.get(name)}"
                )
        try:
            self.accelerator.load_state(str(state.folder))
            process = min(self.accelerator.process_index, state.num_processes - 1)
            self.loader.load_state_dict(torch.load(state.folder / _LOADER.format(process), weights_only=True))
        except (OSError, RuntimeError, KeyError, ValueError, SafetensorError, CheckpointException) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"resume_from_checkpoint: {state.folder} is of another model or run: {reason}") from error
        self.accelerator.step = 0  # of the accumulation, which is complete whenever a state is saved
        return state.step


def _write_failure(error: BaseException) -> str:
    """The reason in one line; an error that is not about writing is raised again."""
    if isinstance(error, CheckpointException):  # of sharded processes: the error of each that failed
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, RuntimeError) and not any(part in str(error) for part in _TORCH_WRITE_FAILURES):
        raise error
    return getattr(error, "strerror", None) or str(error).strip().splitlines()[0]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _delete(folder: Path, between=None, *args) -> None:
    """Take the folder out of sight at once, then delete it, so that no half of it is ever found."""
    hidden = folder.with_name(f".deleting-{folder.name}")
    shutil.rmtree(hidden, ignore_errors=True)
    folder.rename(hidden)
    if between is not None:
        between(*args)
    shutil.rmtree(hidden)
