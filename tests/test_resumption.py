"""A resumed run has the options of the saved one, or says what is other; its records say what was used."""

import json
import shutil

import pytest
import torch
from PIL import Image
from training_runs import OPTIONS, ROOT, build, finish, launcher, log, losses, script, train, weights

from energy_transformer.training.image_classification_arguments import ImageClassificationArguments
from energy_transformer.training.masked_image_modeling_arguments import MaskedImageModelingArguments
from energy_transformer.training.parsing import parse_arguments
from energy_transformer.training.resumption import command_of
from energy_transformer.training.saved_states import OPTIONS_FILE, SavedState
from energy_transformer.utils.errors import UserError

SAVING = ["--checkpointing_steps=4", "--train_val_split=0.2"]


def parse(*words, arguments_class=MaskedImageModelingArguments):
    return parse_arguments(list(map(str, words)), None, arguments_class)


def results(folder):
    return json.loads((folder / "all_results.json").read_text())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A finished run of 12 steps, of which 4 and 8 are saved."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    train(folder, *SAVING)
    shutil.rmtree(folder / "checkpoint-12")
    return folder


@pytest.fixture
def unfinished(saved, tmp_path):
    """The same run as it stood after step 8."""
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    for name in ("all_results.json", "model.safetensors", "README.md"):
        (folder / name).unlink()
    return folder


CHANGES = [
    ("learning_rate", "1e-05", "0.006"), ("weight_decay", "0.9", "0.05"), ("adam_beta1", "0.5", "0.9"),
    ("adam_beta2", "0.5", "0.99"), ("max_grad_norm", "inf", "1"), ("lr_scheduler_type", "linear", "cosine"),
    ("num_warmup_steps", "3", "0"), ("warmup_ratio", "0.5", "0"), ("horizontal_flip", "False", "True"),
    ("color_jitter", "0.3", "0"), ("mask_ratio", "0.25", "0.5"), ("min_learning_rate", "1e-05", "0"),
]  # fmt: skip


def test_all_options_that_are_others_are_refused_in_one_line(unfinished):
    words = [f"--{name}={new}" for name, new, _ in CHANGES if name != "lr_scheduler_type"]
    with pytest.raises(UserError, match="checkpoint-8 was saved with other options: ") as error:
        build(unfinished, *SAVING, *words, "--config_overrides=num_steps=3", "--resume_from_checkpoint=latest")
    message = str(error.value)
    for name, new, old in CHANGES:
        assert (f"{name} was {old}, now {new}" in message) == (name != "lr_scheduler_type")
    assert "num_steps was 2, now 3" in message and "pass --override_saved_options" in message and "\n" not in message


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--seed=5"], "seed was 1, now 5"),
        (["--layer_decay=0.5"], "layer_decay was 1, now 0.5"),
        (["--ema_decay=0.9"], "ema_decay was None, now 0.9"),
        (["--max_train_samples=32"], "max_train_samples was 64, now 32"),
    ],
)
def test_what_a_run_cannot_go_on_with_is_not_overridden(unfinished, words, name):
    with pytest.raises(UserError, match=rf"{name} \(start a new run for another") as error:
        build(
            unfinished,
            *SAVING,
            *words,
            "--learning_rate=1",
            "--resume_from_checkpoint=latest",
            "--override_saved_options",
        )
    assert "learning_rate" not in str(error.value)


def test_options_that_decide_no_step_may_be_others(unfinished):
    words = ["--logging_steps=3", "--eval_steps=2", "--per_device_eval_batch_size=4", "--checkpointing_steps=5"]
    resumed = build(unfinished, "--train_val_split=0.2", *words, "--resume_from_checkpoint=latest")
    assert resumed.step == 8


def test_overridden_options_apply_and_are_recorded(unfinished, capsys):
    words = ["--learning_rate=1e-3", "--weight_decay=0.5", "--adam_beta1=0.5", "--max_train_steps=16"]
    train(unfinished, *SAVING, *words, "--resume_from_checkpoint=latest", "--override_saved_options")
    rates = {line["step"]: line["learning_rate"] for line in log(unfinished) if "loss" in line}
    assert rates[8] > 1.5e-3 and all(rates[step] < 1e-3 for step in range(9, 17)) and rates[9] > 2e-4
    found = results(unfinished)
    assert found["arguments"]["learning_rate"] == 1e-3
    [changed] = found["overridden_options"]
    expected = {"learning_rate": [0.006, 0.001], "weight_decay": [0.05, 0.5], "adam_beta1": [0.9, 0.5]}
    assert changed == {"step": 8, "options": expected}
    assert "Changed at step 8: `learning_rate` was 0.006, then 0.001" in (unfinished / "README.md").read_text()
    # the next run goes on with the new ones, and still knows of the change
    record = SavedState.read(unfinished / "checkpoint-16").options()
    assert record["options"]["weight_decay"] == 0.5 and record["overridden"] == [changed]
    assert parse(f"--output_dir={unfinished}", "--resume_from_checkpoint=latest").learning_rate == 1e-3


def test_the_optimizer_has_the_options_that_were_asked_for(unfinished):
    words = [
        "--learning_rate=1e-3",
        "--weight_decay=0.5",
        "--adam_beta1=0.5",
        "--lr_scheduler_type=constant_with_warmup",
    ]
    resumed = build(unfinished, *SAVING, *words, "--resume_from_checkpoint=latest", "--override_saved_options")
    fresh = build(unfinished.parent / "fresh", *SAVING, *words)
    for own, other in zip(resumed.optimizer.param_groups, fresh.optimizer.param_groups, strict=True):
        for name in ("lr", "initial_lr", "weight_decay", "betas"):
            assert own[name] == other[name], name
    assert resumed.schedule.get_last_lr() == fresh.schedule.get_last_lr()


def test_without_config_the_saved_options_are_taken(saved, unfinished):
    done = finish([*script(unfinished)[:2], f"--output_dir={unfinished}", "--resume_from_checkpoint=latest"])
    assert done.returncode == 0, done.stderr
    command = next(line for line in done.stdout.splitlines() if line.startswith("resumed at step 8 of 12: "))
    for word in ("train_masked_image_modeling.py", "--learning_rate=0.006", "--seed=1", "--train_val_split=0.2"):
        assert word in command
    assert losses(unfinished) == losses(saved)
    one, other = weights(unfinished), weights(saved)
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_words_are_added_to_the_saved_options(unfinished):
    args = parse(f"--output_dir={unfinished}", "--resume_from_checkpoint=latest", "--logging_steps=7")
    assert (args.logging_steps, args.train_val_split, args.seed, args.max_train_steps) == (7, 0.2, 1, 12)
    assert args.config_overrides.endswith("num_steps=2") and args.resume_from_checkpoint == "latest"
    args = parse(f"--resume_from_checkpoint={unfinished / 'checkpoint-4'}", "--config_overrides=num_steps=5")
    assert args.output_dir == str(unfinished) and args.config_overrides.endswith("num_steps=2,num_steps=5")
    recipe = parse(f"--resume_from_checkpoint={unfinished / 'checkpoint-4'}", "--config=demo")
    assert recipe.train_val_split == 0.15, "a recipe takes the place of the saved options"


def test_latest_without_a_state_takes_the_recipe(tmp_path):
    args = parse(f"--output_dir={tmp_path}", "--resume_from_checkpoint=latest")
    assert args.max_train_steps == 8000


def test_a_state_of_another_task_is_refused(unfinished):
    words = [f"--output_dir={unfinished}", "--resume_from_checkpoint=latest"]
    with pytest.raises(UserError, match="is of masked_image_modeling, not image_classification"):
        parse(*words, arguments_class=ImageClassificationArguments)


def test_paths_are_known_on_this_machine_alone(tmp_path):
    """Of a folder of images: neither the state nor the results name it, and the run goes on all the same."""
    images = tmp_path / "secret images"
    images.mkdir()
    for number in range(40):
        Image.new("RGB", (32, 32), (number, 3 * number, 9)).save(images / f"{number}.png")
    folder = tmp_path / "run"
    train(folder, *SAVING, f"--train_dir={images}", "--max_train_steps=8")
    published = [path for path in folder.rglob("*") if path.is_file() and path.name != "paths.json"]
    assert len(published) > 20
    for path in published:
        assert b"secret images" not in path.read_bytes() and str(tmp_path).encode() not in path.read_bytes(), path
    resumed = parse(f"--resume_from_checkpoint={folder / 'checkpoint-4'}")
    assert (resumed.train_dir, resumed.output_dir) == (str(images), str(folder))
    (folder / "paths.json").unlink()
    with pytest.raises(
        UserError, match=r"does not tell the paths of the machine on which it was saved: pass --train_dir$"
    ):
        parse(f"--resume_from_checkpoint={folder / 'checkpoint-4'}")
    args = parse(f"--resume_from_checkpoint={folder / 'checkpoint-4'}", "--train_dir=elsewhere")
    assert args.train_dir == "elsewhere"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": ["--hub_token=x"]}, "image_size must be a list of values"),
        ({"learning_rate": "high"}, "invalid float value: 'high'"),
        ({"seed": -1}, "seed must not be negative"),
        ({"hub_token": "x", "no_such": 1, "trust_remote_code": True, "overwrite_output_dir": True}, None),
    ],
)
def test_saved_options_are_checked_like_others(unfinished, options, message, capsys):
    path = unfinished / "checkpoint-8" / OPTIONS_FILE
    record = json.loads(path.read_text())
    record["options"].update(options)
    path.write_text(json.dumps(record))
    words = [f"--output_dir={unfinished}", "--resume_from_checkpoint=latest"]
    if message is None:
        args = parse(*words)
        assert args.hub_token is None and not args.overwrite_output_dir
        return
    with pytest.raises((UserError, SystemExit)) as error:
        parse(*words)
    assert message in f"{error.value}{capsys.readouterr().err}"


def test_a_finished_run_is_left_as_it_is(saved, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    command = [*script(folder)[:2], f"--output_dir={folder}", "--resume_from_checkpoint=latest"]
    done = finish(command)
    assert done.returncode == 0, done.stderr
    assert f"the run in {folder} has finished its 12 steps: nothing is changed" in done.stdout
    assert f"  model             {results(folder)['eval_masked_mse']:.5f}" in done.stdout
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    refused = finish([*command, "--max_train_steps=6"])
    assert refused.returncode == 2
    assert "12 steps are done already, and the run is to have 6" in refused.stderr.splitlines()[-1]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_fewer_steps_than_a_state_has_are_refused(unfinished):
    with pytest.raises(UserError, match="8 steps are done already, and the run is to have 7"):
        build(unfinished, *SAVING, "--max_train_steps=7", "--resume_from_checkpoint=latest")


def test_a_run_that_was_stopped_before_its_results_has_its_loss(tmp_path):
    whole = train(tmp_path, *SAVING)
    for name in ("all_results.json", "model.safetensors"):
        (tmp_path / name).unlink()
    again = train(tmp_path, *SAVING, "--resume_from_checkpoint=latest")
    for name in ("train_loss", "eval_masked_mse", "eval_mean_color_mse", "train_steps"):
        assert again[name] == whole[name], name


def test_several_processes_go_on_without_config(tmp_path):
    words = ["--per_device_train_batch_size=4", "--checkpointing_steps=8"]
    assert finish(launcher("multi_cpu", tmp_path, *words)).returncode == 0
    (tmp_path / "all_results.json").unlink()
    shutil.rmtree(tmp_path / "checkpoint-12", ignore_errors=True)
    command = [word for word in launcher("multi_cpu", tmp_path) if word not in OPTIONS]
    done = finish([*command, "--resume_from_checkpoint=latest"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("resumed at step 8 of 12") == 1


def test_the_command_of_a_run_has_no_token():
    args = MaskedImageModelingArguments(image_size=[32, 48], hub_token="secret", cpu=True, output_dir="a b")
    words = command_of(args).split("--", 1)[1]
    assert words == "output_dir=a b' --cpu=true --image_size 32 48"
    assert ROOT.name not in words
