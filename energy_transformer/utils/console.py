"""What a program tells while it runs: bars on a terminal, lines in a file, and warnings with their time."""

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


def is_terminal() -> bool:
    """Whether somebody watches the standard error, where a bar may be drawn again and again."""
    return sys.stderr.isatty()


def prepare_console() -> None:
    """Give warnings their time, and let no library draw bars into a file.

    To be called before the libraries are imported, which read these variables then.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    logging.getLogger("energy_transformer").setLevel(logging.INFO)
    logging.captureWarnings(True)
    if not is_terminal():
        for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
            os.environ.setdefault(name, "1")


@contextmanager
def without_model_bars() -> Iterator[None]:
    """Let transformers draw no bars of its own ("Loading weights", "Writing model shards"), which tell nothing here."""
    from transformers.utils import logging as transformers_logging

    active = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if active:
            transformers_logging.enable_progress_bar()


class Progress:
    """How far a long piece of work is: a bar on a terminal, otherwise a line for each report.

    Args:
        total: its units.
        done: those that were done before.
        description: the work, in a word.
        unit: one of its units.
        is_shown: false on processes that tell nothing.
    """

    def __init__(self, total: int, done: int = 0, description: str = "", unit: str = "step", is_shown: bool = True):
        self.total, self.done, self.unit, self.is_shown = total, done, unit, is_shown
        self._started, self._at_start, self._bar = time.monotonic(), done, None
        if is_shown and is_terminal():
            from tqdm.auto import tqdm

            self._bar = tqdm(total=total, initial=done, desc=description, unit=unit, leave=False)

    def update(self, count: int = 1) -> None:
        self.done += count
        if self._bar is not None:
            self._bar.update(count)

    def report(self, text: str) -> None:
        """Tell figures beside what is done and what is left."""
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        else:
            self._print(f"{self.unit} {self.done}/{self.total}: {text}, {self._left()} left")

    def write(self, text: str) -> None:
        """A line that stays."""
        if self._bar is not None:
            self._bar.write(text)
        else:
            self._print(text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _print(self, text: str) -> None:
        if self.is_shown:
            print(text, flush=True)

    def _left(self) -> str:
        new = self.done - self._at_start
        seconds = (time.monotonic() - self._started) / max(new, 1) * (self.total - self.done)
        minutes, seconds = divmod(round(seconds), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
