"""Nothing that a saved state holds is run, whatever stands in its files and wherever it comes from."""

import io
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from training_runs import ENVIRONMENT, ROOT, build, finish, launcher, losses, train

from energy_transformer.training.saved_states import FORMAT, SavedState, find_state, sealed
from energy_transformer.utils.errors import UserError
from energy_transformer.utils.files import digest

LOADER = Path(__file__).with_name("load_hostile_states.py")


class Marker:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'a').write('ran\\n')",)


def raw_pickle(path, marker):
    path.write_bytes(pickle.dumps(Marker(marker)))


def torch_file(path, marker, **options):
    content = io.BytesIO()
    torch.save({"step": Marker(marker)}, content, **options)
    path.write_bytes(content.getvalue())


def legacy_torch_file(path, marker):
    torch_file(path, marker, _use_new_zipfile_serialization=False)


FORGERIES = [raw_pickle, torch_file, legacy_torch_file]


def reseal(folder, **changes):
    """Write the manifest anew, as whoever has changed the files can."""
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    manifest["files"] = {
        str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }
    (folder / "manifest.json").write_text(sealed(manifest))


def files_of(state):
    return sorted(path.relative_to(state) for path in state.rglob("*") if path.is_file())


def forge(state, target, marker):
    """Copies of a state in `target`, in each of which one file is a pickle in one of the forms; returns how many."""
    count = 0
    for name in files_of(state):
        for forgery in FORGERIES:
            copy = target / f"{'-'.join(name.parts)}-{forgery.__name__}"
            shutil.copytree(state, copy)
            forgery(copy / name, marker)
            if name.name != "manifest.json":
                reseal(copy)
            count += 1
    return count


def test_the_marker_works(tmp_path):
    for forgery in FORGERIES:
        forgery(tmp_path / "file", tmp_path / forgery.__name__)
        torch.load(tmp_path / "file", weights_only=False) if forgery is not raw_pickle else pickle.loads(
            (tmp_path / "file").read_bytes()
        )
        assert (tmp_path / forgery.__name__).read_text() == "ran\n"


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    train(folder, "--checkpointing_steps=12", "--ema_decay=0.9")
    return folder / "checkpoint-12"


def test_a_state_is_safetensors_and_json_alone(state):
    names = {str(name) for name in files_of(state)}
    assert names == {
        "manifest.json", "model.safetensors", "optimizer.safetensors", "average.safetensors", "training.json",
        "process_0.json", "options.json",
    }  # fmt: skip


def test_no_file_of_a_state_is_run_by_one_process(state, tmp_path):
    count = forge(state, tmp_path / "states", tmp_path / "marker")
    assert count == 21
    for folder in sorted((tmp_path / "states").iterdir()):
        with pytest.raises(UserError) as error:
            build(tmp_path / "run", "--ema_decay=0.9", f"--resume_from_checkpoint={folder}")
        assert str(error.value).startswith(f"resume_from_checkpoint: {folder}") and "\n" not in str(error.value)
    assert not (tmp_path / "marker").exists()


def test_all_files_at_once_from_the_hub(hub, state, tmp_path):
    for forgery in FORGERIES:
        copy = tmp_path / forgery.__name__
        shutil.copytree(state, copy)
        for name in files_of(copy):
            if name.name != "manifest.json":
                forgery(copy / name, tmp_path / "marker")
        reseal(copy)
        files = {f"last-checkpoint/{name}": (copy / name).read_bytes() for name in files_of(copy)}
        hub.add_repository(f"mallory/{forgery.__name__}", files)
        with pytest.raises(UserError, match=r"resume_from_checkpoint: .*last-checkpoint"):
            build(tmp_path / "run", "--ema_decay=0.9", f"--resume_from_checkpoint=mallory/{forgery.__name__}")
    assert not (tmp_path / "marker").exists()


def load_all(config, folder, *words):
    command = launcher(config, folder, *words)
    done = finish([*command[: command.index("--config_file") + 2], LOADER, folder, *words])
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"outcomes-{process}.json").read_text()) for process in (0, 1)]


@pytest.fixture(scope="module")
def state_of_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    done = finish(launcher("multi_cpu", folder, "--per_device_train_batch_size=4", "--checkpointing_steps=12"))
    assert done.returncode == 0, done.stderr
    return folder / "checkpoint-12"


@pytest.mark.parametrize("config", ["multi_cpu", "fsdp"])
def test_no_file_of_a_state_is_run_by_two_processes(config, state_of_two, tmp_path):
    """The untouched state was saved by processes that hold whole weights, and is taken up by sharded ones too."""
    count = forge(state_of_two, tmp_path / "states", tmp_path / "marker")
    assert count == 21  # of the manifest, the weights, the moments, the schedule, the options and the two processes
    shutil.copytree(state_of_two, tmp_path / "states" / "zz-untouched")
    for outcomes in load_all(config, tmp_path, "--per_device_train_batch_size=4"):
        assert outcomes.pop("zz-untouched") == "loaded" and len(outcomes) == count
        assert all(outcome.startswith("refused: resume_from_checkpoint: ") for outcome in outcomes.values()), outcomes
    assert not (tmp_path / "marker").exists()


def test_two_processes_go_on_from_the_hub(hub, state_of_two, tmp_path):
    """The second one reads the very commit that the main process has chosen."""
    files = {f"last-checkpoint/{name}": (state_of_two / name).read_bytes() for name in files_of(state_of_two)}
    hub.add_repository("alice/run", files)
    words = ["--per_device_train_batch_size=4", "--max_train_steps=14", "--resume_from_checkpoint=alice/run"]
    environment = {**ENVIRONMENT, **hub.environment(tmp_path / "home")}
    done = finish(launcher("multi_cpu", tmp_path / "run", *words), environment=environment)
    assert done.returncode == 0, done.stderr
    assert sorted(losses(tmp_path / "run")) == [13, 14]


SHARDED = "fsdp_state_dict_type: SHARDED_STATE_DICT"


def test_a_sharded_state_is_read_when_it_is_trusted_alone(tmp_path):
    text = (ROOT / "configuration" / "accelerate" / "fsdp.yaml").read_text()
    config = tmp_path / "sharded.yaml"
    config.write_text(text.replace("fsdp_state_dict_type: FULL_STATE_DICT", SHARDED))
    assert SHARDED in config.read_text()
    words = ["--per_device_train_batch_size=4", "--checkpointing_steps=12"]
    done = finish(launcher(config.with_suffix(""), tmp_path / "saved", *words))
    assert done.returncode == 0, done.stderr
    saved = tmp_path / "saved" / "checkpoint-12"
    assert SavedState.read(saved).layout == "sharded" and list(saved.rglob(".metadata"))
    count = forge(saved, tmp_path / "states", tmp_path / "marker")
    for outcomes in load_all(config.with_suffix(""), tmp_path, "--per_device_train_batch_size=4"):
        assert len(outcomes) == count
        for name, outcome in outcomes.items():
            reason = (
                "manifest.json cannot be read" if "manifest.json" in name else "pass --trust_state if you trust them"
            )
            assert outcome.startswith("refused: resume_from_checkpoint: ") and reason in outcome, outcome
    assert not (tmp_path / "marker").exists()
    shutil.rmtree(tmp_path / "states")
    shutil.copytree(saved, tmp_path / "states" / "untouched")
    outcomes = load_all(config.with_suffix(""), tmp_path, "--per_device_train_batch_size=4", "--trust_state")
    assert outcomes == [{"untouched": "loaded"}] * 2


@pytest.mark.parametrize("name", ["mp_rank_00_model_states.pt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"])
def test_a_state_of_deepspeed_is_not_read(state, tmp_path, name):
    folder = tmp_path / "checkpoint-12"
    shutil.copytree(state, folder)
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    (folder / "deepspeed").mkdir()
    (folder / "latest").write_text("deepspeed")
    torch_file(folder / "deepspeed" / name, tmp_path / "marker")
    reseal(folder, layout="deepspeed")
    with pytest.raises(UserError, match=r"checkpoint-12 is in DeepSpeed's own format, .* pass --trust_state if"):
        build(tmp_path / "run", f"--resume_from_checkpoint={folder}")
    words = ["--trust_state", "--ema_decay=0.9", f"--resume_from_checkpoint={folder}"]
    with pytest.raises(UserError, match="is deepspeed, which this launch file does not take up"):
        build(tmp_path / "run", *words)
    reseal(folder, layout="whole")
    with pytest.raises(UserError, match="is of another model or run"):
        build(tmp_path / "run", "--ema_decay=0.9", f"--resume_from_checkpoint={folder}")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("words", ["latest", "named"])
def test_a_state_of_an_earlier_version_is_refused_in_one_line(state, tmp_path, words):
    folder = tmp_path / "run" / "checkpoint-12"
    shutil.copytree(state, folder)
    raw_pickle(folder / "custom_checkpoint_0.pkl", tmp_path / "marker")
    reseal(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest.pop("format") == FORMAT
    for later in ("layout", "held_out", "branch", "branches", "sha256"):
        manifest.pop(later)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"checkpoint-12 was saved in format 1, and this version .* reads format 3"):
        find_state(tmp_path / "run", "latest" if words == "latest" else str(folder))
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "changes",
    [{"step": "12"}, {"branches": []}, {"files": {"/etc/passwd": {"size": 1, "sha256": ""}}}, {"metric": "nan"},
     {"files": {"../x": {"size": 1, "sha256": ""}}}, {"run": None}, {"unknown": 1}],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_a_forged_manifest_is_refused(state, tmp_path, changes):
    folder = tmp_path / "checkpoint-12"
    shutil.copytree(state, folder)
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    (folder / "manifest.json").write_text(sealed(manifest))
    with pytest.raises(UserError, match=r"checkpoint-12 is damaged: manifest\.json cannot be read"):
        SavedState.read(folder)
