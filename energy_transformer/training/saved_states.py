"""Saved states of a run: `checkpoint-STEP` folders, found, verified and ranked.

A state is a manifest with the size and SHA-256 of each file and a SHA-256 of its own, and the files of [`state_files`].
The manifest comes from the same hand as they do: it finds damage, not malice. Nothing here runs what a state holds.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from accelerate import Accelerator
from accelerate.logging import get_logger

from ..utils.errors import UserError
from ..utils.files import digest
from .agreement import main_decides, require_agreement
from .publishing import pull_state

logger = get_logger(__name__)
MANIFEST = "manifest.json"
PROCESS_FILE = "process_{}.json"
OPTIONS_FILE = "options.json"
_KINDS_OF_OPTIONS = {"task": str, "options": dict, "model": dict, "overridden": list}
FORMAT = 3  # states without a number are the first, which held pickles
Layout = Literal["whole", "sharded", "deepspeed"]
_FORMATS = {"sharded": "FSDP's sharded format", "deepspeed": "DeepSpeed's own format"}


class OldStateError(UserError):
    """A state of an earlier version of the package."""


@dataclass
class SavedState:
    """A folder whose manifest could be read.

    Attributes:
        written: a count that orders the states by when they were written, which their steps do not where a run went
            on from an earlier one.
        layout: "whole" where weights and optimizer are plain tensors, otherwise whose format they have.
        metric: the held-out figure at that step, None where it was not measured.
        held_out: tells the images and the options of that measurement from others.
        run: what a run must share with that of the state to go on from it.
        branch: names the run between one start and the next.
        branches: those that this one goes on from, each with the step at which it was left.
        files: size and SHA-256 of each file.
    """

    folder: Path
    step: int
    written: int
    num_processes: int
    layout: Layout
    metric: float | None
    held_out: str
    run: dict[str, Any]
    run_id: str
    branch: str
    branches: dict[str, int]
    files: dict[str, dict[str, Any]] = field(repr=False)

    @classmethod
    def read(cls, folder: Path) -> "SavedState":
        """Raises:
        UserError: when there is no manifest, it is damaged, or it is of an earlier version.
        """
        try:
            text = (folder / MANIFEST).read_text()
            manifest = json.loads(text)
            if "sha256" in manifest and text != sealed(manifest):
                raise UserError(f"{folder} is damaged: {MANIFEST} has other bytes than were written")
            version = manifest.pop("format", 1)
            if version != FORMAT:
                raise OldStateError(
                    f"{folder} was saved in format {version}, and this version of energy-transformer reads format "
                    f"{FORMAT} alone: the first held pickles, which can run code; go on with the version that saved it"
                )
            manifest.pop("sha256")
            state = cls(folder, **manifest)
            state._check()
        except FileNotFoundError as error:
            raise UserError(
                f"{folder} is not a saved state (a folder checkpoint-STEP): it has no {MANIFEST}"
            ) from error
        except UserError:
            raise
        except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            raise UserError(f"{folder} is damaged: {MANIFEST} cannot be read") from error
        return state

    def _check(self) -> None:
        """Raises:
        ValueError: when the manifest holds something else than this class says, or names files outside the folder.
        """
        kinds = {"folder": Path, "metric": (float, int, type(None)), "run": dict, "branches": dict, "files": dict}
        numbers = dict.fromkeys(("step", "written", "num_processes"), int)
        for each in fields(self):
            kind = {**kinds, **numbers}.get(each.name, str)
            if not isinstance(getattr(self, each.name), kind):
                raise ValueError(each.name)
        for name, file in self.files.items():
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or not isinstance(file["size"], int):
                raise ValueError(name)

    def verify(self) -> None:
        """Raises:
        UserError: when a file is missing or has other bytes than were written.
        """
        for process in range(self.num_processes):
            if PROCESS_FILE.format(process) not in self.files:
                raise UserError(f"{self.folder} is damaged: there is no file of process {process}")
        for name, expected in self.files.items():
            path = self.folder / name
            try:
                size = path.stat().st_size if path.is_file() else 0
                if size != expected["size"]:
                    raise UserError(f"{self.folder} is damaged: {name} has {size} of {expected['size']} bytes")
                if digest(path) != expected["sha256"]:
                    raise UserError(f"{self.folder} is damaged: {name} has other bytes than were written")
            except OSError as error:
                raise UserError(f"{self.folder} is damaged: {name}: {error.strerror}") from error

    def options(self) -> dict[str, Any]:
        """What [`resumption.record_of`] said of the run.

        Raises:
            UserError: when it cannot be read.
        """
        try:
            record = json.loads((self.folder / OPTIONS_FILE).read_text())
            if not all(isinstance(record[name], kind) for name, kind in _KINDS_OF_OPTIONS.items()):
                raise ValueError(OPTIONS_FILE)
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise UserError(f"{self.folder} is damaged: {OPTIONS_FILE} cannot be read") from error
        return record

    def require_trust(self, is_trusted: bool) -> None:
        """Raises:
        UserError: when reading it could run code of whoever wrote it, and the user has not said to trust them.
        """
        if self.layout != "whole" and not is_trusted:
            raise UserError(
                f"{self.folder} is in {_FORMATS.get(self.layout, 'an unknown format')}, reading which can run code "
                "that its author has put there: pass --trust_state if you trust them"
            )


def sealed(manifest: dict[str, Any]) -> str:
    """The text of a manifest, with a checksum of all the rest of it."""
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    checksum = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, "sha256": checksum}, indent=1)


def state_folders(output_dir: Path) -> list[Path]:
    return [path for path in output_dir.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]


def saved_states(output_dir: Path, warn: bool = False) -> list[SavedState]:
    """Those whose manifest can be read, in the order in which they were written."""
    states = []
    for folder in state_folders(output_dir):
        try:
            states.append(SavedState.read(folder))
        except UserError as error:
            if warn:
                logger.warning(f"passed over: {error}")
    return sorted(states, key=lambda state: state.written)


def first_whole(states: Iterable[SavedState], told: str = "") -> SavedState | None:
    """The first that has the bytes that were written; a warning that begins with `told` names each before it."""
    for state in states:
        try:
            state.verify()
        except UserError as error:
            logger.warning(f"{told}passed over: {error}")
        else:
            return state
    return None


def newest_state(output_dir: Path) -> Path | None:
    """The folder that was written last, None where there is none."""
    states = saved_states(output_dir)
    return states[-1].folder if states else None


def holds_run(output_dir: Path, run_id: str) -> bool:
    """Whether a state of this run is in the folder."""
    return any(state.run_id == run_id for state in saved_states(output_dir))


def find_state(output_dir: Path, resume_from_checkpoint: str | None, trust_state: bool = False) -> SavedState | None:
    """The saved state to go on from, verified; None for a new run, also where `latest` finds no state at all.

    Raises:
        UserError: when the state that is named is none, is damaged, of an earlier version or not to be trusted, or
            when all states are damaged.
    """
    if not resume_from_checkpoint:
        return None
    try:
        if resume_from_checkpoint == "latest":
            return _latest_state(output_dir, trust_state)
        folder = Path(resume_from_checkpoint)
        state = SavedState.read(folder if folder.exists() else pull_state(resume_from_checkpoint))
        state.require_trust(trust_state)
        state.verify()
        return state
    except UserError as error:
        raise UserError(f"resume_from_checkpoint: {error}") from error


def _latest_state(output_dir: Path, trust_state: bool) -> SavedState | None:
    state = first_whole(reversed(saved_states(output_dir, warn=True)))
    if state:
        state.require_trust(trust_state)
        return state
    damaged = sorted(state_folders(output_dir))
    for folder in damaged:
        try:
            SavedState.read(folder)
        except OldStateError:
            raise
        except UserError:
            pass
    if damaged:
        names = ", ".join(folder.name for folder in damaged)
        raise UserError(f"every saved state in {output_dir} is damaged: {names}")
    return None


def choose_state(
    accelerator: Accelerator, output_dir: Path, resume_from_checkpoint: str | None, trust_state: bool
) -> SavedState | None:
    """[`find_state`] of the main process; every process sees that it reads the same one.

    Raises:
        UserError: that of the main process, or when a process does not see the state that it has chosen.
    """

    def choose() -> str | None:
        state = find_state(output_dir, resume_from_checkpoint, trust_state)
        if state is None:
            return None
        is_local = resume_from_checkpoint == "latest" or Path(resume_from_checkpoint or "").exists()
        if is_local:
            return str(state.folder)
        # of the Hub: the commit that the main process has, whatever is pushed meanwhile
        return f"{(resume_from_checkpoint or '').partition('@')[0]}@{state.folder.parent.name}"

    chosen = main_decides(accelerator, choose)
    if chosen is None:
        return None
    try:
        folder = Path(chosen)
        state = SavedState.read(folder if folder.exists() else pull_state(chosen))
        found = f"checksum {digest(state.folder / MANIFEST)[:12]}"
    except (UserError, OSError):
        state, found = None, "none that can be read"
    require_agreement(accelerator, {f"bytes of the state {chosen}": found})
    return state
