"""`Lemon-cmd/energy-transformer-torch`: the `.pth` files of its `train.py`, and plain state dicts of its model."""

import argparse
import re

from ..modeling_energy_transformer import EnergyTransformerForMaskedImageModeling
from ..utils.errors import UserError
from .layout import Slot, bind, strip_prefix, transpose
from .options import ConversionOptions, choose, patch_geometry, widths
from .plan import EMBEDDINGS, Plan, layer
from .readers import ForeignFile

_NORMALIZATIONS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}
_BLOCK_NAME = re.compile(r"(?:^|\.)blocks\.(\d+)\.1\.(?:attn|hn)\.")
_FRAME = {
    "encode.0.weight": Slot(EMBEDDINGS + "patch_embeddings.weight", "D P"),
    "encode.0.bias": Slot(EMBEDDINGS + "patch_embeddings.bias", "D"),
    "cls": Slot(EMBEDDINGS + "cls_token", "1 1 D"),
    "mask": Slot(EMBEDDINGS + "mask_token", "1 1 D"),
    "pos.weight": Slot(EMBEDDINGS + "position_embeddings", "1 N D"),
    "decode.0.weight": Slot("decoder_norm.weight", "D"),
    "decode.0.bias": Slot("decoder_norm.bias", "D"),
    "decode.1.weight": Slot("decoder.weight", "P D"),
    "decode.1.bias": Slot("decoder.bias", "P"),
}


def recognizes(file: ForeignFile) -> bool:
    return file.format == "torch" and any(_BLOCK_NAME.search(name) for name in file.tensors)


def convert(file: ForeignFile, options: ConversionOptions) -> Plan:
    """The image model; `args` of `train.py`, where the file has them, tell what the shapes cannot."""
    options.refuse(("hopfield_activation",), "Lemon-cmd's image model has a ReLU")
    tensors = strip_prefix(file.tensors, "blocks.")
    blocks = len({match[1] for match in map(_BLOCK_NAME.search, tensors) if match})
    attention_bias = any(name.endswith(".attn.bq") for name in tensors)
    hopfield_bias = any(name.endswith(".hn.proj.bias") for name in tensors)
    layout = dict(_FRAME)
    for index in range(blocks):
        layout |= _block_layout(index, attention_bias, hopfield_bias)
    state, sizes = bind(tensors, layout)

    recorded = _recorded(file.training_state.get("args"))
    settings, defaults = choose(options, {"num_steps": 12, "step_size": 1.0, "attention_beta": None}, recorded)
    return Plan(
        origin="Lemon-cmd/energy-transformer-torch (image model)",
        model_class=EnergyTransformerForMaskedImageModeling,
        arguments={
            **patch_geometry(sizes["P"], sizes["N"] - 1, options),
            **widths(sizes, options),
            **settings,
            "num_hidden_layers": blocks,
            "attention_bias": "shared" if attention_bias else False,
            "hopfield_bias": hopfield_bias,
            "attend_to_self": True,
            "decoder_norm": "layer_norm",
            "decoder_norm_eps": float(sizes["D"]),
            "mask_ratio": recorded.get("mask_ratio", 0.85),
            "mask_replace_probability": 1.0,
        },
        state=state,
        defaults=defaults,
        notes=["The layer norm before the decoder has the token width as its epsilon, as in the original."],
        normalization=_NORMALIZATIONS.get(recorded.get("data_name", "")),
    )


def _block_layout(index: int, attention_bias: bool, hopfield_bias: bool) -> dict[str, Slot]:
    block = {
        "0.gamma": Slot("norm.gamma", "1"),
        "0.bias": Slot("norm.delta", "D"),
        "1.attn.wq": Slot("attention.Wq", "H Y D"),
        "1.attn.wk": Slot("attention.Wk", "H Y D"),
        "1.hn.proj.weight": Slot("hopfield.W", "M D", transpose),
    }
    if attention_bias:
        block |= {"1.attn.bq": Slot("attention.bq", "Y"), "1.attn.bk": Slot("attention.bk", "Y")}
    if hopfield_bias:
        block["1.hn.proj.bias"] = Slot("hopfield.bias", "M")
    return {f"blocks.{index}.{name}": slot._replace(target=layer(index) + slot.target) for name, slot in block.items()}


def _recorded(args: object) -> dict:
    """The options of `train.py`, under our names."""
    if not isinstance(args, argparse.Namespace):
        return {}
    ours = {
        "time_steps": "num_steps",
        "alpha": "step_size",
        "attn_beta": "attention_beta",
        "mask_ratio": "mask_ratio",
        "data_name": "data_name",
    }
    recorded = {ours[name]: value for name, value in vars(args).items() if name in ours and value is not None}
    for name, value in recorded.items():
        if not isinstance(value, str if name == "data_name" else int | float):
            raise UserError(f"args in the source has {name} = {value!r}")
    return recorded
