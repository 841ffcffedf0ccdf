"""What goes wrong on demand."""

import fnmatch
import threading
from dataclasses import dataclass
from typing import Literal


@dataclass
class Fault:
    """One thing that goes wrong with the next `times` requests of this method (any when None) and path pattern.

    Several may be set in one fault.

    Args:
        path: pattern of the path as the client sends it (`fnmatch`), such as `*/commit/main`.
        times: requests that it befalls, one after the other.
        skip: requests of that method and path that pass before.
        status: answered in place of doing what was asked; with 429 and 503 may come `retry_after` seconds.
        drop: cut the connection without an answer, the effect not done ("request") or done ("answer").
        cut_upload: cut the connection after so many bytes of the request's body.
        cut_download: cut the connection after so many bytes of the answer's body.
        flip: invert the bits of this byte of the answer's body.
        delay: seconds to wait before the answer.
        reset: cut by a TCP reset, as a broken network does; else close in order, as a stopping server does.
    """

    path: str
    method: str | None = None
    times: int = 1
    skip: int = 0
    status: int | None = None
    retry_after: int | None = None
    drop: Literal["request", "answer"] | None = None
    cut_upload: int | None = None
    cut_download: int | None = None
    flip: int | None = None
    delay: float = 0.0
    reset: bool = True


class Faults:
    """The faults still to come; requests run in threads."""

    def __init__(self):
        self._pending: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._pending.append(fault)

    def take(self, method: str, path: str) -> Fault | None:
        """The first fault for this request, which has then befallen once more."""
        with self._lock:
            for fault in self._pending:
                if fault.times < 1 or fault.method not in (None, method) or not fnmatch.fnmatch(path, fault.path):
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                return fault
        return None
