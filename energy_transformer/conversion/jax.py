"""The official JAX code, `bhoov/energy-transformer-jax`: `plaindict_ckpt.npz` and flax msgpack files."""

from ..modeling_energy_transformer import (
    EnergyTransformerForImageClassification,
    EnergyTransformerForMaskedImageModeling,
)
from .layout import Slot, bind, strip_prefix, transpose
from .options import ConversionOptions, choose, patch_geometry, widths
from .plan import EMBEDDINGS, IMAGENET, Plan, layer
from .readers import ForeignFile

_PLAINDICT = {
    "Wq": Slot(layer(0) + "attention.Wq", "H Y D"),
    "Wk": Slot(layer(0) + "attention.Wk", "H Y D"),
    "Xi": Slot(layer(0) + "hopfield.W", "D M"),
    "LNORM_gamma": Slot(layer(0) + "norm.gamma", ""),
    "LNORM_bias": Slot(layer(0) + "norm.delta", "D"),
    "Wenc": Slot(EMBEDDINGS + "patch_embeddings.weight", "P D", transpose),
    "Benc": Slot(EMBEDDINGS + "patch_embeddings.bias", "D"),
    "CLS_token": Slot(EMBEDDINGS + "cls_token", "D"),
    "MASK_token": Slot(EMBEDDINGS + "mask_token", "D"),
    "POS_embed": Slot(EMBEDDINGS + "position_embeddings", "N D"),
    "Wdec": Slot("decoder.weight", "D P", transpose),
    "Bdec": Slot("decoder.bias", "P"),
}

_FLAX_NAMES = {
    "backbone.block.attn.Wq": "Wq",
    "backbone.block.attn.Wk": "Wk",
    "backbone.block.chn.kernel": "Xi",
    "backbone.norm.gamma": "LNORM_gamma",
    "backbone.norm.bias": "LNORM_bias",
    "backbone.encoder.kernel": "Wenc",
    "backbone.encoder.bias": "Benc",
    "backbone.cls_token": "CLS_token",
    "backbone.mask_token": "MASK_token",
    "backbone.pos_embed": "POS_embed",
}
_FLAX_BACKBONE = {name: _PLAINDICT[plain] for name, plain in _FLAX_NAMES.items()}
_FLAX_MASKED_IMAGE = {
    **_FLAX_BACKBONE,
    "decoder.kernel": _PLAINDICT["Wdec"],
    "decoder.bias": _PLAINDICT["Bdec"],
}


def recognizes_plaindict(file: ForeignFile) -> bool:
    return file.format == "npz" and 2 * len(_PLAINDICT.keys() & file.tensors.keys()) > len(_PLAINDICT)


def recognizes_flax(file: ForeignFile) -> bool:
    return file.format == "msgpack" and any("backbone." in name for name in file.tensors)


def convert_plaindict(file: ForeignFile, options: ConversionOptions) -> Plan:
    """The layout that `image_core.load_checkpoint` reads."""
    state, sizes = bind(file.tensors, _PLAINDICT)
    return _plan("plaindict_ckpt.npz layout", state, sizes, options)


def convert_flax(file: ForeignFile, options: ConversionOptions) -> Plan:
    """`flax.serialization.to_bytes` of the parameters or of a whole TrainState; masked image and classification."""
    tensors = strip_prefix(file.tensors, "backbone.")
    if not any(name.startswith("cls_head.") for name in tensors):
        state, sizes = bind(tensors, _FLAX_MASKED_IMAGE)
        return _plan("flax masked-image model", state, sizes, options)

    head = _classifier_layout(tensors)
    state, sizes = bind(tensors, {**_FLAX_BACKBONE, **head})
    state.pop(EMBEDDINGS + "mask_token")
    plan = _plan("flax classification model", state, sizes, options)
    plan.left_out.append("backbone.mask_token")
    plan.model_class = EnergyTransformerForImageClassification
    plan.arguments |= {
        "classifier_head": "mlp" if "cls_head.layers_3.kernel" in head else "linear",
        "classifier_pooling": "cls",
        "label_smoothing": 0.1,
        "num_labels": sizes["K"],
    }
    plan.notes.append("The file does not name its classes: `id2label` has placeholders.")
    return plan


def _classifier_layout(tensors) -> dict[str, Slot]:
    """The head: layer norm, linear; or layer norm, linear, ReLU (which has no name in the file), linear."""
    layout = {
        "cls_head.layers_0.scale": Slot("classifier.0.weight", "D"),
        "cls_head.layers_0.bias": Slot("classifier.0.bias", "D"),
        "cls_head.layers_1.kernel": Slot("classifier.1.weight", "D K", transpose),
        "cls_head.layers_1.bias": Slot("classifier.1.bias", "K"),
    }
    if any(name.startswith("cls_head.layers_3.") for name in tensors):
        layout["cls_head.layers_3.kernel"] = Slot("classifier.3.weight", "K K", transpose)
        layout["cls_head.layers_3.bias"] = Slot("classifier.3.bias", "K")
    return layout


def _plan(layout: str, state, sizes: dict[str, int], options: ConversionOptions) -> Plan:
    options.refuse(("hopfield_activation",), "the JAX image models have a ReLU")
    geometry = patch_geometry(sizes["P"], sizes["N"] - 1, options)
    settings, defaults = choose(options, {"num_steps": 12, "step_size": 0.1, "attention_beta": None})
    return Plan(
        origin=f"bhoov/energy-transformer-jax ({layout})",
        model_class=EnergyTransformerForMaskedImageModeling,
        arguments={**geometry, **widths(sizes, options), **settings, "attend_to_self": True},
        state=state,
        defaults=defaults,
        normalization=IMAGENET if geometry["num_channels"] == 3 else None,
    )
