"""Foreign checkpoint files to named tensors, without running anything that a file brings along.

Three formats: NumPy's `.npz`, the msgpack bytes of `flax.serialization`, and the files of `torch.save`.
"""

import argparse
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ..utils.errors import UserError
from ..utils.extras import install_command

_ZIP = b"PK"
_PICKLE = 0x80
_MSGPACK_MAPS = (*range(0x81, 0x90), 0xDE, 0xDF)
_LFS_POINTER = b"version https://git-lfs"
_CHUNKED = "__msgpack_chunked_array__"


@dataclass
class ForeignFile:
    """What a file holds.

    Attributes:
        path: where it was read from.
        format: `"npz"`, `"msgpack"` or `"torch"`.
        tensors: every array, under its path through the nested dicts, joined by dots.
        others: every other value, under the same kind of names.
        training_state: what `split_training_state` took out of both.
    """

    path: Path
    format: Literal["npz", "msgpack", "torch"]
    tensors: dict[str, torch.Tensor]
    others: dict[str, Any]
    training_state: dict[str, Any] = field(default_factory=dict)


class _Damaged(Exception):
    """The file is not what its first bytes promise; the message says what was met.

    Parsers raise exceptions of any kind for damaged bytes, so that all of them are caught around a parser.
    """


def read_file(path: str | Path) -> ForeignFile:
    """Read a checkpoint; the format is recognized from the bytes, not from the name.

    Raises:
        UserError: when the file is missing, unreadable, damaged, of another format, holds more than tensors and plain
            values, or two values under one name.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise UserError(f"source {path} is {'a folder' if path.is_dir() else 'missing'}: give one checkpoint file")
        file_format = _recognize(path)
    except OSError as error:
        raise UserError(f"source {path} cannot be read: {error.strerror or error}") from error
    try:
        tree = {"npz": _read_npz, "msgpack": _read_msgpack, "torch": _read_torch}[file_format](path)
    except _Damaged as error:
        raise UserError(f"source {path} is damaged or truncated ({file_format} file: {error})") from error
    if not isinstance(tree, dict):
        raise UserError(f"source {path} holds a {type(tree).__name__}, expected a dict of tensors")
    leaves = _flatten(tree)
    tensors = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, torch.Tensor)}
    return ForeignFile(path, file_format, tensors, {name: leaf for name, leaf in leaves.items() if name not in tensors})


def _recognize(path: Path) -> Literal["npz", "msgpack", "torch"]:
    with path.open("rb") as file:
        head = file.read(len(_LFS_POINTER))
    if head == _LFS_POINTER:
        raise UserError(f"source {path} is a Git LFS pointer, not the checkpoint: fetch it with `git lfs pull`")
    if head.startswith(_ZIP):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except Exception as error:
            raise UserError(f"source {path} is damaged or truncated (zip archive: {error})") from error
        if any(name.endswith(".npy") for name in names):
            return "npz"
        if any(name.endswith("data.pkl") for name in names):
            return "torch"
    elif head and head[0] == _PICKLE:
        return "torch"
    if _begins_msgpack_map(head):
        return "msgpack"
    raise UserError(f"source {path} is of an unknown format: expected .npz, flax msgpack or a file of torch.save")


def _begins_msgpack_map(head: bytes) -> bool:
    """Whether a map begins, and its first key is a string: a PNG's first byte would also be that of a map."""
    if not head or head[0] not in _MSGPACK_MAPS:
        return False
    key = head[{0xDE: 3, 0xDF: 5}.get(head[0], 1) :][:1]
    return b"\xa0" <= key <= b"\xbf" or key in (b"\xd9", b"\xda")


def _flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        for leaf, content in (_flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}).items():
            if leaf in leaves:
                raise UserError(f"the source has two values for the key {leaf}")
            leaves[leaf] = content
    return leaves


def _read_npz(path: Path) -> dict[str, torch.Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            _require_different(arrays.files)
            return {name: _to_tensor(np.ascontiguousarray(arrays[name]), arrays[name].shape) for name in arrays.files}
    except UserError:
        raise
    except Exception as error:
        if "allow_pickle" in str(error):
            raise UserError(f"source {path} holds Python objects, not only arrays; they are not unpickled") from error
        raise _Damaged(error) from error


def _to_tensor(array: np.ndarray, shape: tuple[int, ...]) -> Any:
    """A tensor, or the array itself where torch has no such dtype (text)."""
    try:
        return torch.from_numpy(array).reshape(shape)
    except TypeError:
        return array


def _read_torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        unsafe = re.search(r"GLOBAL ([\w.]+)", str(error))
        if unsafe:
            raise UserError(
                f"source {path} is a pickle that holds more than tensors ({unsafe[1]}), and is not unpickled: "
                "save the model's state_dict()"
            ) from error
        raise _Damaged(str(error).split(".")[0] or type(error).__name__) from error


def _read_msgpack(path: Path) -> Any:
    try:
        import msgpack
    except ImportError as error:
        raise UserError(f"flax checkpoints need msgpack: {install_command('convert')}") from error
    try:
        data = path.read_bytes()
        return _join_chunks(msgpack.unpackb(data, ext_hook=_unpack_flax, object_pairs_hook=_dict_of))
    except UserError:
        raise
    except Exception as error:
        raise _Damaged(error) from error


def _require_different(keys: list) -> None:
    twice = next((key for place, key in enumerate(keys) if key in keys[:place]), None)
    if twice is not None:
        raise UserError(f"the source has two values for the key {twice}")


def _dict_of(pairs: list[tuple[Any, Any]]) -> dict:
    _require_different([key for key, _ in pairs])
    return dict(pairs)


def _unpack_flax(code: int, data: bytes) -> Any:
    """flax's extension types: 1 an array, 2 a complex number, 3 a NumPy scalar, as (shape, dtype name, bytes)."""
    import msgpack

    if code == 2:
        return complex(*msgpack.unpackb(data))
    if code not in (1, 3):
        raise ValueError(f"unknown extension type {code}")
    shape, dtype, buffer = msgpack.unpackb(data)
    if dtype == "bfloat16":
        return torch.from_numpy(np.frombuffer(buffer, np.int16).copy()).view(torch.bfloat16).reshape(shape)
    return _to_tensor(np.frombuffer(buffer, np.dtype(dtype)).copy(), tuple(shape))


def _join_chunks(tree: Any) -> Any:
    """flax cuts an array above 1 GiB into pieces of the flattened array, each dict of them marked by a key."""
    if not isinstance(tree, dict):
        return tree
    if _CHUNKED not in tree:
        return {key: _join_chunks(value) for key, value in tree.items()}
    shape, chunks = ([part[str(i)] for i in range(len(part))] for part in (tree["shape"], tree["chunks"]))
    return torch.cat(chunks).reshape([int(size) for size in shape])
