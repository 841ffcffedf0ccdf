"""Which files below a folder hold images, and to which split each belongs, told in one line.

The rules are those by which `datasets` reads a folder of images, applied to the names of the files that are there: a
name is never a pattern, no file is in two splits, and one odd file hides nothing:

- Hidden files and folders, and those whose name begins with two underscores, are passed over; a link to a file is
  taken, one to a folder is not followed.
- Images, parquet files and WebDataset's tar files are not mixed: what takes the most room is read. A zip archive of
  images is read where there is nothing else.
- A folder named `train`, `val`, `test` or the like is a split, if the images outside of such folders leave no doubt.
  The same holds for the names of parquet and tar files, and of image files if all of them have such a name.
- Folders are labels where all images lie equally deep, in more than one folder; a metadata file with a column of file
  names takes their place.
"""

import functools
import json
import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import pandas
import pyarrow
import pyarrow.parquet
from datasets.data_files import FILES_TO_IGNORE, NON_WORDS_CHARS, SPLIT_KEYWORDS
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from ..utils.errors import UserError

_KEYWORD = {
    str(split): re.compile(f"(^|[{NON_WORDS_CHARS}])({'|'.join(words)})([{NON_WORDS_CHARS}]|$)")
    for split, words in SPLIT_KEYWORDS.items()
}
_NUMBERED = re.compile(r"(.+)-\d{5}-of-\d{5}")  # a shard as `datasets` names it
_KINDS = {"images": "imagefolder", "parquet files": "parquet", "tar files": "webdataset", "archives": "imagefolder"}


@dataclass
class LocalFiles:
    """What is read: `files` of each split by the module `builder` of `datasets`, with its `options`; `told` says so."""

    builder: str
    files: dict[str, list[Path]]
    told: str
    options: dict[str, Any] = field(default_factory=dict)


def find_local_files(folder: Path, image_column: str | None = None) -> LocalFiles:
    """Look through a folder; `image_column` names a column of parquet files that holds images, whatever its type.

    Raises:
        UserError: when it holds no images; says what it holds.
    """
    by_kind, left = _sort(folder)
    if not (chosen := _with_images(by_kind["parquet files"], image_column)):  # what they hold instead will be told
        chosen = [] if by_kind["images"] or by_kind["tar files"] else by_kind["parquet files"]
    left.update(_suffixes(set(by_kind["parquet files"]) - set(chosen)))
    by_kind["parquet files"] = chosen
    present = [kind for kind in _KINDS if kind != "archives" and by_kind[kind]] or ["archives"]
    kind = present[0] if len(present) == 1 else max(present, key=lambda kind: _size(by_kind[kind]))
    files = by_kind[kind]
    for other in _KINDS.keys() - {kind}:
        left.update(_suffixes(by_kind[other]))
    if not files:
        raise UserError(f"there are no images below {folder}{_told_of(left)}")
    splits, outside = _assign(folder, files, by_file=kind != "images")
    left["outside of the splits"] += len(outside)
    found = LocalFiles(_KINDS[kind], splits, "")
    about_labels = ""
    if kind == "images":
        about_labels = _labels_and_metadata(folder, found, by_kind["metadata"], left)
    else:
        left.update(_suffixes(by_kind["metadata"]))
        if kind == "archives":  # `datasets` takes the archive's own folder for the label
            found.options, about_labels = {"drop_labels": True, "drop_metadata": True}, ", no labels"
    counts = ", ".join(f"{len(files)} {name}" for name, files in splits.items())
    found.told = f"{folder}: {kind}: {counts}{about_labels}{_told_of(left)}"
    return found


def _sort(folder: Path) -> tuple[dict[str, list[Path]], Counter[str]]:
    """The files that may be read, by kind, and how many of what are left."""
    by_kind: dict[str, list[Path]] = {kind: [] for kind in (*_KINDS, "metadata")}
    left: Counter[str] = Counter()
    for file in _walk(folder, left):
        suffix = file.suffix.lower()
        if file.name in ImageFolder.METADATA_FILENAMES:
            by_kind["metadata"].append(file)
        elif suffix in ImageFolder.EXTENSIONS:
            by_kind["images"].append(file)
        elif suffix in (".parquet", ".tar"):
            by_kind[f"{suffix[1:]} files"].append(file)
        elif suffix == ".zip" and _holds_images(file):
            by_kind["archives"].append(file)
        elif file.name not in FILES_TO_IGNORE:
            left[file.suffix or "without an extension"] += 1
    if not by_kind["images"]:  # then metadata.parquet is what its extension says
        by_kind["parquet files"] += [file for file in by_kind["metadata"] if file.suffix == ".parquet"]
        by_kind["metadata"] = [file for file in by_kind["metadata"] if file.suffix != ".parquet"]
    return by_kind, left


def _walk(folder: Path, left: Counter[str]) -> Iterator[Path]:
    folders = [str(folder)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"the folder {error.filename} cannot be read: {error.strerror}") from error
        for entry in found:
            if _is_hidden(entry.name):
                left["hidden"] += 1
            elif entry.is_file():  # also through a link
                yield Path(entry.path)
            elif entry.is_symlink():
                left["linked folders" if entry.is_dir() else "broken links"] += 1
            elif not entry.is_dir():
                left["no files"] += 1
        inside = (entry for entry in reversed(found) if entry.is_dir(follow_symlinks=False))
        folders += [entry.path for entry in inside if not _is_hidden(entry.name)]


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__"))


def _holds_images(archive: Path) -> bool:
    try:
        with zipfile.ZipFile(archive) as file:
            return any(PurePath(name).suffix.lower() in ImageFolder.EXTENSIONS for name in file.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _with_images(files: list[Path], image_column: str | None) -> list[Path]:
    """Those of the parquet files that have images. One is opened of those whose names differ in digits alone."""
    verdicts: dict[tuple[Path, str], bool] = {}
    chosen = []
    for file in files:
        kind = file.parent, re.sub(r"\d+", "#", file.name)
        if kind not in verdicts:
            verdicts[kind] = _has_images(file, image_column)
        if verdicts[kind]:
            chosen.append(file)
    return chosen


def _has_images(file: Path, image_column: str | None) -> bool:
    try:
        schema = pyarrow.parquet.read_schema(file)
    except (OSError, pyarrow.ArrowException):
        return False
    if image_column in schema.names:
        return True
    return any(pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 for kind in schema.types)


def _split_of(name: str) -> str | None:
    return next((split for split, pattern in _KEYWORD.items() if pattern.search(name)), None)


def _assign(folder: Path, files: list[Path], by_file: bool) -> tuple[dict[str, list[Path]], list[Path]]:
    """The files of each split, and those that belong to none. `by_file`: a name counts if others have none."""

    @functools.cache
    def of_folder(parent: Path) -> str | None:
        return next(filter(None, map(_split_of, parent.relative_to(folder).parts)), None)

    def by_folders(file: Path) -> str | None:
        return of_folder(file.parent)

    def by_name(file: Path) -> str | None:
        numbered = _NUMBERED.match(file.stem)
        return (numbered and numbered[1]) or _split_of(file.name)

    splits, outside = _grouped(files, by_folders)
    if not splits:
        splits, outside = _grouped(files, by_name)
        if not by_file and (outside or "train" not in splits):
            splits, outside = {}, files
    held_out = splits.keys() - {"train"}
    if outside and "train" in splits and not held_out:  # such as vehicles: car, ship, train
        return {"train": files}, []
    if outside and "train" not in splits:
        return {"train": outside, **splits}, []
    return splits, outside


def _grouped(files: list[Path], split_of: Callable[[Path], str | None]) -> tuple[dict[str, list[Path]], list[Path]]:
    splits: dict[str, list[Path]] = {}
    outside = []
    for file in files:
        split = split_of(file)
        if split is None:
            outside.append(file)
        else:
            splits.setdefault(split, []).append(file)
    return dict(sorted(splits.items(), key=lambda item: item[0] != "train")), outside


def _labels_and_metadata(folder: Path, found: LocalFiles, metadata: list[Path], left: Counter[str]) -> str:
    """Complete what is read by its metadata files, or else by the folders as labels."""
    parents = {file.parent for files in found.files.values() for file in files}
    parents = {parent.relative_to(folder) for parent in parents}
    suffix = next((file.suffix for file in metadata if _has_file_names(file)), None)
    usable = [file for file in metadata if file.suffix == suffix]
    by_split, outside = _assign(folder, usable, by_file=False)
    if by_split.keys() == found.files.keys() and not outside:
        left.update(_suffixes(set(metadata) - set(usable)))
        for split, files in by_split.items():
            found.files[split] = [*found.files[split], *files]
        found.options = {"drop_labels": True, "drop_metadata": False}
        return f", as {usable[0].name} lists them"
    left.update(_suffixes(metadata))
    depths, names = {len(parent.parts) for parent in parents}, {parent.name for parent in parents}
    has_labels = len(names) > 1 and len(depths) == 1
    has_labels = has_labels and not (len(found.files) > 1 and any(map(_is_split_itself, parents)))
    found.options = {"drop_labels": not has_labels, "drop_metadata": True}
    if has_labels:
        return f", {len(names)} folders as labels"
    return ", no labels, as they do not lie equally deep" if len(depths) > 1 else ""


def _is_split_itself(parent: Path) -> bool:
    """Whether images lie in the folder of their split, with no folder between them that could be a label."""
    first = next((number for number, name in enumerate(parent.parts) if _split_of(name)), None)
    return first is not None and first == len(parent.parts) - 1


def _has_file_names(metadata: Path) -> bool:
    try:
        if metadata.suffix == ".csv":
            names = list(pandas.read_csv(metadata, nrows=0).columns)
        elif metadata.suffix == ".jsonl":
            with open(metadata, encoding="utf-8") as file:
                names = list(json.loads(file.readline()))
        else:
            names = pyarrow.parquet.read_schema(metadata).names
    except (OSError, ValueError, TypeError, pyarrow.ArrowException):
        return False
    return any(re.fullmatch("(.+_)?file_names?", str(name)) for name in names)


def _size(files: list[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _suffixes(files: "set[Path] | list[Path]") -> Counter[str]:
    return Counter(file.name if file.name in ImageFolder.METADATA_FILENAMES else file.suffix for file in files)


def _told_of(left: Counter[str]) -> str:
    what = [f"{count} {name}" for name, count in sorted(left.items()) if count]
    return f"; left: {', '.join(what)}" if what else ""
