"""The training loop that all tasks share.

The result does not depend on how a step's samples (images or graphs) are divided over processes and accumulated
batches: their order is that of `data.StepSampler`, and the random numbers of a step are drawn for all its samples at
once, from a generator that the seed and the step determine; each batch takes its slice of both.
"""

import copy
import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import numpy as np
import torch
from accelerate.logging import get_logger
from safetensors import SafetensorError
from transformers import PreTrainedModel

from ..data import batch_slice
from ..utils.console import Progress, without_model_bars
from ..utils.errors import UserError
from ..utils.files import atomic_files
from .launch import is_sharded
from .loaders import Batch
from .monitoring import track
from .resumption import resuming
from .saved_states import newest_state
from .setup import TrainingSetup
from .signal_poll import SignalPoll

logger = get_logger(__name__)
_ADVICE = "try a smaller learning_rate, a smaller max_grad_norm or mixed_precision no"


def step_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The randomness of an optimizer step: a function of these numbers alone, the same on every process."""
    state = np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0] >> np.uint64(1)))


class TrainingLoop(TrainingSetup):
    """A run between set-up and finish."""

    def _train(self) -> None:
        args = self.args
        poll = SignalPoll(self.accelerator, self.step)
        if number := poll.ask(self.step):
            self._leave(number, "before its first step")
        progress = Progress(self.total_steps, self.step, "training", is_shown=self.accelerator.is_main_process)
        batches = iter(self.train_loader)
        reported = copy.copy(self.timer)
        while self.step < self.total_steps:
            is_last = self.step + 1 == self.total_steps
            with_energies = is_last or (self.step + 1) % args.logging_steps == 0
            with self.timer.step():
                loss, energies = self._optimizer_step(batches, with_energies)
            self.step += 1
            progress.update()
            if with_energies:
                self.timer.settle()
                self._report(progress, loss, energies, self.timer.figures(reported, self.samples_per_step, self.unit))
                reported = copy.copy(self.timer)
            metric = None
            if self._is_due(args.eval_steps) and (not is_last or args.load_best_model_at_end):
                metric = self._evaluate_midway(progress)
            if args.sample_steps and self.step % args.sample_steps == 0:
                self._save_samples()
            number = poll.ask(self.step)
            if self._is_due(args.checkpointing_steps) or number:
                self._check_finite(loss)
                if self.checkpoints.save(self.step, metric):
                    self._publish_progress()
            if number:
                progress.close()
                self._leave(number, f"after step {self.step}")
        progress.close()

    def _leave(self, number: signal.Signals, when: str) -> NoReturn:
        self._say_stopped(number, when)
        self._end_training()
        raise SystemExit(128 + number)

    def _end_training(self) -> None:
        """Leave the group of processes, once nothing holds the wrapped model that averages gradients over them.

        Such a model would keep the group to its own end, which then waits, with Python's lock, for a thread of gloo
        that may need this lock: the process would never exit (seen with torch 2.13).
        """
        self.model = self.checkpoints.files.model = self.accelerator.unwrap_model(self.model)
        self.accelerator.free_memory()
        self.accelerator.end_training()

    def _say_stopped(self, number: signal.Signals, when: str) -> None:
        if self.accelerator.is_main_process:
            state = newest_state(self.folder)
            saved = f"{state.name} is saved, go on with: {resuming(self.args)}" if state else "no state is saved"
            print(f"{number.name}: stopped {when}, {saved}", flush=True)

    def _optimizer_step(self, batches: Iterator[Batch], with_energies: bool):
        """Returns this process's share of the loss (the mean over all processes is the loss of the step), and the
        energies of a batch, before and after the descent, where they are asked for."""
        self.model.train()
        generator = step_generator(self.args.seed, self.step, self.accelerator.device)
        draws = self.draw(self.samples_per_step, generator)
        total = torch.zeros((), device=self.accelerator.device)
        energies = None
        for number in range(self.args.gradient_accumulation_steps):
            with self.timer.data():
                batch = next(batches)
            loss, energies = self._accumulate(batch, draws, number, with_energies)
            total += loss
        if self.average is not None:
            self.average.update_parameters(self.accelerator.unwrap_model(self.model))
        return total / self.args.gradient_accumulation_steps, energies

    def _accumulate(self, batch: Batch, draws: Batch, number: int, with_energies: bool):
        part = batch_slice(
            number,
            self.args.per_device_train_batch_size,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        own = {name: values[part] for name, values in draws.items()}
        batch = self.augmented(batch, own)
        with self.accelerator.accumulate(self.model):
            outputs = self.forward(batch, own, **({"output_energies": True} if with_energies else {}))
            loss = outputs.loss
            weights = self.loss_weights(draws)
            if weights is not None:  # relative to the mean over the batches, which is how they are averaged
                loss = loss * (weights[part].mean() / weights.mean())
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.grad_norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)
            self.optimizer.step()
            if self.accelerator.sync_gradients and not self.accelerator.optimizer_step_was_skipped:
                self.schedule.step()
            self.optimizer.zero_grad()
        energies = outputs.energies.detach().float().mean(0)[[0, -1]] if with_energies else None
        return loss.detach(), energies

    def _is_due(self, every: str | None) -> bool:
        interval = self._interval(every)
        return bool(interval) and self.step % interval == 0

    # What is told and kept on the way

    def _report(
        self, progress: Progress, loss: torch.Tensor, energies: torch.Tensor, figures: dict[str, float]
    ) -> None:
        self.last_loss = value = self._check_finite(loss)
        before, after = self.accelerator.reduce(energies, "mean").tolist()
        told = {
            "loss": value,
            "learning_rate": max(self.schedule.get_last_lr()),
            "grad_norm": self._norm(),
            "energy_before": before,
            "energy_after": after,
            **figures,
        }
        track(self.accelerator, told, self.step)
        progress.report(f"loss {value:.4f}, {figures[f'{self.unit}_per_second']:.0f} {self.unit}/s")

    def _check_finite(self, loss: torch.Tensor) -> float:
        """The loss over all processes. The gradient's norm is looked at too, as it has gone into the weights."""
        value = self.accelerator.reduce(loss, "mean").item()
        if not math.isfinite(value):
            raise UserError(f"the loss is {value} at step {self.step}: {_ADVICE}")
        norm = self._norm()
        if not math.isfinite(norm) and self.accelerator.scaler is None:
            raise UserError(f"the gradient's norm is {norm} at step {self.step}: {_ADVICE}")
        return value

    def _norm(self) -> float:
        """That of the last gradient; 0 where it is not told, as by DeepSpeed."""
        norm = self.grad_norm.full_tensor() if hasattr(self.grad_norm, "full_tensor") else self.grad_norm
        return 0.0 if norm is None else float(norm)

    def _evaluate_midway(self, progress: Progress) -> float:
        with self._evaluated_weights():
            results = self._evaluate()
        self.held_out_data_figures()
        self._check_metric(results)
        track(self.accelerator, results, self.step)
        progress.write(f"step {self.step}: {self.describe(results)}")
        return results[self.metric]

    def _evaluate(self) -> dict[str, float]:
        self.model.eval()
        return self.evaluate()

    def _check_metric(self, results: dict[str, float], done: str = "") -> None:
        """Raises a `UserError` when the task's figure is no number; of others it is only told."""
        no_numbers = [name for name, value in results.items() if not math.isfinite(value)]
        if {self.metric, "eval_loss"} & {*no_numbers}:
            raise UserError(f"the held-out error is not finite at step {self.step}: {_ADVICE}{done}")
        if no_numbers:
            logger.warning(
                f"step {self.step}: {', '.join(no_numbers)} cannot be told: the {self.unit} are all too plain"
            )

    @contextmanager
    def _evaluated_weights(self) -> Iterator[None]:
        """`model` is the moving average meanwhile, where there is one."""
        trained = self.model
        if self.average is not None:
            self.model = self.average.module
        try:
            yield
        finally:
            self.model = trained

    def _save_samples(self) -> None:
        with self._evaluated_weights():
            model = self._whole_model()
            if self.accelerator.is_main_process:
                try:
                    self.save_pictures(model.eval(), self.folder / "samples" / f"step-{self.step}")
                except OSError as error:
                    logger.warning(f"step {self.step}: the pictures could not be written: {error.strerror or error}")
        self.accelerator.wait_for_everyone()

    def _publish_progress(self) -> None:
        """Begin to push the model as it is now; called by all processes, which gather it together."""
        if not self.args.push_to_hub or self.args.hub_strategy == "end":
            return
        with self._evaluated_weights():
            model = self._whole_model()
            if not self.publisher:
                return
            try:
                self._save_model(model)
                self.publisher.push(f"Training in progress, step {self.step}", newest_state(self.folder))
            except (OSError, SafetensorError) as error:
                logger.warning(f"step {self.step}: nothing is pushed, as the model could not be written: {error}")

    def _whole_model(self) -> PreTrainedModel:
        """The model on this process; where it is sharded, a copy with all weights on the main process alone."""
        if not is_sharded(self.accelerator):
            return self.accelerator.unwrap_model(self.model)
        weights = self.accelerator.get_state_dict(self.model)
        model = self.model_class(self.config)
        if self.accelerator.is_main_process:
            model.load_state_dict(self.whole_weights(weights))
        return model.to(self.accelerator.device)

    def whole_weights(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The weights of the model that is saved, of those that are trained; a task may have others."""
        return weights

    def _save_model(self, model: PreTrainedModel) -> None:
        """The model, and its processor if any, written beside the folder's files and moved into place when complete."""
        with atomic_files(self.folder) as temporary, without_model_bars():
            model.save_pretrained(temporary)
            if self.processor is not None:
                self.processor.save_pretrained(temporary)
