"""Saved states: verified when read, kept within a limit, and what happens where the disk is full."""

import json
import subprocess

import pytest
from training_runs import build, finish, launcher, log, losses, script, train, weights

from energy_transformer.training.saved_states import SavedState, find_state, sealed
from energy_transformer.utils.errors import UserError


def states(folder):
    return sorted(path.name for path in folder.glob("checkpoint-*"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    train(folder, "--checkpointing_steps=4")
    return folder


def copy_of(saved, folder):
    subprocess.run(["cp", "-r", saved, folder], check=True)
    return folder


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "one bit": flip_a_bit,
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "process_0.json", "manifest.json"])
def test_a_damaged_state_is_passed_over_with_a_warning(saved, tmp_path, caplog, damage, name):
    folder = copy_of(saved, tmp_path / "run")
    DAMAGES[damage](folder / "checkpoint-12" / name)
    with caplog.at_level("WARNING"):
        state = find_state(folder, "latest")
    assert state.folder.name == "checkpoint-8"
    assert "checkpoint-12" in caplog.text and name in caplog.text
    with pytest.raises(UserError, match=r"resume_from_checkpoint: .*checkpoint-12"):
        find_state(folder, str(folder / "checkpoint-12"))


def test_a_flipped_bit_of_the_manifest_is_named(saved, tmp_path):
    path = copy_of(saved, tmp_path / "run") / "checkpoint-12" / "manifest.json"
    content = path.read_bytes()
    for number, byte in enumerate(content):
        path.write_bytes(content[:number] + bytes([byte ^ 1 << number % 8]) + content[number + 1 :])
        with pytest.raises(UserError, match=r"checkpoint-12 is damaged: manifest\.json"):
            SavedState.read(path.parent)


def test_a_state_without_the_files_of_every_process_is_not_whole(saved, tmp_path):
    folder = copy_of(saved, tmp_path / "run") / "checkpoint-12"
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(sealed(manifest | {"num_processes": 2}))
    with pytest.raises(UserError, match=r"checkpoint-12 is damaged: there is no file of process 1"):
        SavedState.read(folder).verify()


def test_all_damaged_is_one_clear_error(saved, tmp_path):
    folder = copy_of(saved, tmp_path / "run")
    for path in folder.glob("checkpoint-*/optimizer.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"every saved state in .*: checkpoint-12, checkpoint-4, checkpoint-8"):
        find_state(folder, "latest")


def test_the_oldest_written_is_deleted_not_the_least_step(saved, tmp_path):
    """The run goes on from step 4 while the states of an abandoned branch stand at 8 and 12."""
    folder = copy_of(saved, tmp_path / "run")
    words = ["--checkpointing_steps=1", "--max_train_steps=6", "--checkpoints_total_limit=3"]
    train(folder, *words, f"--resume_from_checkpoint={folder / 'checkpoint-4'}")
    assert states(folder) == ["checkpoint-12", "checkpoint-5", "checkpoint-6"]
    assert find_state(folder, "latest").step == 6


def test_the_best_is_kept_and_taken_at_the_end(tmp_path):
    """The rate grows until the error does, so that the newest state is not the best."""
    words = ["--checkpointing_steps=3", "--eval_steps=3", "--checkpoints_total_limit=2", "--load_best_model_at_end"]
    results = train(tmp_path, *words, "--learning_rate=3", "--num_warmup_steps=12", "--max_grad_norm=100")
    measured = {line["step"]: line["eval_masked_mse"] for line in log(tmp_path) if "eval_masked_mse" in line}
    best = min(measured, key=measured.get)
    assert list(measured) == [3, 6, 9, 12] and best != 12
    assert json.loads((tmp_path / "best.json").read_text()) == {
        "checkpoint": f"checkpoint-{best}", "metric": measured[best],
    }  # fmt: skip
    assert set(states(tmp_path)) == {f"checkpoint-{best}", "checkpoint-12"}
    assert results["eval_masked_mse"] == pytest.approx(measured[best], rel=1e-6)


def test_a_damaged_best_state_is_passed_over_at_the_end(tmp_path, caplog):
    words = ["--checkpointing_steps=3", "--eval_steps=3", "--load_best_model_at_end"]
    training = build(tmp_path, *words, "--learning_rate=3", "--num_warmup_steps=12", "--max_grad_norm=100")
    load_best = training._load_best

    def damage_and_load():
        DAMAGES["cut off"](training.checkpoints.ranked()[0].folder / "model.safetensors")
        load_best()

    training._load_best = damage_and_load
    results = training.run()
    measured = sorted(line["eval_masked_mse"] for line in log(tmp_path) if "eval_masked_mse" in line)
    assert "load_best_model_at_end: passed over: " in caplog.text
    assert results["eval_masked_mse"] == pytest.approx(measured[1], rel=1e-6)


def ranked(training):
    return {(state.branch == training.checkpoints.branch, state.step) for state in training.checkpoints.ranked()}


def test_the_best_is_of_the_present_branch_and_of_the_present_images(tmp_path):
    """The run goes on from step 4; what stands at 8 and 12 is of a branch that it has left, better or not."""
    words = ["--checkpointing_steps=4", "--eval_steps=4", "--load_best_model_at_end"]
    train(tmp_path, *words)
    resumed = [*words, f"--resume_from_checkpoint={tmp_path / 'checkpoint-4'}"]
    training = build(tmp_path, *resumed, "--max_train_steps=6")
    assert ranked(training) == {(False, 4)} and states(tmp_path) == ["checkpoint-12", "checkpoint-4", "checkpoint-8"]
    training = build(tmp_path, *words, "--resume_from_checkpoint=latest", "--max_train_steps=16")
    training.run()
    assert ranked(training) == {(False, 4), (False, 8), (False, 12), (True, 16)}
    other = build(tmp_path, *words, "--resume_from_checkpoint=latest", "--max_train_steps=20", "--max_eval_samples=8")
    assert ranked(other) == set()


def test_a_best_state_that_is_never_measured_is_refused(tmp_path):
    words = ["--load_best_model_at_end", "--eval_steps=5", "--checkpointing_steps=4"]
    with pytest.raises(UserError, match=r"eval_steps 5 and checkpointing_steps 4 meet at step 20 .* last of 12"):
        build(tmp_path, *words)
    build(tmp_path, *words, "--max_train_steps=20")


def test_latest_without_a_state_starts_anew_unless_a_model_would_be_lost(tmp_path, caplog):
    with caplog.at_level("WARNING"):
        train(tmp_path, "--resume_from_checkpoint=latest", "--max_train_steps=1")
    assert "there is no saved state" in caplog.text and "starts anew" in caplog.text
    with pytest.raises(UserError, match=r"there is no saved state in .* but a finished model"):
        build(tmp_path, "--resume_from_checkpoint=latest")


def test_latest_without_a_state_deletes_no_file_of_the_user(tmp_path):
    (tmp_path / "README.md").write_text("of a project")
    with pytest.raises(UserError, match=r"no saved state in .*, but a file to be replaced: README.md"):
        build(tmp_path, "--resume_from_checkpoint=latest")
    assert (tmp_path / "README.md").read_text() == "of a project"


def test_a_state_of_another_folder_is_not_mixed_with_the_run_that_is_there(saved, tmp_path):
    words = [f"--resume_from_checkpoint={saved / 'checkpoint-4'}", "--max_train_steps=6", "--checkpointing_steps=3"]
    train(tmp_path, "--checkpointing_steps=12", "--seed=2")
    with pytest.raises(UserError, match="already holds files of another run"):
        build(tmp_path, *words)
    assert states(tmp_path) == ["checkpoint-12"]
    train(tmp_path, *words, "--overwrite_output_dir")
    assert states(tmp_path) == ["checkpoint-6"] and sorted(losses(tmp_path)) == [5, 6]
    train(tmp_path, *words)  # the words of a job that is started again


def test_the_moving_average_is_resumed_and_is_what_is_saved(tmp_path):
    train(tmp_path / "a", "--ema_decay=0.9", "--checkpointing_steps=5")
    train(tmp_path / "plain")
    words = [f"--resume_from_checkpoint={tmp_path / 'a' / 'checkpoint-5'}", "--ema_decay=0.9"]
    train(tmp_path / "b", *words)
    first, second, plain = (weights(tmp_path / name) for name in ("a", "b", "plain"))
    assert all((first[name] == second[name]).all() for name in first)
    assert losses(tmp_path / "plain") == losses(tmp_path / "a"), "it does not change the training"
    assert not all((first[name] == plain[name]).all() for name in first)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True)
    if made.returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_keeps_the_last_good_state(small_disk):
    """States of some 0.3 MB fill 2 MB: saving fails, training goes on, and the final model is refused in one line."""
    run, words = small_disk / "run", ["--checkpointing_steps=1", "--max_train_steps=60", "--logging_steps=100"]
    (small_disk / "filler").write_bytes(bytes(1_300_000))
    done = finish(script(run, *words))
    assert done.returncode == 2, done.stderr
    assert "the state could not be saved, the last good one is kept: " in done.stderr
    errors = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.startswith("error")]
    assert len(errors) == 1 and "could not be written: No space left on device" in errors[0]
    assert "Traceback" not in done.stderr
    last = max(SavedState.read(path).step for path in run.glob("checkpoint-*"))
    assert 0 < last < 60 and not list(run.glob(".saving-*"))
    (small_disk / "filler").unlink()
    words = ["--checkpointing_steps=1", "--checkpoints_total_limit=1", f"--max_train_steps={last + 2}"]
    done = finish(script(run, *words, "--resume_from_checkpoint=latest"))
    assert done.returncode == 0, done.stderr
    assert states(run) == [f"checkpoint-{last + 2}"]


def test_a_full_disk_does_not_stop_pictures_and_trackers(small_disk):
    (small_disk / "filler").write_bytes(bytes(1_900_000))
    words = ["--sample_steps=1", "--max_train_steps=3", "--report_to=tensorboard"]
    done = finish(script(small_disk / "run", *words))
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "step 3: the pictures could not be written: No space left on device" in done.stderr


@pytest.mark.slow
def test_a_full_disk_does_not_stop_sharded_processes(small_disk):
    (small_disk / "filler").write_bytes(bytes(1_300_000))
    done = finish(launcher("fsdp", small_disk / "run", "--checkpointing_steps=1", "--max_train_steps=40"))
    assert "the state could not be saved, the last good one is kept: No space left on device" in done.stderr
    assert "step 40: the state could not be saved" in done.stderr, "it goes on to the end"
    assert states(small_disk / "run") and not list((small_disk / "run").glob(".saving-*"))
