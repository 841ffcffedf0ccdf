"""`Lemon-cmd/energy-transformer-graph`: flax msgpack files of its graph classifiers and regressions."""

import math
import re

from ..modeling_energy_transformer_graph import EnergyTransformerForGraphClassification
from .layout import Slot, bind, strip_prefix, transpose
from .options import ConversionOptions, choose, widths
from .plan import EMBEDDINGS, Plan, layer
from .readers import ForeignFile

_BLOCK_NAME = re.compile(r"(?:^|\.)encode_block_(\d+)\.attn\.Hw$")
_MODULATION = "energy_transformer.modulation."
_FRAME = {
    "encoder.kernel": Slot(EMBEDDINGS + "node_embeddings.weight", "F D", transpose),
    "encoder.bias": Slot(EMBEDDINGS + "node_embeddings.bias", "D"),
    "cls_token": Slot(EMBEDDINGS + "cls_token", "1 D"),
    "pos_pj.kernel": Slot(EMBEDDINGS + "position_embeddings.weight", "k D", transpose),
    "pos_pj.bias": Slot(EMBEDDINGS + "position_embeddings.bias", "D"),
    "adj_pj.kernel": Slot(_MODULATION + "projection.weight", "K H", transpose),
    "adj_pj.bias": Slot(_MODULATION + "projection.bias", "H"),
    "decoder.kernel": Slot("classifier.0.weight", "D C", transpose),
    "decoder.bias": Slot("classifier.0.bias", "C"),
}
_OPTIONAL = {
    "conv.kernel": Slot(
        _MODULATION + "convolution.weight", "3 3 1 H", lambda kernel: kernel.permute(3, 2, 0, 1).contiguous()
    ),
    "Dense_0.kernel": Slot(_MODULATION + "decoder.weight", "H 1", transpose),
}
_BLOCK = {
    "norm_{}.gamma": ("norm.gamma", "1"),
    "norm_{}.bias": ("norm.delta", "D"),
    "block_{}.attn.Wk": ("modulated_attention.Wk", "H Y D"),
    "block_{}.attn.Wq": ("modulated_attention.Wq", "H Y D"),
    "block_{}.attn.Bk": ("modulated_attention.bk", "H Y"),
    "block_{}.attn.Bq": ("modulated_attention.bq", "H Y"),
    "block_{}.attn.Hw": ("modulated_attention.mixing", "H H"),
    "block_{}.attn.betas": ("modulated_attention.beta", "H"),
    "block_{}.chn.proj.kernel": ("{}.W", "D M"),
    "block_{}.chn.proj.bias": ("{}.bias", "M"),
}
_MAY_LACK = ("attn.Bk", "attn.Bq", "chn.proj.bias")


def recognizes(file: ForeignFile) -> bool:
    return file.format == "msgpack" and any(_BLOCK_NAME.search(name) for name in file.tensors)


def layout_of(names, hopfield: str = "hopfield") -> dict[str, Slot]:
    """Where each tensor of a file with these names goes; `hopfield` is the name of that term in our blocks."""
    layout = _FRAME | {name: slot for name, slot in _OPTIONAL.items() if name in names}
    for index in range(sum(bool(_BLOCK_NAME.search(name)) for name in names)):
        for name, (target, sizes) in _BLOCK.items():
            source = f"encode_{name.format(index)}"
            if source in names or not name.endswith(_MAY_LACK):
                layout[source] = Slot(layer(index) + target.format(hopfield), sizes)
    return layout


def convert(file: ForeignFile, options: ConversionOptions) -> Plan:
    """Reference mode: the model computes as the original does, mistakes included."""
    options.refuse(("image_size", "patch_size", "num_channels"), "the source is a model of graphs")
    options.refuse(("attention_beta",), "the source has learned betas")
    tensors = strip_prefix(file.tensors, ("encode_block_", "encode_norm_"))
    hopfield = "squared_gelu_hopfield" if options.hopfield_activation == "gelu" else "hopfield"
    layout = layout_of(tensors, hopfield)
    state, sizes = bind(tensors, layout)

    superpixels = "Dense_0.kernel" in layout
    usual = {"num_steps": 4, "step_size": 0.25} if superpixels else {"num_steps": 1, "step_size": 0.1}
    settings, defaults = choose(options, usual | {"hopfield_activation": "relu"})
    softmax = settings["hopfield_activation"] == "softmax"
    if hopfield != "hopfield":
        settings.pop("hopfield_activation")
    biased = "encode_block_0.chn.proj.bias" in layout
    head = {"regression_loss": "l1", "problem_type": "regression"} if sizes["C"] == 1 else {"label_smoothing": 0.05}
    return Plan(
        origin="Lemon-cmd/energy-transformer-graph",
        model_class=EnergyTransformerForGraphClassification,
        arguments={
            "num_node_features": sizes["F"],
            "num_edge_features": sizes["K"],
            "num_position_features": sizes["k"],
            "num_labels": sizes["C"],
            **widths(sizes, options),
            **settings,
            **head,
            "num_hidden_layers": sum(name.endswith("attn.Hw") for name in layout),
            "energy_terms": [{"name": "modulated_attention", "learnable_beta": True}, hopfield],
            "attention_bias": "encode_block_0.attn.Bq" in layout,
            "hopfield_bias": "before_beta" if softmax and biased else biased,
            "hopfield_beta": math.sqrt(sizes["M"]) if softmax else None,
            "edge_modulation": "convolution" if "conv.kernel" in layout else "product",
            "attention_layout": "dense",
            "adjacency_loss_weight": 1.0 if superpixels else 0.0,
            "classifier_norm": False,
        },
        state=state,
        defaults=defaults,
        notes=[
            "Computed as in the original: what a graph gets depends on the order of its nodes (by the convolution) and "
            "on the batch that it is in (by its padding), and pairs without an edge are not left out."
        ],
    )
