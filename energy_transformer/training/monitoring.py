"""What a run tells while it goes on: the trackers, of which one is its own log, and where its time goes."""

import importlib.util
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.tracking import GeneralTracker, on_main_process

from ..utils.errors import UserError
from ..utils.files import as_json, atomic_path
from .arguments import CommonArguments
from .records import public_options

logger = get_logger(__name__)
LOG = "training_log.jsonl"


class JsonLines(GeneralTracker):
    """`training_log.jsonl` in the run's folder, a line for each report: a tracker that is always there.

    Its lines after `step`, which is set before it starts, are those of a run that was cut off.
    """

    name = "training_log"
    requires_logging_directory = False

    def __init__(self, folder: Path):
        super().__init__()
        self.path, self.step = folder / LOG, 0

    @property
    def tracker(self) -> Path:
        return self.path

    @on_main_process
    def start(self) -> None:
        if self.path.exists():
            kept = [line for line in self.path.read_text().splitlines() if _step(line) <= self.step]
            with atomic_path(self.path) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in kept))

    @on_main_process
    def log(self, values: dict[str, float], step: int | None = None, **kwargs: Any) -> None:
        try:
            with self.path.open("a") as file:
                file.write(as_json({"step": step, **values}) + "\n")
        except OSError as error:
            logger.warning(f"step {step}: {self.path} could not be written: {error.strerror}")


def _step(line: str) -> float:
    """That of a line; infinity for one that was cut off while it was written."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def trackers(args: CommonArguments) -> list[GeneralTracker | str]:
    """The log, and the tracker that `report_to` and `with_tracking` ask for.

    Raises:
        UserError: when its package is missing.
    """
    log: list[GeneralTracker | str] = [JsonLines(Path(args.output_dir))]
    name = args.report_to or ("tensorboard" if args.with_tracking else "none")
    if name == "none":
        return log
    if importlib.util.find_spec(name) is None:
        raise UserError(f"report_to {name} needs a package that is missing: pip install {name}")
    return [*log, name]


def start_trackers(accelerator: Accelerator, args: CommonArguments, run_id: str, step: int) -> None:
    """Start the run `run_id` of the trackers, or go on with it at `step`."""
    config = {
        name: value if isinstance(value, int | float | str) else str(value)
        for name, value in public_options(args).items()
    }
    resumed = {
        "tensorboard": {"purge_step": step + 1},
        "trackio": {"name": run_id, "resume": "allow"},
        "wandb": {"id": run_id, "resume": "allow"},
    }
    for tracker in accelerator.log_with:
        if isinstance(tracker, JsonLines):
            tracker.step = step
    project = run_id if "tensorboard" in accelerator.log_with else "energy-transformer"
    accelerator.init_trackers(project, config, init_kwargs=resumed)


def track(accelerator: Accelerator, values: dict[str, float], step: int) -> None:
    """Tell all trackers; one that cannot write does not end the run."""
    try:
        accelerator.log(values, step=step)
    except OSError as error:
        logger.warning(f"step {step}: the tracker could not write: {error.strerror or error}")


class StepTimer:
    """Seconds spent in steps, and of these in waiting for data; evaluation and saving are left out.

    A GPU is still at work when a step returns. Its times are those of events in its own queue, so that no step waits
    for it; [`settle`] does, and adds them up.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds = self.data_seconds = 0.0
        self.steps = 0
        module = torch.get_device_module(device)
        self._event = None if device.type == "cpu" else getattr(module, "Event", None)
        self._open: list[tuple[Any, Any]] = []  # when steps that are not added up yet began and ended

    @contextmanager
    def step(self) -> Iterator[None]:
        began = self._mark()
        yield
        self._open.append((began, self._mark()))
        self.steps += 1

    def _mark(self) -> Any:
        """An event in the device's queue; the seconds of a clock where it has none."""
        if self._event is None:
            return time.perf_counter()
        event = self._event(enable_timing=True)
        event.record()
        return event

    def settle(self) -> None:
        """Wait for the end of the last step; `seconds` is that of all `steps` then."""
        for began, ended in self._open:
            if self._event is None:
                self.seconds += ended - began
            else:
                ended.synchronize()
                self.seconds += began.elapsed_time(ended) / 1000
        self._open = []

    @contextmanager
    def data(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.data_seconds += time.perf_counter() - started

    @property
    def data_share(self) -> float:
        return self.data_seconds / max(self.seconds, 1e-9)

    def figures(self, since: "StepTimer", samples_per_step: int, unit: str) -> dict[str, float]:
        """Means over the steps since a snapshot of this timer."""
        steps = max(self.steps - since.steps, 1)
        seconds, data = (self.seconds - since.seconds) / steps, (self.data_seconds - since.data_seconds) / steps
        return {
            f"{unit}_per_second": samples_per_step / max(seconds, 1e-9),
            "step_seconds": seconds,
            "data_wait_seconds": data,
            "compute_seconds": seconds - data,
        }
