"""A finished run goes to the Hub whole and once, whatever the Hub does on the way."""

import hashlib
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, snapshot_download

from energy_transformer.hub import failures, files_to_push, push_files, push_folder
from energy_transformer.hub.contents import space_files
from energy_transformer.utils.errors import UserError

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "push_to_hub.py"
COMMIT = "/api/models/alice/model/commit/main"
READER = "hf_" + "r" * 34


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(failures, "WAITS", (0, 0, 0, 0))


@pytest.fixture
def folder(tmp_path, small_model):
    """What a run leaves, and what must not leave with it."""
    folder = tmp_path / "output"
    small_model.save_pretrained(folder)
    for name in ("all_results.json", "samples/energy.png", ".hidden", "checkpoint-5/model.safetensors", "logs/events"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text("{}")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags:\n- mine\n---\n\n# A card\n")
    return folder


def pushed_files(hub, revision="main"):
    return {name: file.content for name, file in hub.head("alice/model", revision=revision).files.items()}


def assert_whole(hub, folder, revision="main"):
    there = pushed_files(hub, revision)
    for name, path in files_to_push(folder).items():
        assert there[name] == path.read_bytes(), name


def commits(hub):
    return [request for request in hub.asked("/commit/main") if request.status == 200]


def test_one_commit_holds_all_and_nothing_else(hub, folder):
    address = push_folder(folder, "alice/model", token=hub.token)
    assert_whole(hub, folder)
    head = hub.head("alice/model")
    assert address == f"{hub.url}/alice/model/commit/{head.oid}" and len(commits(hub)) == 1
    names = set(pushed_files(hub)) - {".gitattributes"}
    assert {"model.safetensors", "config.json", "energies.py", "all_results.json", "samples/energy.png"} <= names
    assert not any(name.startswith(("checkpoint-", ".", "logs")) for name in names)
    push_folder(folder, "alice/model", token=hub.token)
    assert hub.head("alice/model").oid == head.oid  # nothing new, no empty commit


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 500},
        {"status": 503, "times": 3},
        {"status": 429},
        {"drop": "request"},
        {"drop": "answer"},
        {"drop": "answer", "reset": False},
        {"cut_upload": 1000},
    ],
    ids=str,
)
def test_a_commit_that_fails_or_is_not_answered_is_there_once(hub, folder, fault):
    hub.fail(COMMIT, method="POST", **fault)
    push_folder(folder, "alice/model", token=hub.token)
    assert_whole(hub, folder)
    history = [commit.title for commit in hub.repository("alice/model").history(hub.head("alice/model"))]
    assert history.count("Upload model") == 1


def test_a_fault_in_the_middle_of_an_upload(hub, folder):
    hub.fail("*", method="PUT", cut_upload=10_000)
    push_folder(folder, "alice/model", token=hub.token)
    assert_whole(hub, folder)


def test_a_pull_request_whose_answer_was_lost_is_opened_once(hub, folder):
    hub.fail(COMMIT, method="POST", drop="answer")
    address = push_folder(folder, "alice/model", create_pr=True, token=hub.token)
    assert [discussion.num for discussion in hub.repository("alice/model").discussions] == [1]
    assert address.endswith("/discussions/1")
    assert_whole(hub, folder, "refs/pr/1")
    assert "model.safetensors" not in pushed_files(hub)


def test_a_hub_that_stays_broken_ends_in_one_line(hub, folder):
    hub.fail(COMMIT, method="POST", status=500, times=100)
    with pytest.raises(UserError, match="cannot push to 'alice/model': the Hub answered 500: Internal Error"):
        push_folder(folder, "alice/model", token=hub.token)
    assert "model.safetensors" not in pushed_files(hub)


def test_what_the_hub_lists_is_compared_with_what_was_sent(hub, folder, monkeypatch):
    from hub_server import api as hub_api

    entry = hub_api._file_entry
    monkeypatch.setattr(hub_api, "_file_entry", lambda path, file: entry(path, file) | {"oid": "0" * 40})
    with pytest.raises(UserError, match=r"does not hold what was sent: README\.md"):
        push_folder(folder, "alice/model", token=hub.token)


def test_branch_privacy_tags_and_state(hub, folder):
    hub.add_repository(
        "alice/model", {"last-checkpoint/random_states_1.pkl": b"old", "kept.txt": b"kept"}, private=True
    )
    push_folder(
        folder,
        "alice/model",
        private=True,
        revision="v1",
        tags=["one", "mine"],
        commit_message="First",
        token=hub.token,
        state=folder / "checkpoint-5",
    )
    there = pushed_files(hub, "v1")
    assert hub.head("alice/model", revision="v1").title == "First"
    assert ModelCard(there["README.md"].decode()).data.tags == ["mine", "one"]
    assert ModelCard.load(folder / "README.md").data.tags == ["mine"]
    assert there["last-checkpoint/model.safetensors"] == b"{}"
    assert "last-checkpoint/random_states_1.pkl" not in there and there["kept.txt"] == b"kept"
    assert "model.safetensors" not in pushed_files(hub)


@pytest.mark.parametrize(
    ("repo_id", "token", "message"),
    [
        ("alice/model", "hf_" + "x" * 34, "the Hub does not know the token"),
        ("alice/model", None, "there is no token for the Hub"),
        ("alice/model", "hf_\nx", "the token holds characters that no token of the Hub has"),
        ("alice/model", READER, "the token has no right to write to alice/model"),
        ("bob/model", "right", "the token has no right to write to bob/model"),
        ("alice/mo--del", "right", "the Hub does not allow this name: Cannot have -- or .. in repo_id"),
        ("a/b/c", "right", "the Hub does not allow this name"),
        ("alice/public", "right", "alice/public is there already and is public"),
    ],
)
def test_each_mistake_is_one_line_without_the_token(hub, folder, repo_id, token, message, capfd, caplog):
    hub.add_user(hub.user, READER, can_write=False)
    hub.add_repository("alice/public", {"a.txt": b"a"})
    token = hub.token if token == "right" else token
    with pytest.raises(UserError) as error:
        push_folder(folder, repo_id, token=token, private=True)
    assert message in str(error.value) and "\n" not in str(error.value)
    printed = "".join([str(error.value), *capfd.readouterr(), caplog.text])
    assert not token or token not in printed


def test_out_of_reach(hub, folder):
    hub.close()
    with pytest.raises(UserError, match=f"the Hub \\({hub.url}\\) cannot be reached"):
        push_folder(folder, "alice/model", token=hub.token)


def run_script(*words):
    runpy.run_path(str(SCRIPT))["main"]([str(word) for word in words])


def test_dry_run_lists_names_and_sizes_without_the_hub(hub, folder, capsys):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    run_script(folder, "alice/model", "--dry_run")
    lines = capsys.readouterr().out.splitlines()
    size = (folder / "model.safetensors").stat().st_size
    assert f"{size:,}  model.safetensors" in [line.strip() for line in lines]
    assert lines[-1].endswith("bytes would go to alice/model")
    assert not hub.requests and before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_script_as_a_process(hub, folder, tmp_path):
    environment = hub.environment(tmp_path / "home", hub.token) | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, SCRIPT, folder, "alice/model", "--private", "--tag", "one", "--commit_message=Mine"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    head = hub.head("alice/model")
    assert done.stdout == f"pushed: {hub.url}/alice/model/commit/{head.oid}\n"
    assert hub.repository("alice/model").private and head.title == "Mine"
    assert hub.token not in done.stdout + done.stderr
    wrong = subprocess.run(
        command, env=environment | {"HF_TOKEN": "hf_wrong"}, capture_output=True, text=True, timeout=120
    )
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines()[-1].startswith("error: cannot push to 'alice/model': the Hub does not know")
    assert "hf_wrong" not in wrong.stdout + wrong.stderr and "Traceback" not in wrong.stderr


START = """
import energy_transformer
from energy_transformer.app.session import Explorer
explorer = Explorer.of(str(energy_transformer.demo_checkpoint()))
print(energy_transformer.__file__, explorer.most_steps)
"""


def test_a_space_runs_on_what_was_pushed_alone(hub, tmp_path, monkeypatch):
    """Up to its interface, which tests/test_app.py opens."""
    run_script(ROOT / "spaces", "alice/app", "--repo_type=space", f"--token={hub.token}")
    assert hub.repository("alice/app", "space").find("main").title == "Upload space"
    space = Path(snapshot_download("alice/app", repo_type="space", local_dir=tmp_path / "space"))
    names = {path.relative_to(space).as_posix() for path in space.rglob("*") if ".cache" not in path.parts}
    assert {"app.py", "README.md", "requirements.txt"} <= names
    assert "energy_transformer/weights/demo/model.safetensors" in names and not [n for n in names if "pycache" in n]
    environment = os.environ | {"PYTHONPATH": str(space)}
    done = subprocess.run([sys.executable, "-c", START], cwd=space, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(space / "energy_transformer" / "__init__.py"), "12"]


def test_hidden_files_of_the_package_are_no_part_of_a_space(tmp_path, monkeypatch):
    package = tmp_path / "energy_transformer"
    (package / ".ipynb_checkpoints").mkdir(parents=True)
    for name in ("block.py", ".draft.py", ".ipynb_checkpoints/block-checkpoint.py"):
        (package / name).write_text("")
    monkeypatch.setattr("energy_transformer.hub.contents.PACKAGE", package)
    names = {name for name in space_files(ROOT / "spaces") if name.startswith("energy_transformer")}
    assert names == {"energy_transformer/block.py"}


def test_a_space_whose_answer_was_lost_is_committed_once(hub, tmp_path):
    hub.fail("/api/spaces/alice/app/commit/main", method="POST", drop="answer")
    address = push_files(space_files(ROOT / "spaces"), "alice/app", token=hub.token, repo_type="space")
    repository = hub.repository("alice/app", "space")
    assert [commit.title for commit in repository.history(repository.find("main"))] == [
        "Upload model",
        "initial commit",
    ]
    assert address == f"{hub.url}/spaces/alice/app/commit/{repository.find('main').oid}"


def test_a_dry_run_of_a_space(hub, capsys):
    run_script(ROOT / "spaces", "alice/app", "--repo_type=space", "--dry_run")
    listed = capsys.readouterr().out
    assert "  app.py\n" in listed and "  energy_transformer/block.py\n" in listed and not hub.requests


def test_a_space_lists_what_the_package_and_its_app_need():
    project = (ROOT / "pyproject.toml").read_text()
    needed = []
    for name in ("dependencies", "train"):
        block = re.search(rf"^{name} = \[\n(.*?)^\]", project, re.MULTILINE | re.DOTALL)
        needed += re.findall(r'"(.+)"', block[1])
    assert 'app = ["energy-transformer[train]", "gradio>=6"]' in project
    listed = (ROOT / "spaces" / "requirements.txt").read_text().splitlines()
    assert [line for line in listed if not line.startswith("#")] == needed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "app.py").unlink(), "holds no Space: it lacks app.py"),
        (lambda folder: (folder / "README.md").write_text("---\nsdk: static\n---\n"), "holds no Space with Gradio"),
        (lambda folder: [(folder / "app.py").unlink(), (folder / "app.py").symlink_to(SCRIPT)], "app.py is a link"),
    ],
)
def test_a_folder_that_is_no_space_is_not_pushed(hub, tmp_path, change, message):
    folder = shutil.copytree(ROOT / "spaces", tmp_path / "spaces")
    change(folder)
    with pytest.raises(UserError, match=message) as error:
        run_script(folder, "alice/app", "--repo_type=space")
    assert "\n" not in str(error.value) and not hub.requests


def damage(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "holds no model: its config.json cannot be read"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot load"),
        (damage, "cannot load"),
        (lambda folder: (folder / "block.py").unlink(), "lacks the model's code, block.py"),
        (
            lambda folder: [(folder / name).unlink() for name in ("README.md", "all_results.json")],
            "its run has not finished",
        ),
        (lambda folder: (folder / "README.md").write_text("---\ntags: [\n---\n"), "is not that of a card: while"),
        (lambda folder: (folder / "README.md").write_text("---\n- a\n---\n"), "card metadata block should be a dict"),
        (lambda folder: (folder / "config.json").write_text('{"architectures": ["ViTModel"]}'), "holds a ViTModel"),
        (lambda folder: (folder / "config.json").write_text("{}"), "holds no model of this package"),
        (lambda folder: os.rename(folder, folder.with_name("gone")), "is not a folder"),
    ],
)
def test_a_folder_that_is_not_finished_is_not_pushed(hub, folder, change, message):
    change(folder)
    with pytest.raises(UserError, match=message) as error:
        run_script(folder, "alice/model", "--token", hub.token)
    assert "\n" not in str(error.value)
    assert not hub.requests


def test_a_pull_request_goes_to_main(folder):
    with pytest.raises(UserError, match="create_pr opens a pull request against main"):
        run_script(folder, "alice/model", "--create_pr", "--revision", "v1")


def test_checksums_are_those_of_git_and_lfs(hub, folder):
    push_folder(folder, "alice/model", token=hub.token)
    files = hub.head("alice/model").files
    weights = (folder / "model.safetensors").read_bytes()
    assert files["model.safetensors"].sha256 == hashlib.sha256(weights).hexdigest()
    blob = subprocess.run(["git", "hash-object", folder / "config.json"], capture_output=True, text=True).stdout.strip()
    assert files["config.json"].blob_id == blob
