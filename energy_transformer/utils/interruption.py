"""Preemption: what SIGTERM and SIGINT do to a run, and to one whose launcher is gone.

`scancel`, systemd and Kubernetes send SIGTERM to the launcher and to the processes that it started, and the launcher
passes its own on: a process gets the signal more than once. It therefore never kills. Only a second Ctrl-C does, if
it comes more than a second after the first.
"""

import atexit
import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

_PARENT = os.getppid()  # before the slow imports, in which a launcher may end
_LAUNCHERS = {"accelerate", "accelerate-launch", "torchrun"}
_LAUNCHER_MODULES = ("accelerate.commands.", "torch.distributed.run", "torch.distributed.launch")
_AGAIN = 1.0  # seconds after which a second Ctrl-C is meant as one


class Interruption:
    """The signal that this process has got, if any.

    It ends the process at once, as `SystemExit` that lets what is half-written be removed, except within [`held`],
    where it is noted alone.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._is_held = False
        self._previous: dict[signal.Signals, Any] = {}
        self._first_ctrl_c: float | None = None

    def install(self) -> None:
        """Handle the two signals from now on, to the last moment of the process, in which a SIGTERM is ignored."""
        self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        atexit.register(signal.signal, signal.SIGTERM, signal.SIG_IGN)

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the two signals until the block ends; does nothing where that is so already."""
        if self._previous or threading.current_thread() is not threading.main_thread():
            yield
            return
        self.signal, self._first_ctrl_c = None, None
        self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in self._previous.items():
                signal.signal(number, handler)
            self._previous = {}

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Note a signal alone until the block ends, which must look at it."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False

    def raise_if_noted(self) -> None:
        """End the process as a signal does that comes now, if one has come before."""
        if self.signal:
            raise SystemExit(128 + self.signal)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT:
            if self._first_ctrl_c is not None and now - self._first_ctrl_c > _AGAIN:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            self._first_ctrl_c = self._first_ctrl_c or now
        is_first, self.signal = self.signal is None, self.signal or signal.Signals(number)
        if is_first and not self._is_held:
            raise SystemExit(128 + number)


interruption = Interruption()


def watch_launcher() -> None:
    """Treat the end of the launcher that started this process as a SIGTERM; does nothing where none has started it.

    A killed `accelerate launch` of one process leaves its training running, with nobody to wait for it. A process that
    a shell has started, under `nohup` or not, may outlive it.
    """
    if _is_launcher(_PARENT):
        threading.Thread(target=_watch, name="watch_launcher", daemon=True).start()


def _watch() -> None:
    while os.getppid() == _PARENT:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def _is_launcher(process: int) -> bool:
    """Whether its command is a launcher, a script run by python, or a module: `python -m` shows the file of it."""
    words = _command(process)[:3]
    modules = [word.replace("/", ".") for word in words[1:]]
    return any(Path(word).name in _LAUNCHERS for word in words[:2]) or any(
        launcher in module for module in modules for launcher in _LAUNCHER_MODULES
    )


def _command(process: int) -> list[str]:
    try:
        return Path(f"/proc/{process}/cmdline").read_text().split("\0")
    except OSError:  # not Linux
        told = subprocess.run(["ps", "-o", "args=", "-p", str(process)], capture_output=True, text=True, check=False)
        return told.stdout.split()


def leave_signals_to_parent(worker: int) -> None:
    """The `worker_init_fn` of a `DataLoader`: what is sent to the whole group of processes must not end a worker while
    its parent finishes a step. A second SIGTERM does, as from a parent that has no more use for it."""
    first: list[float] = []

    def note(number: int, frame: FrameType | None) -> None:
        if first and time.monotonic() - first[0] > _AGAIN:
            raise SystemExit(128 + number)
        first.append(time.monotonic())

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, note)
