"""Training that pushes: processes as a user starts them, a Hub that fails, and a run that goes on elsewhere."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from huggingface_hub import ModelCard
from safetensors.torch import load, load_file

from energy_transformer.training.masked_image_modeling import MaskedImageModelingTraining
from energy_transformer.training.masked_image_modeling_arguments import MaskedImageModelingArguments
from energy_transformer.training.parsing import parse_arguments
from energy_transformer.utils.errors import UserError

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "configuration" / "training" / "demo.yaml"
SCRIPT = ROOT / "scripts" / "train_masked_image_modeling.py"
SMALL = ["--max_train_samples=64", "--max_eval_samples=16", "--max_train_steps=6", "--num_visual_samples=2"]
PUSHING = ["--push_to_hub", "--hub_model_id=alice/run", "--checkpointing_steps=3"]
COMMIT = "/api/models/alice/run/commit/main"


def train(environment, output_dir, *words):
    """A run of one process with its own cache."""
    command = [sys.executable, SCRIPT, *SMALL, "--cpu", f"--output_dir={output_dir}", *words]
    environment = environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def assert_nowhere(secret, folder, *texts):
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        assert secret.encode() not in path.read_bytes(), path
    for text in texts:
        assert secret not in text


def titles(hub):
    repository = hub.repository("alice/run")
    return [commit.title for commit in repository.history(repository.find("main"))]


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def unbroken(hub, tmp_path):
    done = train(hub.environment(tmp_path / "home"), tmp_path / "unbroken", "--checkpointing_steps=3")
    assert done.returncode == 0, done.stderr
    return load_file(tmp_path / "unbroken" / "model.safetensors")


@pytest.mark.slow
def test_from_one_machine_over_the_hub_to_another(hub, tmp_path, unbroken):
    hub.fail(COMMIT, method="POST", drop="answer")  # the first push is there, but nobody says so
    first = tmp_path / "first"
    environment = hub.environment(tmp_path / "home1", hub.token)
    done = train(environment, first, *PUSHING, "--hub_strategy=checkpoint", "--hub_private_repo")
    assert done.returncode == 0, done.stderr
    repository = hub.repository("alice/run")
    assert repository.private
    assert titles(hub)[0] == "End of training" and titles(hub).count("Training in progress, step 3") == 1
    files = repository.find("main").files
    for name in ("model.safetensors", "all_results.json", "README.md", "samples/energy.png", "energies.py"):
        assert files[name].content == (first / name).read_bytes()
    assert json.loads(files["last-checkpoint/manifest.json"].content)["step"] == 6
    assert not any(name.startswith(("checkpoint-", ".")) for name in files.keys() - {".gitattributes"})
    assert not list(first.glob(".pushing-*"))
    assert_nowhere(hub.token, first, done.stdout, done.stderr)
    assert not any(hub.token.encode() in file.content for file in files.values())

    history = repository.history(repository.find("main"))
    third_step = next(commit for commit in history if commit.title == "Training in progress, step 3")
    assert {"model.safetensors", "last-checkpoint/model.safetensors"} <= third_step.files.keys()
    environment = hub.environment(tmp_path / "home2", hub.token)
    resumed = train(environment, tmp_path / "second", f"--resume_from_checkpoint=alice/run@{third_step.oid}")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads((tmp_path / "second" / "all_results.json").read_text())["train_steps"] == 6
    for weights in (load(files["model.safetensors"].content), load_file(tmp_path / "second" / "model.safetensors")):
        assert unbroken.keys() == weights.keys()
        assert all(torch.equal(unbroken[name], weights[name]) for name in unbroken)
    assert_nowhere(hub.token, tmp_path / "second", resumed.stdout, resumed.stderr)


def test_a_push_that_fails_does_not_end_the_run(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    hub.fail(COMMIT, method="POST", status=403, times=100)
    folder = tmp_path / "run"
    with pytest.raises(UserError) as error:
        MaskedImageModelingTraining(options(*PUSHING, "--cpu", f"--output_dir={folder}")).run()
    message = str(error.value)
    assert message.startswith(
        f"the run is complete and safe in {folder}, but not on the Hub: cannot push to 'alice/run'"
    )
    assert f"energy-transformer push {folder} alice/run" in message and "\n" not in message
    assert json.loads((folder / "all_results.json").read_text())["train_steps"] == 6
    assert (folder / "model.safetensors").is_file() and (folder / "README.md").is_file()
    assert titles(hub) == ["initial commit"]


def test_the_last_push_brings_what_an_earlier_one_could_not(hub, tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    hub.fail(COMMIT, method="POST", status=403)
    MaskedImageModelingTraining(options(*PUSHING, "--cpu", f"--output_dir={tmp_path / 'run'}")).run()
    assert "the run goes on, and its next push brings what is missing" in caplog.text
    assert f"on the Hub: {hub.url}/alice/run/commit/" in capsys.readouterr().out
    assert titles(hub)[0] == "End of training"
    assert ModelCard(hub.head("alice/run").files["README.md"].content.decode()).data.pipeline_tag


def test_a_token_as_an_option_is_recorded_nowhere(hub, tmp_path):
    folder = tmp_path / "run"
    words = ["--push_to_hub", "--hub_strategy=end", f"--hub_token={hub.token}"]
    done = train(hub.environment(tmp_path / "home"), folder, *words)
    assert done.returncode == 0, done.stderr
    assert "hub_token can be read in the list of processes" in done.stderr
    assert hub.head("alice/run").files["model.safetensors"].content == (folder / "model.safetensors").read_bytes()
    assert json.loads((folder / "all_results.json").read_text())["arguments"]["hub_token"] is None
    assert_nowhere(hub.token, folder, done.stdout, done.stderr)
    assert_nowhere(hub.token, tmp_path / "home")
    assert not any(hub.token.encode() in file.content for file in hub.head("alice/run").files.values())
    typing_error = train(hub.environment(tmp_path / "home"), folder, f"--hub_tokn={hub.token}")
    assert typing_error.returncode == 2
    assert_nowhere(hub.token, folder, typing_error.stdout, typing_error.stderr)


def options(*words):
    return parse_arguments([*SMALL, *words], DEMO, MaskedImageModelingArguments)


@pytest.mark.parametrize(
    ("token", "words", "message"),
    [
        ("hf_wrong", [], "push_to_hub: cannot push to 'alice/run': the Hub does not know the token"),
        (None, [], "there is no token for the Hub"),
        ("right", ["--hub_model_id=bob/run"], "the token has no right to write to bob/run"),
        ("right", ["--hub_model_id=alice/..run"], "the Hub does not allow this name"),
        ("right", ["--resume_from_checkpoint=alice/nothing"], "there is no repository alice/nothing"),
        ("right", ["--resume_from_checkpoint=alice/empty"], "alice/empty holds no last-checkpoint"),
        ("right", ["--resume_from_checkpoint=alice/empty@v9"], "no such revision"),
        ("right", ["--resume_from_checkpoint=a/b/c"], "a/b/c is not a saved state"),
    ],
)
def test_each_mistake_ends_the_run_before_it_begins(hub, tmp_path, monkeypatch, token, words, message):
    hub.add_repository("alice/empty", {"a.txt": b"a"})
    if token:
        monkeypatch.setenv("HF_TOKEN", hub.token if token == "right" else token)
    words = [*PUSHING, f"--output_dir={tmp_path / 'run'}", *words]
    with pytest.raises(UserError, match=message) as error:
        MaskedImageModelingTraining(options(*words))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--hub_model_id=a/b"], "pass --push_to_hub too"),
        (["--push_to_hub", "--hub_strategy=checkpoint"], "pass --checkpointing_steps too"),
    ],
)
def test_options_that_do_not_fit_together(words, message):
    with pytest.raises(UserError, match=message):
        options(*words)


def test_a_token_in_a_recipe_is_refused(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("hub_token: hf_secret\n")
    with pytest.raises(UserError, match="a recipe is no place for a token") as error:
        options(f"--config={recipe}")
    assert "hf_secret" not in str(error.value)
    assert "hf_secret" not in repr(options("--hub_token=hf_secret"))
