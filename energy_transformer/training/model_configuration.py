"""The configuration of the model that a run trains."""

import json
import re
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

from ..configuration_energy_transformer import EnergyTransformerConfig
from ..hub import load_pretrained
from ..utils.errors import UserError, first_line
from ..utils.suggestions import did_you_mean
from .arguments import CommonArguments
from .image_arguments import ImageArguments
from .recipes import find_model_configuration

_COMPUTED = ("model_type", "transformers_version", "auto_map", "architectures", "dtype")
Config = TypeVar("Config", bound=PreTrainedConfig)


def configure(args: CommonArguments, config_class: type[Config] = EnergyTransformerConfig, **own: Any) -> Config:
    """That of `model_name_or_path`, of `config_name` or the default one, with the options' overrides and a task's `own`
    fields.

    Fields that are None keep their value.

    Raises:
        UserError: for an unknown field or an impossible combination, and where both names are given.
    """
    config, sizes = _named(args, config_class), {}
    if isinstance(args, ImageArguments):
        sizes = {"image_size": args.image_size, "patch_size": args.patch_size}
    fields = {**config.to_dict(), **_parse_overrides(args.config_overrides, config)}
    for name, value in {**sizes, **own}.items():
        if value is not None:
            fields[name] = value[0] if isinstance(value, list) and len(value) == 1 else value
    for computed in _COMPUTED:
        fields.pop(computed, None)
    try:
        return config_class(**fields)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise UserError(f"model configuration: {str(error.__cause__ or error).splitlines()[-1].strip()}") from error


def _named(args: CommonArguments, config_class: type[Config]) -> Config:
    if args.model_name_or_path and args.config_name:
        raise UserError("config_name is for a new model, and model_name_or_path brings its own: give one of them")
    option = "model_name_or_path" if args.model_name_or_path else "config_name"
    name = getattr(args, option)
    if not name:
        return config_class()
    if option == "config_name" and not Path(name).exists() and "/" not in name:
        name = str(find_model_configuration(name))
    if Path(name).is_file():
        return _read(Path(name), config_class)
    config = load_pretrained(AutoConfig, name)
    if not isinstance(config, config_class):
        raise UserError(f"{option} {name} is no Energy Transformer: {config.model_type}")
    return config


def _read(path: Path, config_class: type[Config]) -> Config:
    try:
        return config_class.from_json_file(path)
    except (OSError, ValueError, TypeError, StrictDataclassError) as error:
        raise UserError(f"{path} holds no configuration of a model: {first_line(error)}") from error


def _parse_overrides(text: str | None, config: PreTrainedConfig) -> dict:
    overrides = {}
    for pair in filter(None, re.split(r",(?![^\[]*\])", text or "")):  # not at the commas of a list
        name, separator, value = pair.partition("=")
        if not separator or name not in config.to_dict():
            near = did_you_mean(name, config.to_dict()) if separator else ""
            raise UserError(
                f"config_overrides: {pair!r} is not 'field=value' with a field of {type(config).__name__}{near}"
            )
        try:
            overrides[name] = json.loads(value.lower())
        except json.JSONDecodeError:
            overrides[name] = value
    return overrides
