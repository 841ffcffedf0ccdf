"""What is loaded from the Hub is what the Hub holds, byte for byte, also over a bad connection or without one."""

import json

import pytest
import torch
from huggingface_hub import close_session, constants
from transformers import AutoConfig, AutoModelForMaskedImageModeling

from energy_transformer.data.image_processing import build_image_processor, load_image_processor
from energy_transformer.hub import failures, load_pretrained, pull, push_folder
from energy_transformer.utils.errors import UserError

READER = "hf_" + "r" * 34


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(failures, "WAITS", (0, 0, 0, 0))


@pytest.fixture
def folder(tmp_path, small_model):
    small_model.save_pretrained(tmp_path / "model")
    build_image_processor((16, 24)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def model_repo(hub, folder):
    hub.add_repository("alice/model", folder)
    return hub


def load(name="alice/model", **options):
    return load_pretrained(AutoModelForMaskedImageModeling, name, **options)


def assert_same(model, other):
    for name, tensor in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def downloads(hub):
    return [request for request in hub.requests if request.method == "GET" and "signature" in request.query]


def test_a_model_and_its_processor(model_repo, small_model):
    assert_same(load(), small_model)
    assert load_image_processor("alice/model").size["width"] == 24
    assert len(downloads(model_repo)) == 1  # the weights, once


def test_by_revision(hub, folder, small_model):
    first = hub.add_repository("alice/model", folder)
    with torch.no_grad():
        small_model.decoder.bias.add_(1)
    small_model.save_pretrained(folder)
    push_folder(folder, "alice/model", revision="v2", token=hub.token)
    assert_same(load("alice/model@v2"), small_model)
    assert_same(load(revision="v2"), small_model)
    for old in (load("alice/model"), load(f"alice/model@{first}")):
        assert torch.equal(old.decoder.bias + 1, small_model.decoder.bias)
    with pytest.raises(UserError, match="alice/model has no such revision"):
        pull("alice/model", "v3")


@pytest.mark.parametrize(
    "fault", [{"cut_download": 5000}, {"cut_download": 5000, "reset": False}, {"status": 500}, {"flip": 9000}], ids=str
)
def test_a_bad_connection(model_repo, small_model, fault):
    """A cut or damaged download of the weights, which lie on the storage of the Hub."""
    model_repo.fail(f"{downloads_path(model_repo)}", method="GET", **fault)
    assert_same(load(), small_model)


def downloads_path(hub):
    """The path of the weights on the storage."""
    return f"*{hub.head('alice/model').files['model.safetensors'].sha256}*"


@pytest.mark.parametrize("fault", [{"drop": "request"}, {"drop": "answer"}, {"status": 503}], ids=str)
@pytest.mark.parametrize("path", ["/api/models/alice/model/revision/main", "/api/models/alice/model/tree/*"])
def test_a_question_without_an_answer(model_repo, small_model, path, fault):
    model_repo.fail(path, **fault)
    assert_same(load(), small_model)


def test_a_small_file_with_a_flipped_byte_is_fetched_again(model_repo, folder, caplog):
    model_repo.fail("/alice/model/resolve/*/energies.py", method="GET", flip=100)
    snapshot = pull("alice/model")
    assert (snapshot / "energies.py").read_bytes() == (folder / "energies.py").read_bytes()
    assert "energies.py of alice/model is not what the Hub lists (checksum): fetching it again" in caplog.text


def test_wrong_twice_is_refused_and_not_kept(model_repo, small_model):
    model_repo.fail(downloads_path(model_repo), method="GET", flip=9000, times=2)
    with pytest.raises(UserError, match=r"cannot pull 'alice/model': model\.safetensors is not what the Hub lists"):
        pull("alice/model")
    assert_same(load(), small_model)  # the damaged file did not stay in the cache


def test_a_file_that_was_damaged_in_the_cache_is_fetched_again(model_repo, small_model):
    path = (pull("alice/model") / "model.safetensors").resolve()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert_same(load(), small_model)


def test_what_was_compared_once_is_not_read_again(model_repo, small_model):
    """A changed file whose size and times are kept is taken as it is: it was not read."""
    snapshot = pull("alice/model")
    blob = (snapshot / "model.safetensors").resolve()
    record = json.loads((snapshot.parents[1] / ".compared.json").read_text())
    assert record[blob.name] == [blob.stat().st_size, blob.stat().st_mtime_ns, blob.stat().st_ctime_ns]
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    record[blob.name][1:] = blob.stat().st_mtime_ns, blob.stat().st_ctime_ns
    (snapshot.parents[1] / ".compared.json").write_text(json.dumps(record))
    assert (pull("alice/model") / "model.safetensors").read_bytes() == content
    (snapshot.parents[1] / ".compared.json").write_text("{")
    assert_same(load(), small_model)


@pytest.mark.parametrize("way", ["offline mode", "no network"])
def test_a_filled_cache_is_enough(model_repo, small_model, way, monkeypatch):
    load()
    asked = len(model_repo.requests)
    if way == "offline mode":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        model_repo.close()
        close_session()
    assert_same(load(), small_model)
    assert len(model_repo.requests) == asked


@pytest.mark.parametrize("way", ["offline mode", "no network"])
def test_an_empty_cache_is_not(model_repo, way, monkeypatch):
    if way == "offline mode":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        message = "alice/model is not in the cache, and HF_HUB_OFFLINE forbids to ask the Hub"
    else:
        model_repo.close()
        message = rf"the Hub \({model_repo.url}\) cannot be reached"
    with pytest.raises(UserError, match=f"there is no such folder, and {message}"):
        load()


def test_a_private_repository(hub, folder, small_model, monkeypatch):
    hub.add_repository("alice/model", folder, private=True)
    assert_same(load(token=hub.token), small_model)


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [
        ("alice/private", None, "there is no repository alice/private, or it is private and needs a token"),
        ("alice/private", "hf_wrong", "the Hub does not know the token"),
        ("alice/private", READER, "there is no repository alice/private, or it is private and needs a token"),
        ("alice/nothing", None, "there is no repository alice/nothing"),
        ("alice/gated", READER, "access to alice/gated must be asked for on its page"),
        ("alice/mo..del", None, "the Hub does not allow this name"),
        ("/no/such/folder", None, "the Hub does not allow this name"),
    ],
)
def test_each_mistake_is_one_line_without_the_token(hub, folder, name, token, message, caplog, capfd):
    hub.add_user("bob", READER)
    hub.add_repository("alice/private", folder, private=True)
    hub.add_repository("alice/gated", folder)
    hub.repository("alice/gated").gated = "manual"
    with pytest.raises(UserError) as error:
        load(name, token=token)
    assert str(error.value).startswith(f"cannot load {name!r}") and message in str(error.value)
    assert "\n" not in str(error.value)
    assert not token or token not in "".join([str(error.value), caplog.text, *capfd.readouterr()])


def test_a_repository_without_a_model(hub):
    hub.add_repository("alice/empty", {"notes.txt": b"none"})
    with pytest.raises(UserError, match=r"cannot load 'alice/empty' with AutoConfig") as error:
        load_pretrained(AutoConfig, "alice/empty")
    assert str(constants.HF_HUB_CACHE) not in str(error.value)
