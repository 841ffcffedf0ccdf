"""The Hub of the tests is to the real clients what the Hub is, and fails as it is told."""

import hashlib
import importlib
import subprocess
import sys

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_session
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.sha import git_hash

from energy_transformer import EnergyTransformerForMaskedImageModeling

WEIGHTS = np.random.default_rng(0).bytes(300_000)
FILES = {"model.safetensors": WEIGHTS, "config.json": b"{}", "samples/a.txt": b"picture\n"}
OTHER = "hf_" + "b" * 34
READER = "hf_" + "r" * 34

httpx = importlib.import_module(type(get_session()).__module__.partition(".")[0])  # httpx2 since huggingface-hub 2


@pytest.fixture
def api(hub):
    hub.add_user("bob", OTHER)
    hub.add_user(hub.user, READER, can_write=False)
    return HfApi(token=hub.token)


@pytest.fixture
def folder(tmp_path):
    for name, content in FILES.items():
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "folder"


@pytest.fixture
def pushed(api, folder):
    """The commit of a push of the folder to alice/model."""
    api.create_repo("alice/model")
    return push(api, folder)


def push(api, folder, message="Push", **options):
    return api.upload_folder(repo_id="alice/model", folder_path=folder, commit_message=message, **options)


def read(path):
    with open(path, "rb") as file:
        return file.read()


def download(name="model.safetensors", **options):
    return read(huggingface_hub.hf_hub_download("alice/model", name, **options))


def test_push_and_pull(hub, api, pushed, folder):
    snapshot = huggingface_hub.snapshot_download("alice/model")
    assert all(read(f"{snapshot}/{name}") == content for name, content in FILES.items())
    assert snapshot.endswith(pushed.oid) and hub.head("alice/model").oid == pushed.oid
    assert [commit.title for commit in api.list_repo_commits("alice/model")] == ["Push", "initial commit"]
    assert all(request.status in (200, 302) for request in hub.requests)
    stored = [request for request in hub.requests if "signature" in request.query]
    assert {request.method for request in stored} == {"PUT", "GET"}
    assert not any("authorization" in request.headers for request in stored)

    again = push(api, folder, "Nothing new")
    assert again.oid == pushed.oid and len(hub.asked("", "PUT")) == 1


def test_a_large_file_in_parts(hub, api, pushed):
    hub.part_size = 100_000
    content = WEIGHTS[::-1] + b"tail"
    api.upload_file(repo_id="alice/model", path_in_repo="b.bin", path_or_fileobj=content)
    assert len(hub.asked(r"/\d$", "PUT")) == 4 and len(hub.asked("/complete$", "POST")) == 1
    assert download("b.bin") == content


def test_listings(hub, api, pushed):
    hub.page_size = 2
    tree = {entry.path: entry for entry in api.list_repo_tree("alice/model", recursive=True, expand=True)}
    assert set(tree) == {".gitattributes", "samples", *FILES} and len(hub.asked("/tree/")) == 3
    weights = tree["model.safetensors"]
    assert (weights.lfs.sha256, weights.size) == (hashlib.sha256(WEIGHTS).hexdigest(), len(WEIGHTS))
    assert tree["config.json"].lfs is None and tree["config.json"].blob_id == git_hash(b"{}")
    assert tree["samples"].last_commit.title == "Push" and tree[".gitattributes"].last_commit.title == "initial commit"
    assert {entry.path for entry in api.list_repo_tree("alice/model", "samples")} == {"samples/a.txt"}
    assert {entry.path for entry in api.list_repo_tree("alice/model")} == set(tree) - {"samples/a.txt"}
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree("alice/model", "nowhere"))
    known = api.get_paths_info("alice/model", ["config.json", "nowhere", "samples"], expand=True)
    assert [(info.path, info.last_commit.oid) for info in known] == [
        ("config.json", pushed.oid),
        ("samples", pushed.oid),
    ]


def test_what_is_told_of_a_repository(hub, api, pushed):
    card = "---\nlicense: apache-2.0\ntags: [a, b]\npipeline_tag: image-classification\n---\nText"
    api.upload_file(repo_id="alice/model", path_in_repo="README.md", path_or_fileobj=card.encode())
    info = api.model_info("alice/model", files_metadata=True)
    assert (info.id, info.sha, info.private, info.tags) == (
        "alice/model",
        hub.head("alice/model").oid,
        False,
        ["a", "b"],
    )
    assert info.card_data.license == "apache-2.0" and info.pipeline_tag == "image-classification"
    siblings = {sibling.rfilename: sibling for sibling in info.siblings}
    assert siblings["model.safetensors"].lfs["size"] == len(WEIGHTS)
    assert siblings["config.json"].blob_id == git_hash(b"{}")
    assert api.model_info("alice/model", revision=pushed.oid).sha == pushed.oid
    hub.add_repository("alice/data", {"a.txt": b""}, kind="dataset", private=True)
    assert api.dataset_info("alice/data").private
    assert [model.id for model in api.list_models(author="alice")] == ["alice/model"]
    assert [data.id for data in api.list_datasets(author="alice")] == ["alice/data"]
    assert list(HfApi(token=False).list_datasets(author="alice")) == []


def test_revisions(hub, api, pushed):
    api.create_tag("alice/model", tag="v1")
    api.create_branch("alice/model", branch="try/this")
    api.upload_file(
        repo_id="alice/model",
        path_in_repo="config.json",
        path_or_fileobj=b"[]",
        revision="try/this",
        commit_message="2",
    )
    assert download("config.json", revision="try/this") == b"[]"
    for revision in ("v1", "main", pushed.oid):
        assert download("config.json", revision=revision) == b"{}"
    refs = api.list_repo_refs("alice/model")
    assert {branch.name: branch.target_commit == pushed.oid for branch in refs.branches} == {
        "main": True,
        "try/this": False,
    }
    assert [tag.name for tag in refs.tags] == ["v1"]
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag("alice/model", tag="v1")
    api.create_tag("alice/model", tag="v1", exist_ok=True)
    with pytest.raises(RevisionNotFoundError):
        download("config.json", revision="nowhere")
    with pytest.raises(EntryNotFoundError):
        download("nowhere.json")
    api.delete_branch("alice/model", branch="try/this")
    api.delete_tag("alice/model", tag="v1")
    assert not api.revision_exists("alice/model", "try/this") and not api.revision_exists("alice/model", "v1")


def test_changes_of_a_repository(hub, api, pushed):
    operations = [
        CommitOperationDelete("samples/"),
        CommitOperationAdd("new.txt", b"new"),
        CommitOperationDelete("config.json"),
    ]
    api.create_commit("alice/model", operations, commit_message="Change", parent_commit=pushed.oid)
    assert set(api.list_repo_files("alice/model")) == {".gitattributes", "model.safetensors", "new.txt"}
    with pytest.raises(HfHubHTTPError, match="412"):
        operations = [CommitOperationAdd("late.txt", b"")]
        api.create_commit("alice/model", operations, commit_message="Late", parent_commit=pushed.oid)
    with pytest.raises(EntryNotFoundError):
        api.delete_file("nowhere", "alice/model")
    api.delete_repo("alice/model")
    assert not api.repo_exists("alice/model")


def test_pull_requests(hub, api, pushed):
    bob = HfApi(token=OTHER)
    with pytest.raises(HfHubHTTPError, match=r"403 .*create_pr=1"):
        bob.upload_file(repo_id="alice/model", path_in_repo="b.bin", path_or_fileobj=b"bob")
    change = bob.upload_file(
        repo_id="alice/model", path_in_repo="b.bin", path_or_fileobj=b"bob", create_pr=True, commit_message="Add b"
    )
    assert (change.pr_num, change.pr_revision) == (1, "refs/pr/1")
    assert hub.head("alice/model").oid == pushed.oid
    assert download("b.bin", revision="refs/pr/1") == b"bob"
    api.upload_file(repo_id="alice/model", path_in_repo="a.txt", path_or_fileobj=b"alice")
    listed = list(api.get_repo_discussions("alice/model"))
    assert [(one.title, one.author, one.is_pull_request) for one in listed] == [("Add b", "bob", True)]
    api.merge_pull_request("alice/model", 1)
    assert api.get_discussion_details("alice/model", 1).status == "merged"
    assert set(api.list_repo_files("alice/model")) == {".gitattributes", "a.txt", "b.bin", *FILES}


@pytest.mark.parametrize(
    ("token", "error"),
    [
        (False, RepositoryNotFoundError),
        (OTHER, RepositoryNotFoundError),
        ("hf_wrong", HfHubHTTPError),
        (READER, None),
    ],
    ids=["none", "other", "wrong", "reader"],
)
def test_private_repositories(hub, api, pushed, token, error):
    api.update_repo_settings("alice/model", private=True)
    if error is None:
        assert download(token=token) == WEIGHTS
        return
    with pytest.raises(error) as info:
        api.model_info("alice/model", token=token)
    assert ("Invalid credentials" in str(info.value)) == (token == "hf_wrong")
    with pytest.raises((error, LocalEntryNotFoundError)):
        download(token=token)


def test_missing_and_gated_repositories(hub, api, pushed):
    with pytest.raises(RepositoryNotFoundError, match="404"):
        api.model_info("alice/nothing")
    with pytest.raises(RepositoryNotFoundError, match="401"):
        HfApi(token=False).model_info("alice/nothing")
    hub.repository("alice/model").gated = "manual"
    for token, status in ((False, 401), (OTHER, 403)):
        with pytest.raises(GatedRepoError, match=str(status)):
            download(token=token)
    hub.repository("alice/model").granted.add("bob")
    assert download(token=OTHER) == WEIGHTS


def test_what_is_not_allowed(hub, api, pushed):
    with pytest.raises(HfHubHTTPError, match=r"403 .*rights to create a model under the namespace \"bob\""):
        api.create_repo("bob/model")
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo("alice/new", token=READER)
    with pytest.raises(HfHubHTTPError, match=r"403 .*read access only"):
        push(HfApi(token=READER), ".", allow_patterns="Makefile")
    with pytest.raises(HfHubHTTPError, match=r"409 Conflict[\s\S]*already created"):
        api.create_repo("alice/model")
    assert api.create_repo("alice/model", exist_ok=True).repo_id == "alice/model"
    with pytest.raises(HFValidationError):
        api.create_repo("alice/a--b")
    headers = {"authorization": f"Bearer {hub.token}"}
    for name in ("a--b", "a.git", "-a", "a" * 97, "é"):
        answer = get_session().post(f"{hub.url}/api/repos/create", headers=headers, json={"name": name})
        assert answer.status_code == 400 and "Invalid repository name" in answer.json()["error"]
    hub.add_user("carol", "hf_carol", organizations=("lab",))
    assert api.create_repo("lab/model", token="hf_carol").repo_id == "lab/model"
    assert api.whoami("hf_carol")["orgs"][0]["name"] == "lab"
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api.whoami("hf_wrong")
    api.auth_check("alice/model", token=READER)


def test_cards_are_checked(hub, api, pushed):
    def push_card(metadata):
        card = f"---\n{metadata}\n---\n".encode()
        return api.upload_file(repo_id="alice/model", path_in_repo="README.md", path_or_fileobj=card)

    push_card("license: mit\ntags: [a]")
    mistakes = {"license: none-such": "license", "tags: [1]": "tags", "model-index: [1]": "model-index", "a: [": "YAML"}
    for metadata, name in mistakes.items():
        with pytest.raises(ValueError, match=rf"Invalid metadata in README[\s\S]*{name}"):
            push_card(metadata)
    with pytest.warns(UserWarning, match="not in the official list"):
        push_card("pipeline_tag: none-such")


def test_transformers_pushes_and_pulls(hub, api, small_model, tmp_path):
    pixels = torch.rand(1, 3, 16, 24)
    expected = small_model(pixels).reconstruction
    small_model.push_to_hub("alice/et", token=hub.token, private=True)
    loaded = EnergyTransformerForMaskedImageModeling.from_pretrained("alice/et", token=hub.token)
    assert torch.equal(loaded(pixels).reconstruction, expected)
    with pytest.raises(OSError, match="alice/et"):
        EnergyTransformerForMaskedImageModeling.from_pretrained("alice/et", cache_dir=tmp_path)


def test_another_process(hub, pushed, tmp_path):
    code = (
        "import huggingface_hub as h; print(h.hf_hub_download('alice/model', 'model.safetensors'), h.whoami()['name'])"
    )
    environment = hub.environment(tmp_path / "home", hub.token)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    path, name = done.stdout.split()
    assert path.startswith(str(tmp_path / "home")) and read(path) == WEIGHTS and name == "alice"


@pytest.mark.parametrize("fault", [{"status": 503}, {"status": 429, "retry_after": 0}, {"cut_upload": 1000}], ids=str)
def test_an_upload_that_fails_once_is_tried_again(hub, api, folder, fault):
    """By huggingface_hub itself."""
    api.create_repo("alice/model")
    hub.fail(f"/{hashlib.sha256(WEIGHTS).hexdigest()}", method="PUT", **fault)
    push(api, folder)
    assert [request.status for request in hub.asked("", "PUT")] == [fault.get("status"), 200]
    assert download() == WEIGHTS


@pytest.mark.parametrize(
    ("fault", "moves", "error"),
    [
        ({"status": 500}, False, HfHubHTTPError),
        ({"drop": "request"}, False, httpx.NetworkError),
        ({"drop": "request", "reset": False}, False, httpx.RemoteProtocolError),
        ({"drop": "answer"}, True, httpx.NetworkError),
    ],
    ids=str,
)
def test_a_commit_is_not_tried_again(hub, api, pushed, fault, moves, error):
    hub.fail("/api/models/alice/model/commit/main", method="POST", **fault)
    with pytest.raises(error):
        api.upload_file(repo_id="alice/model", path_in_repo="a.txt", path_or_fileobj=b"a")
    assert (hub.head("alice/model").oid != pushed.oid) == moves


def test_a_download_cut_in_order_is_resumed(hub, pushed, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.fail(f"/{hashlib.sha256(WEIGHTS).hexdigest()}", method="GET", cut_download=100_000, reset=False)
    assert download() == WEIGHTS
    first, second = [request for request in hub.asked("", "GET") if "signature" in request.query]
    assert "range" not in first.headers and second.headers["range"] == "bytes=100000-"
    assert second.status == 206


def test_a_download_cut_by_a_reset_fails(hub, pushed):
    hub.fail(f"/{hashlib.sha256(WEIGHTS).hexdigest()}", method="GET", cut_download=100_000)
    with pytest.raises(httpx.ReadError):
        download()
    assert download() == WEIGHTS


def test_a_flipped_byte_goes_unnoticed(hub, pushed):
    hub.fail(f"/{hashlib.sha256(WEIGHTS).hexdigest()}", flip=1000)
    wrong = download()
    assert [i for i in range(len(WEIGHTS)) if wrong[i] != WEIGHTS[i]] == [1000]


def test_slow_answers_and_those_that_come_later(hub, api, pushed):
    hub.fail("/api/models/alice/model", delay=1.0, skip=1)
    assert api.model_info("alice/model", timeout=0.5).sha == pushed.oid
    with pytest.raises(httpx.ReadTimeout):
        api.model_info("alice/model", timeout=0.5)
    assert api.model_info("alice/model", timeout=0.5).sha == pushed.oid


@pytest.mark.parametrize(
    ("asked", "status", "got"),
    [
        ("bytes=10-19", 206, WEIGHTS[10:20]),
        ("bytes=299990-", 206, WEIGHTS[-10:]),
        ("bytes=-10", 206, WEIGHTS[-10:]),
        ("bytes=0-9999999", 206, WEIGHTS),
        ("bytes=300000-", 416, b""),
    ],
)
def test_ranges(hub, pushed, asked, status, got):
    url = huggingface_hub.hf_hub_url("alice/model", "model.safetensors")
    answer = get_session().get(url, headers={"Range": asked}, follow_redirects=True)
    assert (answer.status_code, answer.content) == (status, got)


def test_large_files_that_are_not_there_or_not_for_all(hub, pushed):
    oid = hashlib.sha256(WEIGHTS).hexdigest()
    assert get_session().get(f"{hub.storage_url}/{oid}").status_code == 403
    line = b'{"key": "lfsFile", "value": {"path": "x", "oid": "00", "size": 1, "algo": "sha256"}}'
    headers = {"authorization": f"Bearer {hub.token}"}
    answer = get_session().post(f"{hub.url}/api/models/alice/model/commit/main", headers=headers, content=line)
    assert answer.status_code == 400 and "does not exist" in answer.json()["error"]
