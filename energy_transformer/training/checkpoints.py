"""Writes the saved states of a run: whole or not at all, and kept within a limit.

A state is written under a temporary name, with a manifest of the size and SHA-256 of each file, synced to the disk
and moved into place. All processes must see the same output folder.
"""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from safetensors import SafetensorError
from torch.distributed.checkpoint import CheckpointException

from ..utils.errors import ToldElsewhereError, UserError, first_line
from ..utils.files import SAVING, digest, write_json
from .agreement import appears, main_decides
from .saved_states import FORMAT, MANIFEST, PROCESS_FILE, SavedState, saved_states, sealed
from .state_files import StateFiles, layout_of

logger = get_logger(__name__)
BEST = "best.json"
# a full disk may be met as any of these where a library has no exception of its own for it
_WRITE_FAILURES = ("inline_container", "PytorchStreamWriter", "iostream", "file write failed")
_READ_FAILURES = (
    OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, EOFError, UnpicklingError,
    SafetensorError, CheckpointException,
)  # fmt: skip


class Checkpoints:
    """Writes and reads the saved states of one run.

    Args:
        files: what a state holds.
        run: what must be the same in a run that goes on from a state.
        held_out: tells the held-out images and how they are measured from others.
        resumed: the state that the run goes on from.
        limit: keep only so many, of which the newest and the best are never deleted.
        minimize: whether the best has the least `metric`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        output_dir: Path,
        files: StateFiles,
        run: dict[str, Any],
        held_out: str,
        resumed: SavedState | None,
        limit: int | None,
        minimize: bool,
    ):
        self.accelerator, self.output_dir, self.files = accelerator, output_dir, files
        self.run, self.held_out, self.limit, self.minimize = run, held_out, limit, minimize
        self.run_id = resumed.run_id if resumed else uuid.uuid4().hex[:8]
        self.branch = uuid.uuid4().hex[:8]
        self.branches = {**resumed.branches, resumed.branch: resumed.step} if resumed else {}

    def save(self, step: int, metric: float | None = None, rotate: bool = True) -> bool:
        """Write `checkpoint-STEP`, and delete the oldest states beyond the limit unless `rotate` is False. Where that
        fails, as on a full disk, warns, leaves nothing half and is False."""
        temporary = self.output_dir / f"{SAVING}checkpoint-{step}"
        failure = None
        try:
            with self._together(temporary):
                self.files.write(temporary)
        except (OSError, RuntimeError, SafetensorError, CheckpointException) as error:
            failure = _write_failure(error)
        if not self._failed_anywhere(failure) and self.accelerator.is_main_process:
            try:
                self._finish(temporary, step, metric)
                if rotate:
                    self._rotate(self.output_dir / f"checkpoint-{step}")
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
        """Add the manifest and move into place."""
        for process in range(self.accelerator.num_processes):
            name = PROCESS_FILE.format(process)
            if not appears(temporary / name):
                raise FileNotFoundError(errno.ENOENT, f"process {process} has written no {name} that can be seen here")
        states = saved_states(self.output_dir)
        manifest = {
            "format": FORMAT,
            "step": step,
            "written": 1 + max((state.written for state in states), default=0),
            "num_processes": self.accelerator.num_processes,
            "layout": layout_of(self.accelerator),
            "metric": metric,
            "held_out": self.held_out,
            "run": self.run,
            "run_id": self.run_id,
            "branch": self.branch,
            "branches": self.branches,
            "files": {
                str(path.relative_to(temporary)): {"size": path.stat().st_size, "sha256": digest(path)}
                for path in sorted(temporary.rglob("*"))
                if path.is_file()
            },
        }
        (temporary / MANIFEST).write_text(sealed(manifest))
        for path in [*temporary.rglob("*"), temporary]:
            _sync(path)
        final = self.output_dir / f"checkpoint-{step}"
        if final.exists():
            _delete(final, temporary.rename, final)
        else:
            temporary.rename(final)
        _sync(self.output_dir)

    def has_saved(self, step: int) -> bool:
        """Whether the state of this step is saved, by this run and not by a branch that it has left."""
        folder = self.output_dir / f"checkpoint-{step}"
        return main_decides(
            self.accelerator,
            lambda: any(state.folder == folder and self._is_past(state) for state in saved_states(self.output_dir)),
        )

    def delete(self, step: int) -> None:
        _delete(self.output_dir / f"checkpoint-{step}")

    def _rotate(self, newest: Path) -> None:
        best = next(iter(self.ranked()), None)
        if best is not None:
            write_json(self.output_dir / BEST, {"checkpoint": best.folder.name, "metric": best.metric})
        if self.limit is None:
            return
        states = saved_states(self.output_dir)
        kept = {newest} | ({best.folder} if best else set())
        excess = len(states) - self.limit
        for state in [state for state in states if state.folder not in kept][: max(excess, 0)]:
            _delete(state.folder)

    def ranked(self) -> list[SavedState]:
        """The states that this run has been at, not those of branches that it has left, where they were measured on the
        same held-out images; the best first."""
        measured = [
            (state.metric, state)
            for state in saved_states(self.output_dir)
            if state.metric is not None and state.held_out == self.held_out and self._is_past(state)
        ]
        return [state for _, state in sorted(measured, key=lambda pair: pair[0], reverse=not self.minimize)]

    def _is_past(self, state: SavedState) -> bool:
        """Whether this run has been at the state."""
        return state.branch == self.branch or state.step <= self.branches.get(state.branch, -1)

    def load(self, state: SavedState) -> int:
        """Restore a state; returns the optimizer steps it had done.

        The number of processes may be another, if the images of a step are as many.

        Raises:
            UserError: when it is of a run with other data, another model, seed or batch.
        """
        for name, value in state.run.items():
            if value != self.run.get(name):
                raise UserError(
                    f"resume_from_checkpoint: {state.folder} was saved with {name}={value}, got {self.run.get(name)}"
                )
        own_layout = layout_of(self.accelerator)
        if state.layout != own_layout and (state.layout != "whole" or own_layout == "deepspeed"):
            raise UserError(
                f"resume_from_checkpoint: {state.folder} is {state.layout}, which this launch file does not take up: "
                f"it writes {own_layout} states"
            )
        content = self._everywhere(state, lambda: self.files.read(state))
        self._everywhere(state, lambda: self.files.take_up(state, content))
        self.accelerator.step = 0  # of the accumulation, which is complete whenever a state is saved
        return state.step

    def _everywhere(self, state: SavedState, part: Callable[[], Any]) -> Any:
        """What `part` returns; where it fails on one process, all of them raise a `UserError`."""
        result = failure = cause = None
        try:
            result = part()
        except _READ_FAILURES as error:
            cause, failure = error, first_line(error)
        failures = [each for each in gather_object([failure]) if each]
        if failures:
            kind = UserError if failure else ToldElsewhereError
            reason = failure or failures[0]
            raise kind(f"resume_from_checkpoint: {state.folder} is of another model or run: {reason}") from cause
        return result


def _write_failure(error: BaseException) -> str:
    """The reason in one line; an error that is not about writing is raised again."""
    if isinstance(error, CheckpointException):  # of sharded processes: the error of each that failed
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, RuntimeError) and not any(part in str(error) for part in _WRITE_FAILURES):
        raise error
    return getattr(error, "strerror", None) or first_line(error)


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
