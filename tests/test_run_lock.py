"""One run alone works in a folder, as long as its process lives."""

import signal

from test_training_survival import last_step, wait_for_step
from training_runs import finish, script, start

LONG = ["--max_train_steps=100000"]


def test_a_second_run_in_the_folder_is_refused_until_the_first_has_died(tmp_path):
    """The one that was killed leaves no lock, though it had processes that read images."""
    words = [*LONG, "--checkpointing_steps=1", "--dataloader_num_workers=1", "--max_cached_bytes=0"]
    with open(tmp_path / "out", "w+") as output:
        process = start(script(tmp_path / "run", *words), output)
        wait_for_step(process, tmp_path / "run", 3)
        for again in (["--resume_from_checkpoint=latest"], ["--overwrite_output_dir"]):
            done = finish(script(tmp_path / "run", *LONG, *again))
            assert done.returncode == 2
            assert f"error: output_dir {tmp_path / 'run'} is in use by another run: wait for its end" in done.stderr
        assert process.poll() is None
        process.kill()
        assert process.wait() == -signal.SIGKILL
    step = last_step(tmp_path / "run")
    done = finish(script(tmp_path / "run", f"--max_train_steps={step + 2}", "--resume_from_checkpoint=latest"))
    assert done.returncode == 0, done.stderr


def test_a_mistake_leaves_no_folder(tmp_path):
    done = finish(script(tmp_path / "run", "--train_dir=/nowhere"))
    assert done.returncode == 2, done.stderr
    assert not (tmp_path / "run").exists()
