"""Whether a file is the one that the Hub lists: by its size and the checksum that the Hub keeps."""

import hashlib
from pathlib import Path

from huggingface_hub.hf_api import RepoFile

from ..utils.files import digest


def is_the_same(path: Path, listed: RepoFile) -> bool:
    """Whether a local file is that of an entry of a repository's tree."""
    size, checksum = (listed.lfs.size, listed.lfs.sha256) if listed.lfs else (listed.size, listed.blob_id)
    return path.stat().st_size == size and has_checksum(path, checksum)


def has_checksum(path: Path, checksum: str) -> bool:
    """Compare a file with the SHA-256 that the Hub keeps of an LFS file, or git's SHA-1 that it keeps of another."""
    if len(checksum) == hashlib.sha256().digest_size * 2:
        return digest(path) == checksum
    git = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    return digest(path, git) == checksum
