"""The folder of a converted checkpoint: model, image processor and model card, all of it or nothing."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import ModelCard
from safetensors.torch import save_file
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from ..hub.cards import card_metadata, loading_lines
from ..hub.tasks import TASKS
from ..utils.errors import UserError
from ..utils.files import atomic_path, digest
from .plan import Plan
from .readers import ForeignFile

if TYPE_CHECKING:
    from transformers.image_processing_backends import PilBackend


def require_free_folder(output_dir: str | Path) -> None:
    """Raise a `UserError` unless the folder is missing or empty."""
    folder = Path(output_dir)
    try:
        occupied = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise UserError(f"output_dir {folder} cannot be read: {error.strerror or error}") from error
    if occupied:
        raise UserError(f"output_dir {folder} is not an empty folder: choose another one")


def write_checkpoint(model: nn.Module, plan: Plan, file: ForeignFile, output_dir: str | Path) -> None:
    """Write everything beside `output_dir` and move it into place.

    Raises:
        UserError: when the folder is not empty, or cannot be written.
    """
    output_dir = Path(output_dir)
    require_free_folder(output_dir)
    try:
        output_dir.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(output_dir) as folder:
            folder.mkdir()
            _write_files(model, plan, file, folder)
    except OSError as error:
        raise UserError(f"output_dir {output_dir} cannot be written: {error.strerror or error}") from error


def _write_files(model: nn.Module, plan: Plan, file: ForeignFile, folder: Path) -> None:
    if isinstance(model, PreTrainedModel):
        model.save_pretrained(folder)
        if plan.normalization is not None:
            _image_processor(model, *plan.normalization).save_pretrained(folder)
    else:
        save_file(model.state_dict(), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(plan.arguments, indent=2) + "\n")
    _model_card(model, plan, file).save(folder / "README.md")


def _image_processor(model: PreTrainedModel, mean: tuple[float, ...], std: tuple[float, ...]) -> "PilBackend":
    from ..data.image_processing import build_image_processor

    return build_image_processor(model.config.image_height_width, len(mean), mean, std)


def _model_card(model: nn.Module, plan: Plan, file: ForeignFile) -> ModelCard:
    name = type(model).__name__
    checksum = digest(file.path)
    settings = "\n".join(
        f"| `{key}` | {json.dumps(value)}{' (default of the origin)' if key in plan.defaults else ''} |"
        for key, value in plan.arguments.items()
    )
    notes = "".join(f"- {note}\n" for note in [*_general_notes(model, plan), *plan.notes])
    return ModelCard(f"""---
{card_metadata(TASKS.get(name)).to_yaml()}
---

# {name}, converted

An Energy Transformer ([Hoover et al. 2023](https://arxiv.org/abs/2302.07253)), converted from a checkpoint of
{plan.origin}: `{file.path.name}` ({file.format} file, SHA-256 `{checksum}`). The weights are those of the file; nothing
was trained or measured here. Its license is that of the original.

```python
{_usage(model)}
```

{notes}
| setting | value |
| --- | --- |
{settings}
""")


def _general_notes(model: nn.Module, plan: Plan) -> list[str]:
    count = sum(parameter.numel() for parameter in model.parameters())
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    notes = [f"{count:,} parameters in {dtype}."]
    if plan.left_out:
        notes.append(f"Left out: {', '.join(f'`{name}`' for name in plan.left_out)}.")
    if not isinstance(model, PreTrainedModel):
        notes.append(
            "`model.safetensors` holds the parameters under the original's names, `config.json` the arguments."
        )
    elif plan.normalization is None and model.main_input_name == "pixel_values":
        notes.append("No `preprocessor_config.json`: the source does not tell how its images were normalized.")
    return notes


def _usage(model: nn.Module) -> str:
    task = TASKS.get(type(model).__name__)
    if task is not None:
        return loading_lines(task, "path/to/this/folder")
    if isinstance(model, PreTrainedModel):
        name = type(model).__name__
        return f'from energy_transformer import {name}\n\nmodel = {name}.from_pretrained("path/to/this/folder")'
    return (
        "from energy_transformer.conversion import load_energy_transformer\n\n"
        'model = load_energy_transformer("path/to/this/folder")  # an energy_transformer.EnergyTransformer'
    )
