"""The files of `configuration`: which recipes, models and launch files there are, and what a recipe says."""

import json
from collections.abc import Collection
from pathlib import Path

import yaml

from ..utils.errors import UserError, first_line
from ..utils.suggestions import did_you_mean


def configuration_folder() -> Path:
    """The folder with recipes in `training`, models in `models`, launch files in `accelerate` and a job in `slurm`:
    inside the package where a wheel brought it, beside it in a clone."""
    package = Path(__file__).parents[1]
    inside = package / "configuration"
    return inside if inside.is_dir() else package.with_name("configuration")


def find_launch_file(name: str) -> Path:
    """The file for `accelerate launch --config_file` of that name.

    Raises:
        UserError: when there is none.
    """
    known = {path.stem: path for path in sorted((configuration_folder() / "accelerate").glob("*.yaml"))}
    if name not in known:
        raise UserError(f"launch_file {name} is none of {', '.join(known)}{did_you_mean(name, known)}")
    return known[name]


def recipes(task: str) -> dict[str, Path]:
    """The recipes of a task, which they name, by their own names."""
    found = sorted((configuration_folder() / "training").glob("*.yaml"))
    return {path.stem: path for path in found if yaml.safe_load(path.read_text()).get("task") == task}


def find_model_configuration(name: str) -> Path:
    """The file of `configuration/models` of that name.

    Raises:
        UserError: when there is none.
    """
    known = {path.stem: path for path in sorted((configuration_folder() / "models").glob("*.json"))}
    if name not in known:
        near = did_you_mean(name, known)
        names = ", ".join(known)
        raise UserError(f"config_name {name} is neither a file, a repository of the Hub, nor one of {names}{near}")
    return known[name]


def find_recipe(config: str, task: str) -> Path:
    """The file that `--config` names: a path, or the name of a recipe.

    Raises:
        UserError: when there is no such file.
    """
    path, known = Path(config), recipes(task)
    if path.exists() or (config not in known and (path.suffix or len(path.parts) > 1)):
        return path
    if config not in known:
        raise UserError(
            f"--config {config} is neither a file nor a recipe ({', '.join(known)}){did_you_mean(config, known)}"
        )
    return known[config]


def recipe_of_dataset(dataset_name: str, train_dir: str | None, task: str) -> Path:
    """The recipe that was made for a dataset, which is taken where no other is named.

    Raises:
        UserError: when there is none; it says which recipes there are.
    """
    known = recipes(task)
    if train_dir is None:
        for path in known.values():
            if yaml.safe_load(path.read_text()).get("dataset_name") == dataset_name:
                return path
    what = f"dataset_name {dataset_name}" if train_dir is None else f"train_dir {train_dir}"
    names = {yaml.safe_load(path.read_text())["dataset_name"] for path in known.values()}
    near = did_you_mean(dataset_name, names) if train_dir is None else ""
    raise UserError(f"{what} has no recipe of its own: choose one with --config, of {', '.join(known)}{near}")


def options_of_file(path: Path, known: Collection[str], task: str) -> list[str]:
    """The options of a YAML file as they would stand on the command line, which also converts their types.

    Raises:
        UserError: when the file cannot be read, is of another task, or names an option that there is not.
    """
    options = _read(path)
    own = options.pop("task", task)
    if own != task:
        raise UserError(f"--config {path} is a recipe of {own}, not of {task}")
    unknown = sorted(str(name) for name in options if name not in known)
    if unknown:
        near = did_you_mean(unknown[0], known)
        raise UserError(f"unknown option in {path}: {', '.join(unknown)}{near} (--help lists every option)")
    if options.get("hub_token") is not None:
        raise UserError(f"hub_token in {path}: a recipe is no place for a token; use `hf auth login` or HF_TOKEN")
    return as_words(options)


def _read(path: Path) -> dict:
    try:
        options = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror or error}") from error
    except yaml.MarkedYAMLError as error:  # without its excerpt of the file, which may hold a token
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"--config {path} is not valid YAML: {error.problem}{line}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"--config {path} is not valid YAML: {first_line(error)}") from error
    if not isinstance(options, dict):
        raise UserError(f"--config {path} must hold options as 'name: value'")
    return options


def as_words(options: dict) -> list[str]:
    """Options as words of a command line; those without a value are left out.

    Raises:
        UserError: for a list that holds another option.
    """
    words: list[str] = []
    for name, value in options.items():
        if name == "mixed_precision" and value is False:
            value = "no"  # which YAML reads as a boolean
        if isinstance(value, dict):
            value = ",".join(f"{key}={json.dumps(entry)}" for key, entry in value.items())
        if isinstance(value, list):
            if any(str(entry).startswith("-") and not isinstance(entry, int | float) for entry in value):
                raise UserError(f"{name} must be a list of values, got {value}")
            words.extend([f"--{name}", *map(str, value)])
        elif value is not None:
            words.append(f"--{name}={value}")
    return words
