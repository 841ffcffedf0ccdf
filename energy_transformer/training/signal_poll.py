"""When the processes of a run ask each other for signals: about once a second, all at the same step."""

import signal
import time

import torch
from accelerate import Accelerator

from ..utils.interruption import interruption

_SECONDS = 1.0
_MOST_STEPS = 1000


class SignalPoll:
    """One process looks at its own signal after each step, which costs nothing. Several must agree on the step after
    which they stop, which takes a message between all of them: they agree on the next such step each time."""

    def __init__(self, accelerator: Accelerator, step: int):
        self.accelerator = accelerator
        self._asked_at, self._asked_step, self._interval = time.monotonic(), step, 1
        self._next = step

    def is_due(self, step: int) -> bool:
        """Whether [`ask`] will wait for the device and for the other processes."""
        return self.accelerator.num_processes > 1 and step >= self._next

    def ask(self, step: int) -> signal.Signals | None:
        """The signal that any process has got, the same on all of them; None also where it is not yet time to ask."""
        if self.accelerator.num_processes == 1:
            return interruption.signal
        if not self.is_due(step):
            return None
        own = [int(interruption.signal or 0), self._wish(step)]
        found = self.accelerator.gather(torch.tensor([own], device=self.accelerator.device))
        self._interval = int(found[:, 1].min())
        self._asked_at, self._asked_step, self._next = time.monotonic(), step, step + self._interval
        number = int(found[:, 0].max())
        return signal.Signals(number) if number else None

    def _wish(self, step: int) -> int:
        """As many steps as took a second since the last time, and at most twice as many as then."""
        seconds = max(time.monotonic() - self._asked_at, 1e-6)
        steps = int((step - self._asked_step) / seconds * _SECONDS)
        return max(1, min(steps, 2 * self._interval, _MOST_STEPS))
