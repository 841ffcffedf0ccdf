"""Which files may leave this machine: those that a run itself wrote, or those of a Space, by name, and no links."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files

from ..utils.errors import UserError
from .cards import load_card

PACKAGE = Path(__file__).parents[1]
LAST_CHECKPOINT = "last-checkpoint"  # as transformers' Trainer names it in a repository
_PATTERNS = (
    "README.md",
    "config.json",
    "preprocessor_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "all_results.json",
    "training_log.jsonl",
    "samples/*.png",
    "samples/step-*/*.png",
)
_SPACE = ("README.md", "app.py", "requirements.txt")
_OF_PACKAGE = {".py", ".json", ".md", ".safetensors"}


def files_to_push(folder: str | Path, state: str | Path | None = None) -> dict[str, Path]:
    """The files of a finished run by their names in the repository.

    These are the model with its code, the processor, the card, the pictures, the results and the log. Whatever else
    stands in the folder stays there: saved states (`checkpoint-STEP`), the logs of trackers and launchers, and files of
    others. The files of `state`, if one is given, go to `last-checkpoint/`, without the hidden ones.

    Raises:
        UserError: when one of them is a link, or lies in a folder that is one: it may lead to anything.
    """
    folder = Path(folder)
    files = {path.relative_to(folder).as_posix(): path for path in sorted(_written_by_a_run(folder))}
    for name, path in files.items():
        _refuse_links(path, folder, name)
    if state is not None:
        files |= _files_of_state(Path(state))
    return files


def space_files(folder: str | Path) -> dict[str, Path]:
    """The files of a Space with Gradio by their names in its repository.

    These are `README.md`, `app.py` and `requirements.txt` of the folder, and this package, so that the Space runs the
    version that was pushed, and needs no release of it. Hidden files and folders of it stay.

    Raises:
        UserError: when one of the folder's is missing, when its `README.md` does not name Gradio, or when a file is a
            link, or lies in a folder that is one.
    """
    folder = Path(folder)
    for name in _SPACE:
        if not (folder / name).is_file():
            raise UserError(f"{folder} holds no Space: it lacks {name}")
        _refuse_links(folder / name, folder, name)
    if load_card(folder / "README.md").data.get("sdk") != "gradio":
        raise UserError(f"{folder} holds no Space with Gradio: the metadata of its README.md lack `sdk: gradio`")
    files = {name: folder / name for name in _SPACE}
    for path in sorted(PACKAGE.rglob("*")):
        name = path.relative_to(PACKAGE.parent)
        if path.suffix in _OF_PACKAGE and not _is_hidden(name):
            _refuse_links(path, PACKAGE, name.as_posix())
            files[name.as_posix()] = path
    return files


def files_that_stay(folder: str | Path, files: dict[str, Path]) -> list[str]:
    """What stands at the top of the folder and is not among `files`, by name, without hidden files."""
    pushed = {name.partition("/")[0] for name in files}
    names = (f"{path.name}/" if path.is_dir() else path.name for path in Path(folder).iterdir())
    return sorted(name for name in names if name.rstrip("/") not in pushed and not name.startswith("."))


def _written_by_a_run(folder: Path) -> set[Path]:
    found = {folder / pattern for pattern in _PATTERNS}  # a glob does not find a link that leads nowhere
    found |= {path for pattern in _PATTERNS for path in folder.glob(pattern)}
    return {path for path in {*found, *_model_code(folder)} if path.is_file() or path.is_symlink()}


def _model_code(folder: Path) -> Iterator[Path]:
    """The modules that the configuration names, and those that they import; no other code that lies beside them."""
    try:
        config = json.loads((folder / "config.json").read_text())
        references = list(config.get("auto_map", {}).values())
    except (OSError, ValueError, AttributeError):
        return
    for reference in references:
        for name in reference if isinstance(reference, list) else [reference]:
            module = folder / f"{str(name).partition('.')[0]}.py"
            if module.is_file():
                yield module
                with contextlib.suppress(OSError):  # `finished` tells of modules that are missing
                    yield from map(Path, get_relative_import_files(module))


def _files_of_state(state: Path) -> dict[str, Path]:
    files = {}
    for path in sorted(state.rglob("*")):
        name = path.relative_to(state)
        if not _is_hidden(name) and (path.is_symlink() or path.is_file()):
            _refuse_links(path, state, f"{state.name}/{name.as_posix()}")
            files[f"{LAST_CHECKPOINT}/{name.as_posix()}"] = path
    return files


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _refuse_links(path: Path, folder: Path, name: str) -> None:
    """The folder itself may be a link; nothing in it may."""
    parts = path.relative_to(folder).parts
    for count in range(1, len(parts) + 1):
        link = folder.joinpath(*parts[:count])
        if link.is_symlink():
            raise UserError(f"{name} is not pushed: {link} is a link, and might lead to a file of another folder")
