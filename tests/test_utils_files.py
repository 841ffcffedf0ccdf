"""Files and folders appear whole or not at all, and what stood there before outlives a failure."""

import hashlib

import pytest

from energy_transformer.utils.files import atomic_files, atomic_path, digest, write_json


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path):
    with atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "a").exists()
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "new"


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_a_failure_leaves_what_was_there(tmp_path, folder):
    (tmp_path / "a").write_text("old")
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a") as temporary:
        if folder:
            temporary.mkdir()
            temporary = temporary / "inside"
        temporary.write_text("half")
        raise RuntimeError
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"


def test_a_folder_never_replaces_one_that_holds_something(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "of another process").touch()
    with pytest.raises(OSError), atomic_path(tmp_path / "a") as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["of another process"]


def test_files_of_a_folder_are_replaced_together(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(RuntimeError), atomic_files(tmp_path) as temporary:
        (temporary / "a").write_text("half")
        raise RuntimeError
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"
    with atomic_files(tmp_path) as temporary:
        (temporary / "a").write_text("new")
        (temporary / "b").write_text("new")
    assert names(tmp_path) == ["a", "b"] and (tmp_path / "a").read_text() == "new"


def test_json_of_what_json_cannot_say_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "a", {"loss": object()})
    assert names(tmp_path) == []


def test_a_digest_is_that_of_hashlib(tmp_path):
    content = bytes(range(256)) * 10_000
    (tmp_path / "a").write_bytes(content)
    assert digest(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    assert digest(tmp_path / "a", hashlib.sha1(b"before")) == hashlib.sha1(b"before" + content).hexdigest()
