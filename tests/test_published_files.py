"""What leaves this machine is what the run wrote: no link, no file of others, no path of this machine."""

import logging

import pytest

from energy_transformer.hub import files_to_push
from energy_transformer.hub.contents import LAST_CHECKPOINT, files_that_stay
from energy_transformer.training.masked_image_modeling_arguments import MaskedImageModelingArguments
from energy_transformer.training.publishing import Publisher
from energy_transformer.training.records import public_options
from energy_transformer.utils.errors import UserError

FOREIGN = (
    "slurm-123.out", "nohup.out", "wandb/run/config.yaml", "notes.py", "secrets.txt", "other.safetensors", ".netrc",
    "runs/events", "mlruns/0", "samples/notes.txt", "samples/step-2/list.csv", "checkpoint-5/optimizer.bin", "my.json",
)  # fmt: skip
WRITTEN = (
    "README.md", "all_results.json", "training_log.jsonl", "samples/energy.png", "samples/step-2/descent.png",
    "preprocessor_config.json",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path, small_model):
    folder = tmp_path / "output"
    small_model.save_pretrained(folder)
    for name in (*FOREIGN, *WRITTEN):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text("{}")
    return folder


def test_only_what_a_run_writes_is_pushed(folder):
    names = set(files_to_push(folder))
    code = {name for name in names if name.endswith(".py")}
    assert {"modeling_energy_transformer.py", "configuration_energy_transformer.py", "energies.py"} <= code
    assert names - code == {*WRITTEN, "config.json", "model.safetensors"}
    assert files_that_stay(folder, files_to_push(folder)) == [
        "checkpoint-5/", "mlruns/", "my.json", "nohup.out", "notes.py", "other.safetensors", "runs/", "secrets.txt",
        "slurm-123.out", "wandb/",
    ]  # fmt: skip


def test_the_parts_of_a_large_model_are_pushed(folder, small_model):
    (folder / "model.safetensors").unlink()
    small_model.save_pretrained(folder, max_shard_size="10KB")
    weights = {name for name in files_to_push(folder) if "model" in name and not name.endswith(".py")}
    assert "model.safetensors.index.json" in weights and len(weights) > 2


@pytest.mark.parametrize("name", ["all_results.json", "samples/energy.png", "energies.py", "samples", "samples/step-2"])
def test_a_link_is_refused_by_name(folder, tmp_path, name):
    path, elsewhere = folder / name, tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    with pytest.raises(UserError, match=f"{path} is a link") as error:
        files_to_push(folder)
    assert "\n" not in str(error.value)


def test_a_link_that_leads_nowhere_is_refused_too(folder):
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"README\.md is a link"):
        files_to_push(folder)


def test_the_folder_itself_may_be_a_link(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert files_to_push(tmp_path / "link").keys() == files_to_push(folder).keys()


def test_of_a_state_the_hidden_files_stay_and_links_are_refused(folder, tmp_path):
    state = folder / "checkpoint-5"
    (state / ".local.json").write_text("{}")
    assert [name for name in files_to_push(folder, state) if LAST_CHECKPOINT in name] == [
        "last-checkpoint/optimizer.bin"
    ]
    (tmp_path / "secret").write_text("secret")
    (state / "more.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=r"checkpoint-5/more\.bin is a link"):
        files_to_push(folder, state)


def test_a_link_does_not_end_the_run_that_pushes(hub, folder, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    options = MaskedImageModelingArguments(output_dir=str(folder), push_to_hub=True, hub_model_id="alice/run")
    publisher = Publisher(options)
    (folder / "samples" / "energy.png").unlink()
    (folder / "samples" / "energy.png").symlink_to(tmp_path)
    with caplog.at_level(logging.WARNING):
        publisher.push("Training in progress", None)
    assert "energy.png is a link" in caplog.text and "the run goes on" in caplog.text
    with pytest.raises(UserError, match=f"the run is complete and safe in {folder}, but not on the Hub: .*is a link"):
        publisher.finish(None)


def test_recorded_options_name_no_path_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("demo", "photographs"):
        (tmp_path / name).mkdir()
    paths = {
        "output_dir": "outputs/secret", "train_dir": "secret", "validation_dir": str(tmp_path),
        "model_name_or_path": "photographs", "resume_from_checkpoint": "~/secret/checkpoint-5",
    }  # fmt: skip
    recorded = public_options(MaskedImageModelingArguments(**paths, seed=3))
    assert {recorded[name] for name in paths} == {"(a local path)"}
    assert (recorded["seed"], recorded["dataset_name"]) == (3, "demo")
    names = {
        "dataset_name": "uoft-cs/cifar10",
        "model_name_or_path": "alice/run@v1",
        "resume_from_checkpoint": "latest",
    }
    recorded = public_options(MaskedImageModelingArguments(**names))
    assert {name: recorded[name] for name in names} == names
