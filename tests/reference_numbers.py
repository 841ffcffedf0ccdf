"""What the tests against the reference implementations share: the files, the tolerances and the names of parameters."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from energy_transformer import EnergyTransformerConfig

FOLDER = Path(__file__).parent / "reference"
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
# What may pass 1e-5 in float32: gradients through a whole descent, which amplifies every rounding, and one value behind
# two blocks. Measured: our largest relative error; how far rounding the numbers of the file to float32, and nothing
# else, moves the float64 result; and LumenPallidium's own code in float32. `docs/exactness.md` has the same table.
FLOAT32_TOLERANCE = {
    "jax_equinox_block": 4e-5,  # 2.5e-5, 2.6e-6
    "more/flax_recon": 4e-5,  # 2.3e-5, 7.1e-6
    "more/eqx_descent_default_init": 3e-5,  # 1.5e-5, 7.6e-6
    "more/lemon_1block": 1e-4,  # 7.3e-5, 1.2e-5
    "more/lemon_2block_bias": 4e-4,  # 2.1e-4, 8.6e-5
    "more/lemon_2block_bias, reconstruction": 4e-5,  # 2.0e-5, 6.9e-6
    "more/lemon_2block_bias, states": 2e-5,  # 1.1e-5
    "lumen_energy_transformer_relu": 5e-5,  # 3.3e-5, 2.7e-6, LumenPallidium 3.6e-5
    "more/lumen_relu_ctx0": 2e-5,  # 1.3e-5, 1.3e-6, LumenPallidium 1.3e-4
    "more/lumen_relu_ctxN": 2e-5,  # 1.1e-5, 6.2e-7, LumenPallidium 1.0e-4
    "more/lumen_softmax_ctx0": 2e-5,  # 1.1e-5, 4.4e-6, LumenPallidium 1.1e-4
    "more/lumen_softmax_ctxN": 2e-4,  # 1.2e-4, 2.1e-5, LumenPallidium 1.5e-4
}
in_both_precisions = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float64", "float32"])


def load(name: str) -> dict:
    """The arrays of a reference file as float64 (or integer) tensors, and its configuration under `config`."""
    with np.load(FOLDER / name) as arrays:
        numbers = {key: np.array(arrays[key]) for key in arrays.files if arrays[key].dtype.kind != "U"}
        reference = {key: torch.from_numpy(array) for key, array in numbers.items()}
        if "meta_json" in arrays.files:
            reference["config"] = json.loads(str(arrays["meta_json"]))["config"]
    return reference


def under(reference: dict, *prefixes: str) -> dict[str, torch.Tensor]:
    """The entries whose names begin with one of the prefixes, without it."""
    return {key.removeprefix(p): value for p in prefixes for key, value in reference.items() if key.startswith(p)}


def assert_close(
    actual: torch.Tensor, expected: torch.Tensor, name: str = "", tolerance=TOLERANCE, floor: float = 1e-300
) -> None:
    """Relative to the largest entry, as the references' own rounding is; the precision of `actual` is the measure.

    `floor`: the least size that the error is relative to.
    """
    assert actual.shape == expected.shape, name
    scale = expected.abs().max().clamp(min=floor)
    error = ((actual.detach().double() - expected).abs().max() / scale).item()
    assert error < tolerance[actual.dtype], f"{name}: relative error {error:.1e}"


def copy_parameters(module: torch.nn.Module, values: dict[str, torch.Tensor]) -> None:
    """Set every parameter of the module, each from an array of the same number of entries."""
    parameters = dict(module.named_parameters())
    assert parameters.keys() == values.keys()
    for name, value in values.items():
        parameters[name].data.copy_(value.reshape(parameters[name].shape))


def tolerance_of(case: str) -> dict[torch.dtype, float]:
    """The tolerances of a case in the table, and the common ones for any other."""
    return {**TOLERANCE, torch.float32: FLOAT32_TOLERANCE.get(case, TOLERANCE[torch.float32])}


def assert_gradients(module, loss: torch.Tensor, expected: dict, file: str = "") -> None:
    """The gradient of `loss` with respect to every parameter of the module, from a file without its `.npz`."""
    module.zero_grad()
    loss.backward(retain_graph=True)
    parameters = dict(module.named_parameters())
    assert parameters.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(parameters[name].grad.reshape(value.shape), value, name, tolerance_of(file))


_EMBEDDINGS = "energy_transformer.embeddings"
_LAYER = "energy_transformer.layers.0"
FLAX_NAMES = {
    "backbone/cls_token": f"{_EMBEDDINGS}.cls_token",
    "backbone/mask_token": f"{_EMBEDDINGS}.mask_token",
    "backbone/pos_embed": f"{_EMBEDDINGS}.position_embeddings",
    "backbone/encoder/kernel": f"{_EMBEDDINGS}.patch_embeddings.weight",
    "backbone/encoder/bias": f"{_EMBEDDINGS}.patch_embeddings.bias",
    "backbone/norm/gamma": f"{_LAYER}.norm.gamma",
    "backbone/norm/bias": f"{_LAYER}.norm.delta",
    "backbone/block/attn/Wk": f"{_LAYER}.attention.Wk",
    "backbone/block/attn/Wq": f"{_LAYER}.attention.Wq",
    "backbone/block/chn/kernel": f"{_LAYER}.hopfield.W",
    "decoder/kernel": "decoder.weight",
    "decoder/bias": "decoder.bias",
    "cls_head/layers_0/scale": "classifier.0.weight",
    "cls_head/layers_0/bias": "classifier.0.bias",
    "cls_head/layers_1/kernel": "classifier.1.weight",
    "cls_head/layers_1/bias": "classifier.1.bias",
    "cls_head/layers_3/kernel": "classifier.3.weight",
    "cls_head/layers_3/bias": "classifier.3.bias",
}
PLAINDICT_NAMES = {
    "CLS_token": f"{_EMBEDDINGS}.cls_token",
    "MASK_token": f"{_EMBEDDINGS}.mask_token",
    "POS_embed": f"{_EMBEDDINGS}.position_embeddings",
    "Wenc": f"{_EMBEDDINGS}.patch_embeddings.weight",
    "Benc": f"{_EMBEDDINGS}.patch_embeddings.bias",
    "LNORM_gamma": f"{_LAYER}.norm.gamma",
    "LNORM_bias": f"{_LAYER}.norm.delta",
    "Wk": f"{_LAYER}.attention.Wk",
    "Wq": f"{_LAYER}.attention.Wq",
    "Xi": f"{_LAYER}.hopfield.W",
    "Wdec": "decoder.weight",
    "Bdec": "decoder.bias",
}


def renamed(values: dict[str, torch.Tensor], names: dict[str, str]) -> dict[str, torch.Tensor]:
    """Parameters, or their gradients, of a JAX model under our names: its linear maps are (in, out)."""
    linear = ("kernel", "Wenc", "Wdec")
    return {
        names[key]: value.T if key.endswith(linear) and not key.endswith("chn/kernel") else value
        for key, value in values.items()
    }


def jax_config(parameters: dict[str, torch.Tensor], image_size: int, **options) -> EnergyTransformerConfig:
    """The configuration of a JAX image model from the shapes of its parameters (under our names), patches of 4."""
    heads, head_dim, dim = parameters[f"{_LAYER}.attention.Wq"].shape
    return EnergyTransformerConfig(
        image_size=image_size,
        patch_size=4,
        hidden_size=dim,
        num_attention_heads=heads,
        head_dim=head_dim,
        intermediate_size=parameters[f"{_LAYER}.hopfield.W"].shape[1],
        **options,
    )
