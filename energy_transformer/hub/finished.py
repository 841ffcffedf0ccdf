"""Whether a folder holds a finished model, before anything of it leaves this machine."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers.dynamic_module_utils import get_relative_import_files

from .. import modeling_energy_transformer, modeling_energy_transformer_graph
from ..utils.errors import UserError
from .loading import load_pretrained
from .tasks import TASKS


def check_finished(folder: Path) -> None:
    """See that the folder holds a whole model, its code, its processor and results or a card.

    Raises:
        UserError: when it does not.
    """
    if not folder.is_dir():
        raise UserError(f"output_dir {folder} is not a folder")
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"output_dir {folder} holds no model: its config.json cannot be read") from error
    if not any((folder / name).is_file() for name in ("all_results.json", "README.md")):
        raise UserError(f"output_dir {folder} has no all_results.json and no README.md: its run has not finished")
    model = _load(folder, config)
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise UserError(f"output_dir {folder} holds a model with numbers that are not finite, in {name}")


def _load(folder: Path, config: dict) -> torch.nn.Module:
    architecture = (config.get("architectures") or [None])[0]
    if architecture is None:  # a block alone, which is no model of transformers
        return _load_block(folder)
    if architecture not in TASKS:
        raise UserError(f"output_dir {folder} holds a {architecture}: only {', '.join(TASKS)} can be pushed")
    of_graphs = getattr(modeling_energy_transformer_graph, architecture, None)
    model_class = of_graphs or getattr(modeling_energy_transformer, architecture)
    model, info = load_pretrained(model_class, str(folder), output_loading_info=True)
    wrong = sorted({*info["missing_keys"], *info["unexpected_keys"]})
    if wrong:
        raise UserError(f"output_dir {folder} holds no whole {architecture}: missing or unknown are {', '.join(wrong)}")
    _check_code(folder, config)
    return model


def _check_code(folder: Path, config: dict) -> None:
    modules = {reference.partition(".")[0] for reference in config.get("auto_map", {}).values()}
    try:
        for module in sorted(modules):
            get_relative_import_files(folder / f"{module}.py")
    except FileNotFoundError as error:
        name = Path(error.filename).name
        raise UserError(f"output_dir {folder} lacks the model's code, {name}: save the model again") from error


def _load_block(folder: Path) -> torch.nn.Module:
    from ..conversion import load_energy_transformer

    try:
        return load_energy_transformer(folder)
    except (OSError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"output_dir {folder} holds no model of this package: {error}".splitlines()[0]) from error
