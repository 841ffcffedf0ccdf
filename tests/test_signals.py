"""Signals as `scancel`, systemd, Kubernetes and a terminal send them, to real launchers: no state is lost."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from test_training_survival import last_step, wait_for_step
from training_runs import ENVIRONMENT, ROOT, SCRIPT, TINY, finish, launcher, losses, script, start, weights

from energy_transformer.training.saved_states import SavedState, state_folders

LONG = ["--max_train_steps=100000"]
HALF = ["--per_device_train_batch_size=4"]
TORCHRUN = Path(sys.executable).with_name("torchrun")


def torchrun(output_dir, *words):
    command = [TORCHRUN, "--nproc_per_node=2", "--master_port=0", "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]
    return [*command, SCRIPT, "--cpu", *TINY, f"--output_dir={output_dir}", *words]


def accelerate_1(output_dir, *words):
    return launcher("cpu", output_dir, *words)


def accelerate_2(output_dir, *words):
    return launcher("multi_cpu", output_dir, *HALF, *words)


def torchrun_2(output_dir, *words):
    return torchrun(output_dir, *HALF, *words)


LAUNCHERS = [accelerate_1, accelerate_2, torchrun_2]


def family(process):
    """The launcher, and the trainers that it has started."""
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def wait_for_end(processes, seconds=90):
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    for process in alive:
        process.kill()
    assert not alive, f"still running: {[process.cmdline() for process in alive]}"


def assert_all_is_whole(folder):
    for state in state_folders(folder):
        SavedState.read(state).verify()
    left = [path.name for path in folder.glob(".*") if path.name != ".lock"]
    assert not left, "nothing half is left"


def assert_saved(folder):
    step = last_step(folder)
    assert [path.name for path in state_folders(folder)] == [f"checkpoint-{step}"]
    assert_all_is_whole(folder)


SEND = {
    "launcher": lambda process: process.send_signal(signal.SIGTERM),
    "group": lambda process: os.killpg(process.pid, signal.SIGTERM),
    "worker": lambda process: family(process)[-1].send_signal(signal.SIGTERM),
}


@pytest.mark.parametrize(
    ("command", "target"),
    [(accelerate_1, "launcher"), (accelerate_2, "group"), (torchrun_2, "group"), (accelerate_2, "worker")],
)
def test_the_state_is_saved_and_nobody_runs_on(tmp_path, command, target):
    with open(tmp_path / "out", "w+") as output:
        process = start(command(tmp_path / "run", *LONG), output)
        wait_for_step(process, tmp_path / "run", 3)
        processes = family(process)
        SEND[target](process)
        wait_for_end(processes)
        process.wait()
        output.seek(0)
        text = output.read()
    assert text.count("SIGTERM: stopped after step") == 1, text
    assert_saved(tmp_path / "run")


@pytest.mark.parametrize("workers", [0, 2])
def test_many_signals_to_all_processes_are_one(tmp_path, workers):
    """The processes that read images get them too, and the step that is under way still gets its images."""
    words = [*LONG, f"--dataloader_num_workers={workers}", f"--max_cached_bytes={0 if workers else 2**30}"]
    with open(tmp_path / "out", "w+") as output:
        process = start(script(tmp_path / "run", *words), output)
        wait_for_step(process, tmp_path / "run", 3)
        processes = family(process)
        for _ in range(20):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
            time.sleep(0.01)
        assert process.wait(timeout=60) == 143
        wait_for_end(processes)
        output.seek(0)
        assert "Traceback" not in output.read()
    assert_saved(tmp_path / "run")


def test_a_run_outlives_the_shell_that_started_it(tmp_path):
    words = subprocess.list2cmdline(map(str, script(tmp_path / "run", *LONG)))
    shell = subprocess.Popen(
        ["sh", "-c", f"nohup {words} > {tmp_path / 'out'} 2>&1 & echo $!"],
        cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    process = psutil.Process(int(shell.stdout.readline()))
    try:
        shell.wait()
        while last_step(tmp_path / "run") < 3:
            assert process.is_running(), (tmp_path / "out").read_text()
            time.sleep(0.01)
        time.sleep(2.5)  # more than two looks for a launcher
        assert process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    finally:
        process.terminate()
    wait_for_end([process])
    assert_saved(tmp_path / "run")


def test_a_signal_in_the_final_evaluation_loses_nothing(tmp_path):
    """The last state is written before it, though none was asked for, and is deleted when the run is complete."""
    words = ["--max_eval_samples=588", "--per_device_eval_batch_size=1"]
    folder = tmp_path / "run"
    with open(tmp_path / "out", "w+") as output:
        process = start(script(folder, *words), output)
        while not (folder / "checkpoint-12").exists() and process.poll() is None:
            time.sleep(0.001)
        time.sleep(0.3)
        process.terminate()
        assert process.wait(timeout=60) == 143
        output.seek(0)
        assert "SIGTERM: stopped before its results were complete, checkpoint-12 is saved" in output.read()
    assert_saved(folder)
    assert not (folder / "all_results.json").exists()
    done = finish(script(folder, *words, "--resume_from_checkpoint=latest"))
    assert done.returncode == 0, done.stderr
    assert (folder / "all_results.json").exists() and (folder / "model.safetensors").exists()


def test_before_the_first_step_nothing_is_left(tmp_path):
    with open(tmp_path / "out", "w+") as output:
        process = start(script(tmp_path / "run", *LONG), output)
        while not (tmp_path / "run").exists() and process.poll() is None:
            time.sleep(0.001)
        process.terminate()
        assert process.wait(timeout=60) == 143
        output.seek(0)
        assert "Traceback" not in output.read()
    assert not (tmp_path / "run").exists() or not state_folders(tmp_path / "run")


CTRL_C = """
import sys, time
from energy_transformer.utils.interruption import interruption
with interruption.installed(), interruption.held():
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
"""


@pytest.mark.parametrize(("first", "second"), [("SIGINT", "SIGINT"), ("SIGTERM", "SIGINT"), ("SIGINT", "SIGTERM")])
def test_only_a_second_ctrl_c_much_later_kills(first, second):
    process = subprocess.Popen([sys.executable, "-c", CTRL_C], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    for name in (first, first, second):  # a launcher passes on what the terminal has sent already
        process.send_signal(signal.Signals[name])
        time.sleep(0.05)
    assert process.poll() is None
    time.sleep(1.1)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == -signal.SIGINT


MOMENTS = int(os.environ.get("SIGNAL_MOMENTS", "20"))


@pytest.mark.slow
@pytest.mark.parametrize("command", LAUNCHERS)
def test_at_any_moment(command, tmp_path):
    """From the start of the launcher to the last picture: every state is whole, nothing runs on, and the run that goes
    on ends as the undisturbed one."""
    words = ["--max_train_steps=200", "--checkpointing_steps=20", "--logging_steps=1"]
    began = time.monotonic()
    assert finish(command(tmp_path / "whole", *words)).returncode == 0
    duration = time.monotonic() - began
    moments, told = random.Random(0), []
    for number in range(MOMENTS):
        folder, target, moment = tmp_path / str(number), moments.choice([*SEND]), moments.uniform(0, duration)
        with open(tmp_path / f"{number}.out", "w") as output:
            process = start(command(folder, *words), output)
            end = time.monotonic() + moment
            processes = []
            while time.monotonic() < end and process.poll() is None:
                time.sleep(0.01)
            if process.poll() is None:
                processes = family(process)
                SEND[target](process)
            code = process.wait(timeout=90)
            wait_for_end(processes)
        told.append((round(moment, 1), target, code, sorted(path.name for path in state_folders(folder))))
        print(*told[-1], flush=True)
        assert_all_is_whole(folder)
        if not (folder / "all_results.json").exists():
            done = finish(command(folder, *words, "--resume_from_checkpoint=latest"))
            assert done.returncode == 0, (told[-1], done.stderr)
        assert losses(folder) == losses(tmp_path / "whole"), told[-1]
        one, other = weights(folder), weights(tmp_path / "whole")
        assert all(torch.equal(one[name], other[name]) for name in one), told[-1]
