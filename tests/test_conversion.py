"""Converted checkpoints give the numbers of the implementations that they come from, in float64 to 1e-10 relative."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_checkpoints import flax_bytes, flax_tree, lemon_state, lemon_training_file, lumen_state
from reference_numbers import FOLDER, assert_close, load
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
)

from energy_transformer import (
    EnergyTransformer,
    EnergyTransformerForImageClassification,
    EnergyTransformerForMaskedImageModeling,
)
from energy_transformer.conversion import convert_checkpoint, load_energy_transformer
from energy_transformer.data.image_processing import load_image_processor
from energy_transformer.patches import patchify, unpatchify

SCRIPT = Path(__file__).parents[1] / "scripts" / "convert_checkpoint.py"


def flax_batch(ref):
    """Images, masks, reconstructions and energies of a flax masked-image reference file, with a batch axis."""
    if "images" in ref:
        return ref["images"], ref["mask"], ref["recon_image"], ref["energies"]
    return tuple(ref[name][None] for name in ("image", "mask", "reconstruction", "energies"))


MASKED_IMAGE = {
    "jax_plaindict_ckpt.npz": "jax_flax_masked_image.npz",
    "jax_flax_masked_image.msgpack": "jax_flax_masked_image.npz",
    "more/flax_recon.msgpack": "more/flax_recon.npz",
}


@pytest.mark.parametrize(("checkpoint", "numbers"), MASKED_IMAGE.items())
def test_jax_masked_image(checkpoint, numbers):
    model = convert_checkpoint(FOLDER / checkpoint)
    assert isinstance(model, EnergyTransformerForMaskedImageModeling) and model.dtype == torch.float64
    assert model.config.attend_to_self
    images, mask, reconstruction, energies = flax_batch(load(numbers))
    outputs = model(images, bool_masked_pos=mask > 0, bool_corrupted_pos=mask == 1, output_energies=True)
    assert_close(outputs.reconstruction, reconstruction)
    assert_close(outputs.energies, energies)


def test_jax_plaindict_of_equinox():
    """The reference's `mask_*`: its n_mask is 5, so fewer ones corrupt patch 0 too, and of more only five count."""
    model = convert_checkpoint(FOLDER / "more/eqx_plaindict_ckpt.npz")
    ref = load("more/eqx_image.npz")
    for case in ("full", "none", "short", "two", "over"):
        corrupted = torch.zeros(16, dtype=torch.bool)
        ones = (ref[f"mask_{case}"] == 1).nonzero().flatten()[:5]
        corrupted[ones] = True
        corrupted[0] |= len(ones) < 5
        outputs = model(ref["image"][None], bool_masked_pos=corrupted[None], output_energies=True)
        assert_close(outputs.reconstruction[0], ref[f"recon_single_norm_{case}"])
        assert_close(outputs.energies[0], ref[f"energies_{case}"])


def classification_images(ref):
    if "image" in ref:
        return ref["image"][None], ref["logits"][None]
    return unpatchify(ref["patches"].flatten(2), (4, 4), (4, 4), 3), ref["logits"]


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("name", ["jax_flax_classification_{}", "more/flax_cls_{}"])
def test_flax_classification(name, head, tmp_path):
    ref = load(f"{name.format(head)}.npz")
    source = FOLDER / f"{name.format(head)}.msgpack"
    if not source.exists():
        source = tmp_path / "checkpoint"
        source.write_bytes(flax_bytes({"params": flax_tree(ref)}))
    model = convert_checkpoint(source)
    images, logits = classification_images(ref)
    assert isinstance(model, EnergyTransformerForImageClassification)
    assert model.config.classifier_head == head and model.config.num_labels == logits.shape[1]
    assert_close(model(images).logits, logits)
    if "labels" in ref:
        assert_close(model(images, labels=ref["labels"]).loss, ref["loss_ce_smooth0.1"])


def test_flax_train_state(tmp_path):
    """A whole TrainState: parameters under params/params, and the state of the optimizer beside them."""
    ref = load("jax_flax_masked_image.npz")
    tree = flax_tree(ref)
    state = {
        "step": np.int64(7),
        "params": {"params": tree},
        "opt_state": {
            "0": {"count": np.array(7, np.int32), "mu": tree, "nu": tree},
            "1": {},
            "2": {"z": 1j, "n": None},
        },
    }
    source, output_dir = tmp_path / "checkpoint_7", tmp_path / "converted"
    source.write_bytes(flax_bytes(state))
    model = convert_checkpoint(source, output_dir)
    images, mask, reconstruction, _ = flax_batch(ref)
    outputs = model(images, bool_masked_pos=mask > 0, bool_corrupted_pos=mask == 1)
    assert_close(outputs.reconstruction, reconstruction)
    assert "Left out: `opt_state`, `step`." in (output_dir / "README.md").read_text()


def test_flax_chunked_arrays_and_bfloat16(tmp_path):
    ref = load("jax_flax_masked_image.npz")
    tree = flax_tree(ref)
    kernel = tree["backbone"]["block"]["chn"]["kernel"]
    chunks = {str(i): part for i, part in enumerate(np.array_split(kernel.reshape(-1), 3))}
    shape = {str(i): size for i, size in enumerate(kernel.shape)}
    tree["backbone"]["block"]["chn"]["kernel"] = {"__msgpack_chunked_array__": True, "shape": shape, "chunks": chunks}
    bias = torch.from_numpy(tree["decoder"]["bias"]).bfloat16()
    tree["decoder"]["bias"] = bias
    (tmp_path / "checkpoint").write_bytes(flax_bytes({"params": tree}))
    model = convert_checkpoint(tmp_path / "checkpoint")
    assert torch.equal(model.energy_transformer.layers[0].hopfield.W, torch.from_numpy(kernel))
    assert torch.equal(model.decoder.bias, bias.double())


LUMEN_FILES = [
    "lumen_energy_transformer_relu.npz",
    "lumen_energy_transformer_softmax.npz",
    "more/lumen_relu_ctx0.npz",
    "more/lumen_relu_ctxN.npz",
    "more/lumen_softmax_ctx0.npz",
    "more/lumen_softmax_ctxN.npz",
]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", LUMEN_FILES)
def test_lumen_block(name, nested, tmp_path):
    ref = load(name)
    state = lumen_state(ref)
    torch.save({"model_state_dict": state, "epoch": 2} if nested else state, tmp_path / "seed.pt")
    convert_checkpoint(tmp_path / "seed.pt", tmp_path / "converted")
    model = load_energy_transformer(tmp_path / "converted")
    assert isinstance(model, EnergyTransformer) and not model.training
    assert_close(model(ref["x"]), ref.get("y", ref.get("output")))
    model.return_energy = True
    assert_close(torch.stack(model(ref["x"])[2]), ref["energies"])


ONE_NUMBER = [
    {"n_heads": 1, "hopfield_type": "softmax"},
    {"n_heads": 1, "hopfield_type": "relu"},
    {"n_heads": 3, "hopfield_type": "softmax", "beta": torch.tensor(0.3)},
    {"n_heads": 3, "hopfield_type": "softmax", "beta": torch.tensor([0.3])},
    {"n_heads": 3, "hopfield_type": "relu", "beta": torch.tensor([0.3])},
]


@pytest.mark.parametrize("arguments", ONE_NUMBER, ids=str)
def test_lumen_block_whose_beta_is_one_number(arguments, tmp_path):
    """One head, or one number for all heads; a hopfield.beta without an axis tells that the network is a softmax."""
    torch.manual_seed(0)
    original = EnergyTransformer(12, 20, n_iters_default=12, **arguments).double()
    for parameter in original.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.3)
    state = original.state_dict()
    assert state["mha.beta"].shape == (1,)
    torch.save(state, tmp_path / "seed.pt")
    kind = arguments["hopfield_type"]
    open_ = state["hopfield.beta"].ndim == 1
    convert_checkpoint(tmp_path / "seed.pt", tmp_path / "converted", hopfield_activation=kind if open_ else None)
    model = load_energy_transformer(tmp_path / "converted")
    assert {name: value.shape for name, value in model.state_dict().items()} == {n: v.shape for n, v in state.items()}
    x = torch.randn(2, 5, 12).double()
    assert_close(model(x), original(x))


def lumen_image_model(activation):
    """One module with the parts of LumenPallidium's example script, in other sizes, under the script's names."""
    torch.manual_seed(0)
    model = torch.nn.Module()
    widths = [(27, 12), (12, 27)]
    for name, (inner, outer) in zip(("patch_embedder", "patch_deembedder"), widths, strict=True):
        middle = torch.nn.LayerNorm(12)
        torch.nn.init.normal_(middle.weight)
        last = torch.nn.Linear(12, max(outer, 12))
        setattr(model, name, torch.nn.Sequential(torch.nn.Linear(inner, 12), middle, torch.nn.ReLU(), last))
    model.mask_token = torch.nn.Parameter(torch.randn(12))
    block = EnergyTransformer(12, 20, 3, context=8, n_iters_default=5, hopfield_type=activation)
    for parameter in block.parameters():
        torch.nn.init.uniform_(parameter, 0.5, 1.5) if parameter.ndim < 2 else torch.nn.init.normal_(parameter)
    model.model = block
    return model.double()


@pytest.mark.parametrize("activation", ["relu", "softmax"])
def test_lumen_image_model(activation, tmp_path):
    """Patches of (h, w, c) values, the mask token before the positions, and no norm before the decoder."""
    original = lumen_image_model(activation)
    torch.save(original.state_dict(), tmp_path / "seed.pth")
    model = convert_checkpoint(tmp_path / "seed.pth", tmp_path / "out", image_size=(6, 12), num_steps=5)
    assert model.config.patch_size == 3 and model.config.hopfield_activation == activation
    images, mask = torch.rand(2, 3, 6, 12).double(), torch.rand(2, 8) < 0.5
    patches = images.unflatten(3, (4, 3)).unflatten(2, (2, 3)).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    tokens = original.patch_embedder(patches)
    tokens[mask] = original.mask_token
    decoded = original.patch_deembedder(original.model(tokens))
    expected = decoded.unflatten(2, (3, 3, 3)).unflatten(1, (2, 4)).permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
    assert_close(model(images, bool_masked_pos=mask).reconstruction, expected)
    again = AutoModelForMaskedImageModeling.from_pretrained(tmp_path / "out")
    assert_close(again(images, bool_masked_pos=mask).reconstruction, expected)
    processor = load_image_processor(tmp_path / "out")
    assert (processor.image_mean, processor.image_std) == ((0, 0, 0), (1, 1, 1))


def lemon_numbers(name):
    """State dict, images, mask, reconstructed patches, energies and the options that no shape tells."""
    ref = load(name)
    config = ref.get("config")
    if config:
        options = {
            "num_steps": config["time_steps"],
            "step_size": config["alpha"],
            "attention_beta": config["attn_beta"],
        }
    else:
        options = {"num_steps": int(ref["steps"]), "step_size": ref["alpha"].item()}
    images = ref.get("images", ref.get("pixel_values"))
    indices = ref.get("mask_id", ref.get("mask_indices"))
    reconstruction = ref.get("recon", ref.get("reconstruction_patches"))
    mask = torch.zeros(reconstruction.shape[:2], dtype=torch.bool).scatter(1, indices, True)
    return lemon_state(ref), images, mask, reconstruction, ref["energies"], options


LEMON_FILES = [
    "lemon_image_et_1_block.npz",
    "lemon_image_et_2_block.npz",
    "more/lemon_1block.npz",
    "more/lemon_2block_bias.npz",
]


@pytest.mark.parametrize("form", ["plain", "model", "legacy"])
@pytest.mark.parametrize("name", LEMON_FILES)
def test_lemon(name, form, tmp_path):
    state, images, mask, reconstruction, energies, options = lemon_numbers(name)
    content = {"model": state} if form == "model" else state
    torch.save(content, tmp_path / "model.pth", _use_new_zipfile_serialization=form != "legacy")
    model = convert_checkpoint(tmp_path / "model.pth", tmp_path / "converted", **options)
    outputs = model(images, bool_masked_pos=mask, output_energies=True)
    assert_close(patchify(outputs.reconstruction, (4, 4)), reconstruction)
    assert_close(outputs.energies.sum(0), energies)
    assert not (tmp_path / "converted" / "preprocessor_config.json").exists()
    assert "does not tell how its images were normalized" in (tmp_path / "converted" / "README.md").read_text()


def test_lemon_training_file(tmp_path, caplog):
    """`args` tell the descent and the data set; the state of the training is left out by name."""
    state, images, mask, reconstruction, _, options = lemon_numbers("more/lemon_2block_bias.npz")
    args = {
        "time_steps": options["num_steps"],
        "alpha": options["step_size"],
        "attn_beta": options["attention_beta"],
        "data_name": "cifar100",
        "mask_ratio": 0.75,
        "out_dim": None,
    }
    torch.save(lemon_training_file(state, **args), tmp_path / "3.pth")
    convert_checkpoint(tmp_path / "3.pth", tmp_path / "converted")
    model = AutoModelForMaskedImageModeling.from_pretrained(tmp_path / "converted")
    assert_close(patchify(model(images, bool_masked_pos=mask).reconstruction, (4, 4)), reconstruction)
    assert model.config.mask_ratio == 0.75
    assert "taken as in its origin" not in caplog.text
    assert load_image_processor(tmp_path / "converted").image_mean == (0.5071, 0.4867, 0.4408)
    card = (tmp_path / "converted" / "README.md").read_text()
    assert "Left out: `args`, `epoch`, `opt`, `scheduler`." in card and "default of the origin" not in card


def test_written_checkpoint(tmp_path):
    """Every Auto class gives the reference's output; the card tells where the weights come from."""
    convert_checkpoint(FOLDER / "jax_plaindict_ckpt.npz", tmp_path / "converted")
    images, mask, reconstruction, energies = flax_batch(load("jax_flax_masked_image.npz"))
    model = AutoModelForMaskedImageModeling.from_pretrained(tmp_path / "converted")
    outputs = model(images, bool_masked_pos=mask > 0, bool_corrupted_pos=mask == 1)
    assert_close(outputs.reconstruction, reconstruction)
    base = AutoModel.from_pretrained(tmp_path / "converted", use_mask_token=True)
    assert_close(base(images, bool_masked_pos=mask == 1, output_energies=True).energies, energies)
    processor = load_image_processor(tmp_path / "converted")
    assert processor.image_mean == (0.485, 0.456, 0.406)
    assert list(processor(np.zeros((20, 30, 3), np.uint8), return_tensors="pt").pixel_values.shape) == [1, 3, 16, 16]
    card = (tmp_path / "converted" / "README.md").read_text()
    assert "bhoov/energy-transformer-jax (plaindict_ckpt.npz layout): `jax_plaindict_ckpt.npz`" in card
    assert str(FOLDER) not in card
    assert sorted(path.name for path in tmp_path.iterdir()) == ["converted"]


def test_written_classifier(tmp_path):
    convert_checkpoint(FOLDER / "more/flax_cls_mlp.msgpack", tmp_path / "converted")
    images, logits = classification_images(load("more/flax_cls_mlp.npz"))
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "converted")
    assert_close(model(images).logits, logits)
    assert "pipeline_tag: image-classification" in (tmp_path / "converted" / "README.md").read_text()


def test_defaults_of_the_origins(tmp_path):
    torch.save(lemon_state(load("more/lemon_1block.npz")), tmp_path / "lemon.pth")
    config = convert_checkpoint(tmp_path / "lemon.pth").config
    assert (config.num_steps, config.step_size, config.attention_beta) == (12, 1.0, None)
    torch.save(lumen_state(load("more/lumen_relu_ctx0.npz")), tmp_path / "seed.pth")
    convert_checkpoint(tmp_path / "seed.pth", tmp_path / "converted")
    block = load_energy_transformer(tmp_path / "converted")
    assert (block.n_iters, block.alpha) == (12, 0.1)
    assert "| `alpha` | 0.1 (default of the origin) |" in (tmp_path / "converted" / "README.md").read_text()


def test_options_and_dtype(tmp_path):
    options = {"num_steps": 3, "step_size": 0.2, "attention_beta": 0.7, "image_size": (8, 32), "dtype": "bfloat16"}
    convert_checkpoint(FOLDER / "jax_plaindict_ckpt.npz", tmp_path / "converted", **options)
    config = AutoConfig.from_pretrained(tmp_path / "converted")
    assert (config.num_steps, config.step_size, config.attention_beta) == (3, 0.2, 0.7)
    assert config.grid_size == (2, 8) and config.dtype == torch.bfloat16


def test_script(tmp_path, capsys, caplog):
    main = runpy.run_path(str(SCRIPT))["main"]
    output_dir = tmp_path / "a" / "converted"
    main([str(FOLDER / "jax_plaindict_ckpt.npz"), str(output_dir), "--image_size", "8", "32", "--dtype", "float32"])
    assert "6,313 parameters" in capsys.readouterr().out
    assert "taken as in its origin: num_steps=12, step_size=0.1, attention_beta=None" in caplog.text
    assert AutoModel.from_pretrained(output_dir).config.image_height_width == (8, 32)
