"""Whether a file is the one that the Hub lists: by its size and the checksum that the Hub keeps."""

import hashlib
from pathlib import Path

from huggingface_hub.hf_api import RepoFile

_CHUNK = 1 << 20  # bytes


def is_the_same(path: Path, listed: RepoFile) -> bool:
    """Compare a local file with an entry of a repository's tree: SHA-256 of an LFS file, git's SHA-1 of another."""
    expected_size = listed.lfs.size if listed.lfs else listed.size
    if path.stat().st_size != expected_size:
        return False
    if listed.lfs:
        return _digest(path, hashlib.sha256()) == listed.lfs.sha256
    git = hashlib.sha1(b"blob %d\0" % expected_size, usedforsecurity=False)
    return _digest(path, git) == listed.blob_id


def _digest(path: Path, checksum) -> str:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            checksum.update(chunk)
    return checksum.hexdigest()
