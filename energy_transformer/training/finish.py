"""From options to a finished output folder: the whole run of a task."""

import platform
from typing import Any

import torch
import transformers
from accelerate.logging import get_logger
from safetensors import SafetensorError
from transformers import PreTrainedModel

from ..hub.cards import write_card
from ..utils.errors import UserError, first_line
from ..utils.files import write_json
from ..utils.interruption import interruption
from .agreement import main_decides
from .hardware import device_name
from .loop import TrainingLoop
from .records import public_options
from .saved_states import first_whole, newest_state
from .signal_poll import SignalPoll

logger = get_logger(__name__)


class Training(TrainingLoop):
    """One run of a task; [`run`] trains, evaluates and writes the output folder."""

    def run(self) -> dict[str, float | None]:
        """Train, evaluate, save. Returns what stands in `all_results.json`.

        Raises:
            UserError: when a loss or a figure is not finite, or the model cannot be written.
            SystemExit: 143 after SIGTERM and 130 after SIGINT, when a step is done and its state saved.
        """
        if self.finished is not None:
            self._leave_as_it_is()
            self.lock.release()
            return self.finished
        first_step = self.step
        with interruption.installed():
            with interruption.held():
                self._train()
                is_extra = self._secure()
            results = self._finish_or_leave(first_step)
            if is_extra and self.accelerator.is_main_process:
                self.checkpoints.delete(self.step)
            self._publish()
        self.lock.release()
        return results

    def _secure(self) -> bool:
        """Save the state before the evaluation, which may take long, and stop there after a signal; whether the state
        is more than the options ask for."""
        is_extra = False
        if not self.checkpoints.has_saved(self.step):
            is_extra = not (self.folder / f"checkpoint-{self.step}").exists()
            is_extra = self.checkpoints.save(self.step, rotate=False) and is_extra
        if number := SignalPoll(self.accelerator, self.step).ask(self.step):
            self._leave(number, f"after step {self.step}")
        return is_extra

    def _finish_or_leave(self, first_step: int) -> dict[str, float | None]:
        """[`_finish`], which a signal ends at once: the state is saved."""
        try:
            interruption.raise_if_noted()
            return self._finish(first_step)
        except (SystemExit, RuntimeError):  # the latter where another process has been ended
            if interruption.signal is None:
                raise
            self._say_stopped(interruption.signal, "before its results were complete")
            raise SystemExit(128 + interruption.signal) from None

    def _finish(self, first_step: int) -> dict[str, float | None]:
        self.accelerator.wait_for_everyone()
        of_training_data = self.training_data_figures()  # before an earlier state tells of other data
        if self.args.load_best_model_at_end:
            self._load_best()
        seconds = self.timer.seconds
        with self._evaluated_weights():
            figures = self._evaluate()
            results: dict[str, float | None] = {
                **figures,
                "train_loss": self.last_loss,
                "train_steps": self.step,
                "train_first_step": first_step,  # seconds and samples a second are those since then
                "train_seconds": seconds,
                "train_samples_per_second": self.samples_per_step * (self.step - first_step) / max(seconds, 1e-9),
                "train_data_wait_share": self.timer.data_share,
                **of_training_data,
                **self.held_out_data_figures(),
            }
            model = self._whole_model()
            if self.accelerator.is_main_process:
                self._save(model, results)
        self.accelerator.wait_for_everyone()
        self._end_training()
        self._check_metric(figures, f" (the model and the other results are in {self.folder})")
        return results

    def _leave_as_it_is(self) -> None:
        if self.accelerator.is_main_process:
            print(f"the run in {self.folder} has finished its {self.total_steps} steps: nothing is changed", flush=True)
        self.accelerator.end_training()
        self._publish()

    def _publish(self) -> None:
        if self.publisher:
            print(f"on the Hub: {self.publisher.finish(newest_state(self.folder))}")

    def _load_best(self) -> None:
        """The best of the saved states that are whole; the model stays as it is where none is."""
        told = "load_best_model_at_end: "
        best = main_decides(self.accelerator, lambda: first_whole(self.checkpoints.ranked(), told))
        if best is None:
            logger.warning(f"{told}there is no saved state with a held-out figure, the last is kept")
        else:
            logger.info(f"the best state is {best.folder.name}")
            self.checkpoints.load(best)

    def _save(self, model: PreTrainedModel, results: dict[str, float | None]) -> None:
        try:
            self._save_model(model)
            self._save_results(model, results)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            raise UserError(f"output_dir {self.folder}: the model could not be written: {reason}") from error

    def _save_results(self, model: PreTrainedModel, results: dict[str, float | None]) -> None:
        self.save_pictures(model.eval(), self.folder / "samples")
        record: dict[str, Any] = {
            **results,
            "train_samples": self.train_samples,
            "num_parameters": model.num_parameters(),
            "num_processes": self.accelerator.num_processes,
            "device": self.accelerator.device.type,
            "device_name": device_name(self.accelerator.device),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
            "arguments": public_options(self.args),
            "overridden_options": self.record["overridden"],
        }
        write_json(self.folder / "all_results.json", record)
        write_card(self.folder, self.publisher and self.publisher.repo_id, self.args.license)
