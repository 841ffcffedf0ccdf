"""What a run tells: lines in a file, a bar on a terminal, and warnings with their time."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios

import pytest
from training_runs import ENVIRONMENT, ROOT, finish, script

from energy_transformer.utils.console import Progress

STEPS = ["--max_train_steps=40", "--logging_steps=10", "--eval_steps=20"]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first") / "run"
    return folder, finish(script(folder, *STEPS))


def test_a_file_gets_a_line_for_each_report_and_no_bars(first):
    _, done = first
    assert done.returncode == 0, done.stderr
    assert "\r" not in done.stdout + done.stderr and not done.stderr
    told = re.findall(r"^step (\d+)/40: loss [\d.]+, \d+ images/s, \d+:\d\d:\d\d left$", done.stdout, re.MULTILINE)
    assert told == ["10", "20", "30", "40"]
    assert re.search(r"^step 20: held-out error [\d.]+ of the mean color's$", done.stdout, re.MULTILINE)


def test_warnings_have_their_time_and_libraries_draw_no_bars(first, tmp_path):
    words = [f"--model_name_or_path={first[0]}", "--resume_from_checkpoint=latest", "--max_train_steps=1"]
    done = finish(script(tmp_path / "run", *words))
    assert done.returncode == 0, done.stderr
    [warning] = [line for line in done.stderr.splitlines() if "there is no saved state" in line]
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ WARNING energy_transformer\.", warning)
    assert "Loading weights" not in done.stderr and "\r" not in done.stdout + done.stderr


def test_a_terminal_gets_a_bar(tmp_path):
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    process = subprocess.Popen(
        script(tmp_path / "run", *STEPS), cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=slave, text=True
    )
    os.close(slave)
    drawn = b""
    try:
        while part := os.read(master, 4096):
            drawn += part
    except OSError:  # the other end was closed
        pass
    told = process.communicate()[0]
    os.close(master)
    assert process.returncode == 0
    assert b"training:" in drawn and b"/40" in drawn and b"loss " in drawn
    assert "step 10/40" not in told and "step 20: held-out error" in told
    assert b"Loading weights" not in drawn and b"Writing model shards" not in drawn


def test_only_one_process_tells(capsys):
    for is_shown in (True, False):
        progress = Progress(4, done=2, is_shown=is_shown)
        progress.update()
        progress.report("loss 1")
        progress.write("a line")
        progress.close()
        out, err = capsys.readouterr()
        assert not err
        assert re.fullmatch(r"step 3/4: loss 1, 0:00:0\d left\na line\n", out) if is_shown else not out
