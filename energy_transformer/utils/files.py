"""Files and folders that are whole or not there at all, and their digests."""

import hashlib
import json
import math
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SAVING = ".saving-"  # begins the name of what is not whole yet; a process that is killed leaves it
LOCAL_PATH = "(a local path)"  # what stands for one in what is published
_BLOCK = 2**20


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A path beside `path` for a new file or folder, which takes its place when the block ends without an error.

    A file replaces an older one. A folder replaces an empty one alone: where another process was faster, the block
    ends with an `OSError`. After an error nothing new is left.
    """
    path = Path(path)
    temporary = path.with_name(f"{SAVING}{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        remove(temporary)


@contextmanager
def atomic_files(folder: Path) -> Iterator[Path]:
    """A folder for new files, which are moved into `folder` when the block ends without an error."""
    temporary = folder / f"{SAVING}{uuid.uuid4().hex[:8]}"
    temporary.mkdir()
    try:
        yield temporary
        for path in sorted(temporary.iterdir()):
            path.replace(folder / path.name)
    finally:
        remove(temporary)


def write_json(path: Path, content: Any) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(as_json(content, indent=2) + "\n")


def as_json(content: Any, indent: int | None = None) -> str:
    """JSON, in which figures that are infinite or no numbers are null, as JSON knows none."""
    return json.dumps(_without_infinities(content), indent=indent, allow_nan=False)


def _without_infinities(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _without_infinities(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_infinities(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def remove(path: Path) -> None:
    """Delete a file, or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def digest(path: Path, checksum: Any = None) -> str:
    """The SHA-256 of a file in hexadecimal, or what another `checksum` of `hashlib` makes of it."""
    checksum = checksum or hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            checksum.update(block)
    return checksum.hexdigest()
