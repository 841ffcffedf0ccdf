"""From the words of a command line to a task's options: with a recipe beneath them, or a saved state."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from ..utils.errors import UserError
from ..utils.files import LOCAL_PATH
from ..utils.option_parser import OptionParser
from .arguments import SYNONYMS, CommonArguments
from .recipes import as_words, find_recipe, options_of_file, recipe_of_dataset

Arguments = TypeVar("Arguments", bound=CommonArguments)
_HELP = {"-h", "--help"}


def parse_arguments(
    argv: Sequence[str],
    default_config: Path | None,
    arguments_class: type[Arguments],
    description: str | None = None,
) -> Arguments:
    """A task's options: of a recipe, overridden by the other words of `argv`.

    The recipe is the one that `--config` names, else `default_config`, else that of the dataset; a run that is resumed
    without `--config` has the options of the state in its place. Epochs on the command line beat steps in the recipe.

    Raises:
        UserError: for an unreadable file, an unknown key in it, a value that is not allowed, or no recipe.
        SystemExit: with code 2 and one line for an unknown option or a value of the wrong type; with 0 after `--help`.
    """
    parser = OptionParser(arguments_class, description, SYNONYMS)
    parser.add_argument("--config", metavar="RECIPE", help="A recipe by its name, or a YAML file with options.")
    given = parser.given([word for word in argv if word not in _HELP])
    try:
        values, source = _base_options(parser, given, default_config, arguments_class)
    except UserError:
        if not _HELP & set(argv):
            raise
        parser.print_help()
        raise SystemExit(0) from None
    values = _merge(values, given)
    if _HELP & set(argv):
        parser.set_defaults(**values)
        parser.epilog = f"Defaults are those of {source}."
        parser.print_help()
        raise SystemExit(0)
    if LOCAL_PATH in values.values():
        from .resumption import require_paths

        require_paths(values)
    return arguments_class(**values)


def _base_options(
    parser: OptionParser, given: dict[str, Any], default_config: Path | None, arguments_class: type[CommonArguments]
) -> tuple[dict[str, Any], object]:
    """What the options of the command line are added to, and where it stands: a recipe, or a saved state."""
    known = {each.name for each in fields(arguments_class)}
    config, resumed = given.pop("config", None), given.get("resume_from_checkpoint")

    def of_recipe() -> tuple[dict[str, Any], object]:
        if config:
            path = find_recipe(config, arguments_class.task)
        else:
            dataset_name = given.get("dataset_name", arguments_class.dataset_name)
            path = default_config or recipe_of_dataset(dataset_name, given.get("train_dir"), arguments_class.task)
        return parser.given(options_of_file(path, known, arguments_class.task), source=path), path

    if resumed and not config and not default_config:
        from .resumption import saved_options  # which imports torch

        output_dir = given.get("output_dir")
        if resumed == "latest" and output_dir is None:
            output_dir = of_recipe()[0].get("output_dir")
        saved = saved_options(resumed, output_dir, arguments_class)
        if saved is not None:
            return parser.given(as_words(saved), source=resumed), f"the saved state {resumed}"
    return of_recipe()


def _merge(recipe: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The options of a recipe and those of the command line, which win: a model that is named there is not changed by
    what the recipe says of its own."""
    if "config_name" in given:
        recipe = {
            name: value for name, value in recipe.items() if name not in ("config_overrides", "model_name_or_path")
        }
    if "model_name_or_path" in given:
        recipe = {name: value for name, value in recipe.items() if name != "config_name"}
    values = recipe | given
    if recipe.get("config_overrides") and given.get("config_overrides"):  # later fields win
        values["config_overrides"] = f"{recipe['config_overrides']},{given['config_overrides']}"
    if "num_train_epochs" in given and "max_train_steps" not in given:
        values["max_train_steps"] = None
    return values
