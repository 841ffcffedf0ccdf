"""From a foreign checkpoint to one of our models, and to a folder that `from_pretrained` loads."""

from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from ..utils.errors import UserError
from . import jax, lemon, lemon_graph, lumen, zhuergou
from .layout import split_training_state
from .options import ConversionOptions, read_options
from .output import require_free_folder, write_checkpoint
from .plan import Plan
from .readers import ForeignFile, read_file

logger = logging.get_logger(__name__)

_ORIGINS = (
    (jax.recognizes_plaindict, jax.convert_plaindict),
    (jax.recognizes_flax, jax.convert_flax),
    (lemon.recognizes, lemon.convert),
    (lemon_graph.recognizes, lemon_graph.convert),
    (zhuergou.recognizes, zhuergou.convert),
    (lumen.recognizes, lumen.convert),
)


def convert_checkpoint(source: str | Path, output_dir: str | Path | None = None, **options) -> nn.Module:
    """Convert a checkpoint of another implementation; its format and origin are recognized from the file.

    Origins: `bhoov/energy-transformer-jax` (the `plaindict_ckpt.npz` layout; flax msgpack files of the masked-image
    and classification models, parameters alone or a whole TrainState), `LumenPallidium/energy_transformer` (state dict
    of the block, or of the image model of its example script), `Lemon-cmd/energy-transformer-torch` (`.pth`); and for
    graphs `Lemon-cmd/energy-transformer-graph` (flax msgpack) and
    `zhuergou/Energy-Transformer-for-Graph-Anomaly-Detection` (state dict).

    Args:
        source: the file. Nothing in it is run: arrays and plain values are all that is read.
        output_dir: where to write the converted checkpoint with its model card; nowhere when None.
        options: what the file cannot tell, see [`ConversionOptions`].

    Returns:
        The model in evaluation mode and in the dtype of the file, unless `dtype` says otherwise.

    Raises:
        UserError: for a file that is unreadable, damaged, of unknown format or origin, holds more than tensors or
            numbers that are not finite, has an unused, missing or doubled key or shapes that contradict each other or
            the options; for an unknown option; and for an `output_dir` that is not empty.
    """
    if output_dir is not None:
        require_free_folder(output_dir)
    file = read_file(source)
    plan = plan_conversion(file, read_options(options))
    model = build_model(plan)
    if plan.defaults:
        settings = ", ".join(f"{name}={plan.arguments[name]}" for name in plan.defaults)
        logger.warning(f"{file.path.name} does not tell everything; taken as in its origin: {settings}")
    if output_dir is not None:
        write_checkpoint(model, plan, file, output_dir)
    return model


def plan_conversion(file: ForeignFile, options: ConversionOptions) -> Plan:
    """What the file becomes. Raises a `UserError` when it is of no known origin."""
    file = split_training_state(file)
    training_state = sorted({name.split(".")[0] for name in file.training_state})
    convert = next((convert for recognizes, convert in _ORIGINS if recognizes(file)), None)
    if convert is None:
        names = [*file.tensors, *file.others][:5]
        content = f"{', '.join(names)} …" if names else f"no parameters: {', '.join(training_state) or 'nothing'}"
        raise UserError(f"source {file.path} is of an unknown origin: a {file.format} file that holds {content}")
    for name, value in file.others.items():
        raise UserError(f"source {file.path} has an unused key: {name} ({type(value).__name__})")
    plan = convert(file, options)
    plan.left_out = [*training_state, *plan.left_out]
    dtype = options.torch_dtype
    if dtype is None:
        dtype = next(iter(plan.state.values())).dtype
        for tensor in plan.state.values():
            dtype = torch.promote_types(dtype, tensor.dtype)
    plan.state = {name: tensor.to(dtype) for name, tensor in plan.state.items()}
    for name, tensor in plan.state.items():
        if not tensor.isfinite().all():
            raise UserError(f"dtype={dtype} is too narrow for {name}")
    return plan


def build_model(plan: Plan) -> nn.Module:
    """The model of a plan, in evaluation mode and in the dtype of the plan's parameters."""
    if not issubclass(plan.model_class, PreTrainedModel):
        return lumen.build_block(plan.arguments, plan.state)
    try:
        config = plan.model_class.config_class(**plan.arguments)
    except StrictDataclassError as error:
        raise UserError(str(error.__cause__ or error)) from error
    model = plan.model_class(config).to(next(iter(plan.state.values())).dtype)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    model.load_state_dict({name: tensor.reshape(shapes[name]) for name, tensor in plan.state.items()}, strict=True)
    return model.eval()
