"""Preemption: SIGTERM and SIGINT let the running step end, so that the state can be saved."""

import signal
from types import FrameType, TracebackType

import torch
from accelerate import Accelerator


class Interruption:
    """Within its context the two signals are noted; a second one ends the process at once."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self._signal = 0
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Interruption":
        self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        for each in self._previous:
            signal.signal(each, signal.SIG_DFL)

    def agreed(self) -> signal.Signals | None:
        """The signal that any process has got; all processes must ask, after the same step."""
        number = self._signal
        if self.accelerator.num_processes > 1:
            flags = self.accelerator.gather(torch.tensor([number], device=self.accelerator.device))
            number = int(flags.max())
        return signal.Signals(number) if number else None
