"""The package that this one descends from, `LumenPallidium/energy_transformer`.

Its state dict is a bare block on tokens, which becomes our [`EnergyTransformer`]. The image model of its example script
wraps a block with `patch_embedder`, `patch_deembedder` and `mask_token`, and becomes an
[`EnergyTransformerForMaskedImageModeling`].
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from ..energy_transformers import EnergyTransformer
from ..modeling_energy_transformer import EnergyTransformerForMaskedImageModeling
from ..utils.errors import UserError
from .layout import Slot, bind, strip_prefix
from .options import ConversionOptions, choose, patch_geometry, widths
from .plan import EMBEDDINGS, NO_NORMALIZATION, Plan, layer
from .readers import ForeignFile

_BLOCK = {
    "mha.Wq": "H Y D",
    "mha.Wk": "H Y D",
    "hopfield.W": "D M",
    "norm.weight": "D",
    "norm.bias": "D",
}
_MARKERS = ("mha.Wq", "mha.Wk", "hopfield.W")
_IMAGE_PARTS = ("patch_embedder.", "patch_deembedder.", "mask_token")
_ORIGIN = "LumenPallidium/energy_transformer"
_DEFAULTS = {"num_steps": 12, "step_size": 0.1}


def recognizes(file: ForeignFile) -> bool:
    return file.format == "torch" and any(name.endswith(_MARKERS) for name in file.tensors)


def convert(file: ForeignFile, options: ConversionOptions) -> Plan:
    """A bare block, or the image model of the example script."""
    options.refuse(("attention_beta",), "LumenPallidium's betas are in the file")
    tensors = strip_prefix(file.tensors, _MARKERS)
    is_image_model = any(name.startswith(_IMAGE_PARTS) for name in tensors)
    return (_convert_image_model if is_image_model else _convert_block)(tensors, options)


def _block_layout(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    """Names and sizes of the block; a beta may be one number where the other is one for each head."""
    layout = dict(_BLOCK)
    beta, hopfield_beta = tensors.get("mha.beta"), tensors.get("hopfield.beta")
    layout["mha.beta"] = "1" if beta is not None and beta.shape == (1,) else "H"
    layout["hopfield.beta"] = "" if hopfield_beta is not None and hopfield_beta.ndim == 0 else "1"
    if "pos_embedding" in tensors:
        layout["pos_embedding"] = "1 N D"
    return layout


def _activation(tensors: dict[str, torch.Tensor], options: ConversionOptions) -> str:
    """A softmax network has a beta of shape (), a ReLU network of shape (1,); a given beta may blur this.

    Raises:
        UserError: when the shapes leave it open and no option tells, or when they contradict the option.
    """
    if tensors["hopfield.beta"].ndim == 0:
        possible: tuple[str, ...] = ("softmax",)
    else:
        possible = ("relu", "softmax") if tensors["mha.beta"].shape == (1,) else ("relu",)
    if options.hopfield_activation is None and len(possible) > 1:
        raise UserError("the shapes do not tell the kind of the Hopfield network: pass hopfield_activation")
    activation = options.hopfield_activation or possible[0]
    if activation not in possible:
        raise UserError(
            f"hopfield_activation={activation!r} contradicts the source: its hopfield.beta is {possible[0]}'s"
        )
    return activation


def _convert_block(tensors: dict[str, torch.Tensor], options: ConversionOptions) -> Plan:
    options.refuse(("image_size", "patch_size", "num_channels"), "the source is a bare block on tokens, not on images")
    state, sizes = bind(tensors, {name: Slot(name, letters) for name, letters in _block_layout(tensors).items()})
    widths(sizes, options)
    if sizes["H"] * sizes["Y"] != sizes["D"]:
        raise UserError(
            f"mha.Wq has shape {tuple(tensors['mha.Wq'].shape)}: heads times head width must be the token width"
        )
    settings, defaults = choose(options, _DEFAULTS)
    return Plan(
        origin=f"{_ORIGIN} (bare block)",
        model_class=EnergyTransformer,
        arguments={
            "dim": sizes["D"],
            "hidden_dim": sizes["M"],
            "n_heads": sizes["H"],
            "context": sizes.get("N", 0),
            "n_iters_default": settings["num_steps"],
            "alpha": settings["step_size"],
            "hopfield_type": _activation(tensors, options),
        },
        state=state,
        defaults=[{"num_steps": "n_iters_default", "step_size": "alpha"}[name] for name in defaults],
    )


def load_energy_transformer(folder: str | Path) -> EnergyTransformer:
    """The converted bare block of a folder that `convert_checkpoint` wrote, in the dtype of the file."""
    arguments = json.loads((Path(folder) / "config.json").read_text())
    return build_block(arguments, load_file(Path(folder) / "model.safetensors"))


def build_block(arguments: dict, state: dict[str, torch.Tensor]) -> EnergyTransformer:
    """A block with these constructor arguments and parameters."""
    block = EnergyTransformer(**arguments)
    # the shapes of the betas are those that the original's constructor was given
    block.mha.beta = nn.Parameter(state["mha.beta"])
    block.hopfield.beta = nn.Parameter(state["hopfield.beta"])
    block.load_state_dict(state, strict=True, assign=True)
    return block.eval()


def _convert_image_model(tensors: dict[str, torch.Tensor], options: ConversionOptions) -> Plan:
    """The patches' values stand as (h, w, c) there and as (c, h, w) here; the decoder reads the final state itself."""
    layout = {name: Slot(layer(0) + name.replace("mha", "attention"), s) for name, s in _block_layout(tensors).items()}
    layout["pos_embedding"] = Slot(EMBEDDINGS + "position_embeddings", "1 N D")
    layout["mask_token"] = Slot(EMBEDDINGS + "mask_token", "D")
    outer = {"patch_embedder": ("D P", "D D"), "patch_deembedder": ("D D", "P D")}
    targets = {"patch_embedder": EMBEDDINGS + "patch_embeddings", "patch_deembedder": "decoder"}
    for name, (first, last) in outer.items():
        sizes_of = {"0.weight": first, "0.bias": "D", "1.weight": "D", "1.bias": "D"}
        sizes_of |= {"3.weight": last, "3.bias": last.split()[0]}
        layout |= {f"{name}.{part}": Slot(f"{targets[name]}.{part}", sizes) for part, sizes in sizes_of.items()}
    state, sizes = bind(tensors, layout)
    geometry = patch_geometry(sizes["P"], sizes["N"], options)

    channels, size = geometry["num_channels"], geometry["patch_size"]
    order = torch.arange(sizes["P"]).reshape(size, size, channels).permute(2, 0, 1).flatten()
    encoder = EMBEDDINGS + "patch_embeddings.0.weight"
    state[encoder] = state[encoder][:, order]
    state["decoder.3.weight"] = state["decoder.3.weight"][order]
    state["decoder.3.bias"] = state["decoder.3.bias"][order]
    beta = layer(0) + "attention.beta"
    state[beta] = state[beta].expand(sizes["H"]).contiguous()

    settings, defaults = choose(options, _DEFAULTS)
    return Plan(
        origin=f"{_ORIGIN} (image model of its example script)",
        model_class=EnergyTransformerForMaskedImageModeling,
        arguments={
            **geometry,
            **widths(sizes, options),
            **settings,
            "hopfield_activation": _activation(tensors, options),
            "learnable_beta": True,
            "attend_to_self": True,
            "norm_type": "layer_norm",
            "use_cls_token": False,
            "patch_embedding": "mlp",
            "decoder_norm": "none",
            "mask_ratio": 0.5,
            "mask_replace_probability": 0.9,
        },
        state=state,
        defaults=defaults,
        normalization=NO_NORMALIZATION if channels == 3 else None,
    )
