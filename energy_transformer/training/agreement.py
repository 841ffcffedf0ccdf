"""What several processes must find alike: the main process decides, all compare, and a difference is an error."""

import hashlib
import json
import platform
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from ..data import ImageStream, ImageTensors
from ..utils.errors import ToldElsewhereError, UserError

_SAMPLES = 32  # images whose pixels stand for those of a split
_PATIENCE = 5.0  # seconds in which a file of another machine must become visible

Decision = TypeVar("Decision")


def main_decides(accelerator: Accelerator, decide: Callable[[], Decision]) -> Decision:
    """What `decide` returns on the main process, on every process.

    Raises:
        UserError: that of the main process, on every process.
    """
    if accelerator.num_processes == 1:
        return decide()
    outcome: list[Any] = [None, None]
    error = None
    if accelerator.is_main_process:
        try:
            outcome[0] = decide()
        except UserError as mistake:
            error, outcome[1] = mistake, str(mistake)
    broadcast_object_list(outcome)
    if error is not None:
        raise error
    if outcome[1] is not None:
        raise ToldElsewhereError(outcome[1])
    return outcome[0]


def require_agreement(accelerator: Accelerator, found: dict[str, Any]) -> None:
    """Compare what each process has found, by name.

    Raises:
        UserError: on every process, when one of them has found something else than the main process.
    """
    if accelerator.num_processes == 1:
        return
    everywhere = gather_object([(platform.node(), found)])
    main_host, of_main = everywhere[0]
    for process, (host, own) in enumerate(everywhere):
        for name, value in own.items():
            if value != of_main[name]:
                error = UserError if accelerator.is_main_process else ToldElsewhereError
                raise error(
                    f"process {process} on {host} has found other {name} than process 0 on {main_host}: "
                    f"{_shortened(value)} against {_shortened(of_main[name])}"
                )


def require_shared_folder(accelerator: Accelerator, folder: Path) -> None:
    """See that all processes have the same folder under this name, which the main process has made.

    Raises:
        UserError: on every process, when one of them does not see what the main process writes, or cannot write.
    """
    if accelerator.num_processes == 1:
        return
    nonce = main_decides(accelerator, lambda: _write_nonce(folder))
    path = folder / nonce
    seen = _appears(path)
    everywhere = gather_object([(platform.node(), seen)])
    if accelerator.is_main_process:
        path.unlink(missing_ok=True)
    blind = next(((process, host) for process, (host, seen) in enumerate(everywhere) if not seen), None)
    if blind:
        error = UserError if accelerator.is_main_process else ToldElsewhereError
        raise error(
            f"output_dir {folder} is not one folder for all processes: process {blind[0]} on {blind[1]} does not see "
            f"what process 0 on {everywhere[0][0]} writes there; give one on a shared file system"
        )


def _write_nonce(folder: Path) -> str:
    name = f".shared-{uuid.uuid4().hex}"
    try:
        (folder / name).touch()
    except OSError as error:
        raise UserError(f"output_dir {folder} cannot be written: {error.strerror or error}") from error
    return name


def _appears(path: Path) -> bool:
    """Whether a file is there within the time that a network file system may take to show it."""
    end = time.monotonic() + _PATIENCE
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def images_fingerprint(images: ImageTensors | ImageStream) -> str:
    """The number of images and a digest that tells them from others: of the pixels and labels of a few, evenly spread,
    or of the names and types in a stream, which cannot be looked into."""
    checksum = hashlib.sha256()
    if isinstance(images, ImageStream):
        checksum.update(repr((images.stream.num_shards, images.stream.features)).encode())
        return f"a stream of {images.stream.num_shards} shards ({checksum.hexdigest()[:12]})"
    last = len(images) - 1
    for values in images.__getitems__(sorted({last * i // _SAMPLES for i in range(_SAMPLES + 1)})).values():
        checksum.update(values.numpy().tobytes())
    return f"{len(images)} images ({checksum.hexdigest()[:12]})"


def fingerprint(value: Any) -> str:
    """A digest of what JSON can say."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _shortened(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
