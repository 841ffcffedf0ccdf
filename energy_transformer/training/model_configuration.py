"""The configuration of the model that a run trains."""

import json
import re
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from ..configuration_energy_transformer import EnergyTransformerConfig
from ..hub import load_pretrained
from ..utils.errors import UserError
from ..utils.suggestions import did_you_mean
from .arguments import CommonArguments

_COMPUTED = ("model_type", "transformers_version", "auto_map", "architectures", "dtype")


def configure(args: CommonArguments, **own: Any) -> EnergyTransformerConfig:
    """That of `model_name_or_path` or the default one, with the options' overrides and a task's `own` fields.

    Fields that are None keep their value.

    Raises:
        UserError: for an unknown field or an impossible combination.
    """
    config = EnergyTransformerConfig()
    if args.model_name_or_path:
        config = load_pretrained(AutoConfig, args.model_name_or_path)
        if not isinstance(config, EnergyTransformerConfig):
            raise UserError(
                f"model_name_or_path {args.model_name_or_path} is no Energy Transformer: {config.model_type}"
            )
    sizes = {"image_size": args.image_size, "patch_size": args.patch_size}
    fields = {**config.to_dict(), **_parse_overrides(args.config_overrides, config)}
    for name, value in {**sizes, **own}.items():
        if value is not None:
            fields[name] = value[0] if isinstance(value, list) and len(value) == 1 else value
    for computed in _COMPUTED:
        fields.pop(computed, None)
    try:
        return EnergyTransformerConfig(**fields)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise UserError(f"model configuration: {str(error.__cause__ or error).splitlines()[-1].strip()}") from error


def _parse_overrides(text: str | None, config: EnergyTransformerConfig) -> dict:
    overrides = {}
    for pair in filter(None, re.split(r",(?![^\[]*\])", text or "")):  # not at the commas of a list
        name, separator, value = pair.partition("=")
        if not separator or name not in config.to_dict():
            near = did_you_mean(name, config.to_dict()) if separator else ""
            raise UserError(
                f"config_overrides: {pair!r} is not 'field=value' with a field of EnergyTransformerConfig{near}"
            )
        try:
            overrides[name] = json.loads(value.lower())
        except json.JSONDecodeError:
            overrides[name] = value
    return overrides
