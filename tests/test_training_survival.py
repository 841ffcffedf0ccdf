"""Runs that are killed, preempted or left without disk, as real processes."""

import random
import signal
import time

import psutil
import pytest
import torch
from training_runs import finish, launcher, log, losses, script, start, weights

STEPS = 300
FREQUENT = [f"--max_train_steps={STEPS}", "--checkpointing_steps=1", "--checkpoints_total_limit=2"]


def last_step(folder):
    try:
        return log(folder)[-1]["step"]
    except (OSError, ValueError, IndexError):  # not there yet, or a line is being written
        return 0


def wait_for_step(process, folder, step, seconds=120):
    end = time.monotonic() + seconds
    while last_step(folder) < step and process.poll() is None:
        assert time.monotonic() < end, "the run does not get on"
        time.sleep(0.01)


def assert_same_end(first, second):
    assert losses(first) == losses(second)
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def kill_repeatedly(folder, kills, seed):
    """Kill the run at so many random moments after its first new step, and let it end; returns the steps reached."""
    moments, reached = random.Random(seed), []
    for _ in range(kills):
        with open(f"{folder}.out", "w") as output:
            process = start(script(folder, *FREQUENT, "--resume_from_checkpoint=latest"), output)
            wait_for_step(process, folder, last_step(folder) + 1)
            time.sleep(moments.uniform(0, 0.4))
            process.kill()
            assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
        reached.append(last_step(folder))
    done = finish(script(folder, *FREQUENT, "--resume_from_checkpoint=latest"))
    assert done.returncode == 0, done.stderr
    return reached


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_run_ends_with_the_weights_of_the_undisturbed_one(tmp_path, kills):
    assert finish(script(tmp_path / "whole", f"--max_train_steps={STEPS}")).returncode == 0
    reached = kill_repeatedly(tmp_path / "killed", kills, seed=kills)
    assert 0 < reached[0] < reached[-1] < STEPS, reached
    assert_same_end(tmp_path / "whole", tmp_path / "killed")
    assert [path.name for path in (tmp_path / "killed").glob(".*")] == [".lock"], "nothing half is left"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_preempted_run_saves_and_goes_on(tmp_path, number, code):
    words = ["--max_train_steps=2000"]
    with open(tmp_path / "out", "w+") as output:
        process = start(script(tmp_path / "run", *words), output)
        wait_for_step(process, tmp_path / "run", 3)
        process.send_signal(number)
        assert process.wait(timeout=60) == code
        output.seek(0)
        assert f"{number.name}: stopped after step" in output.read()
    step = last_step(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == [f"checkpoint-{step}"]
    words = [f"--max_train_steps={step + 2}"]
    done = finish(script(tmp_path / "run", *words, "--resume_from_checkpoint=latest"))
    assert done.returncode == 0, done.stderr
    assert sorted(losses(tmp_path / "run")) == list(range(1, step + 3)), "no step is left out or done twice"


def test_one_process_of_two_is_killed(tmp_path):
    """The launcher ends with an error, and the run goes on to the same losses as with one process."""
    words = ["--max_train_steps=60", "--checkpointing_steps=5", "--per_device_train_batch_size=4"]
    with open(tmp_path / "out", "w") as output:
        command = launcher("multi_cpu", tmp_path / "two", *words, "--max_train_steps=5000")
        process = start(command, output)
        wait_for_step(process, tmp_path / "two", 7)
        workers = psutil.Process(process.pid).children()
        assert len(workers) == 2
        workers[1].kill()
        assert process.wait(timeout=60) not in (0, None)
    assert not [worker for worker in workers if worker.is_running() and worker.status() != "zombie"]
    step = last_step(tmp_path / "two")
    words = [f"--max_train_steps={step + 5}", "--checkpointing_steps=5"]
    done = finish(script(tmp_path / "two", *words, "--resume_from_checkpoint=latest"))
    assert done.returncode == 0, done.stderr
    assert sorted(losses(tmp_path / "two")) == list(range(1, step + 6))
