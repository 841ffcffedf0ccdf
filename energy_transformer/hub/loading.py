"""Models and processors from a folder or the Hub, with a one-line error for a user's mistake."""

import contextlib
import json
import logging
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import SafetensorError

from ..utils.console import without_model_bars
from ..utils.errors import UserError
from ..utils.files import write_json
from .failures import HUB_ERRORS, explain, with_retries
from .integrity import has_checksum

logger = logging.getLogger(__name__)

_MODEL_FILES = ["*.json", "*.py", "*.safetensors"]
_SUBFOLDERS = ["*/*"]
_COMPARED = ".compared.json"  # beside the files of a repository in the cache


def split_revision(name: str) -> tuple[str, str | None]:
    """`USER/REPO@REVISION` as its two parts; the revision is None where there is none."""
    repo_id, _, revision = name.partition("@")
    return repo_id, revision or None


def load_pretrained(
    auto_class: Any, name_or_path: str | Path, *, revision: str | None = None, token: str | None = None, **kwargs
) -> Any:
    """`auto_class.from_pretrained(folder, **kwargs)` of a local folder, or of one that [`pull`] brings from the Hub.

    Args:
        name_or_path: a local folder, `USER/REPO`, or `USER/REPO@REVISION`.
        revision: a branch, a tag or a commit; the head of `main` when None.
        token: for a private repository; that of the environment or the login when None.

    Raises:
        UserError: when there is nothing of that kind under that name, or the Hub cannot be reached.
    """
    folder = name_or_path = str(name_or_path)
    try:
        if not Path(name_or_path).is_dir():
            repo_id, revision_of_name = split_revision(name_or_path)
            folder = str(_download(repo_id, revision or revision_of_name, token, _MODEL_FILES, _SUBFOLDERS))
        with without_model_bars():
            return auto_class.from_pretrained(folder, **kwargs)
    except (*HUB_ERRORS, SafetensorError) as error:
        reason = explain(error, name_or_path).replace(folder, name_or_path)
        if not Path(folder).is_dir():
            reason = f"there is no such folder, and {reason}"
        raise UserError(f"cannot load {name_or_path!r} with {auto_class.__name__}: {reason}") from error


def pull(
    repo_id: str,
    revision: str | None = None,
    token: str | None = None,
    *,
    allow_patterns: list[str] | None = None,
    ignore_patterns: list[str] | None = None,
) -> Path:
    """Download a model repository into the cache of huggingface_hub and return its folder there.

    A download that was cut is tried again. Each new file is compared with the checksum that the Hub lists; a wrong
    one is removed from the cache and fetched once more. What is in the cache already is used without the Hub where it
    cannot be reached.

    Args:
        revision: a branch, a tag or a commit; the head of `main` when None.
        token: for a private repository; that of the environment or the login when None.
        allow_patterns, ignore_patterns: which files, as in `huggingface_hub.snapshot_download`.

    Raises:
        UserError: when there is no such repository or revision, or no right to it, when the Hub cannot be reached, or
            when a file is wrong twice.
    """
    try:
        return _download(repo_id, revision, token, allow_patterns, ignore_patterns)
    except HUB_ERRORS as error:
        raise UserError(f"cannot pull {repo_id!r}: {explain(error, repo_id)}") from error


def _download(repo_id, revision, token, allow_patterns, ignore_patterns) -> Path:
    for last_attempt in (False, True):
        snapshot = with_retries(
            lambda: snapshot_download(
                repo_id,
                revision=revision,
                token=token,
                allow_patterns=allow_patterns,
                ignore_patterns=ignore_patterns,
            )
        )
        wrong = _wrong_files(Path(snapshot))
        if not wrong:
            return Path(snapshot)
        for path in wrong:
            _remove_from_cache(path)
        names = ", ".join(path.relative_to(snapshot).as_posix() for path in wrong)
        if not last_attempt:
            logger.warning("%s of %s is not what the Hub lists (checksum): fetching it again", names, repo_id)
    raise UserError(f"{names} is not what the Hub lists (checksum), after a second download too")


def _wrong_files(snapshot: Path) -> list[Path]:
    """Each file of the cache is a link to one that is named by the checksum which the Hub lists.

    What was compared once is not read again, as long as it has the size and the time that it had then.
    """
    links = {path: path.resolve() for path in sorted(snapshot.rglob("*")) if path.is_symlink()}
    record = snapshot.parents[1] / _COMPARED
    compared = _read_compared(record)
    wrong = []
    for path, blob in links.items():
        if compared.get(blob.name) != _stamp(blob):
            if has_checksum(path, blob.name):
                compared[blob.name] = _stamp(blob)
            else:
                wrong.append(path)
    with contextlib.suppress(OSError):  # a cache that cannot be written is compared again
        if compared != _read_compared(record):
            write_json(record, compared)
    return wrong


def _read_compared(record: Path) -> dict[str, list[int]]:
    try:
        return dict(json.loads(record.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _stamp(blob: Path) -> list[int]:
    status = blob.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _remove_from_cache(path: Path) -> None:
    blob = path.resolve()
    path.unlink()
    blob.unlink(missing_ok=True)
