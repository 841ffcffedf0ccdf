"""The flax code of the paper, bhoov/energy-transformer-jax `og_implementation`, and the biases of b-vitamins."""

import pytest
import torch
from blocks import energy_gradient, token_energies
from reference_numbers import (
    FLAX_NAMES,
    assert_close,
    assert_gradients,
    copy_parameters,
    in_both_precisions,
    jax_config,
    load,
    renamed,
    under,
)

from energy_transformer import (
    BaseModernHopfield,
    EnergyAttention,
    EnergyLayerNorm,
    EnergyTransformerConfig,
    EnergyTransformerForImageClassification,
    EnergyTransformerForMaskedImageModeling,
    SoftmaxModernHopfield,
)
from energy_transformer.patches import patchify, unpatchify


def model_of(cls, reference, prefix, image_size, steps, step_size, dtype, **options):
    parameters = renamed(under(reference, prefix), FLAX_NAMES)
    config = jax_config(parameters, image_size, num_steps=steps, step_size=step_size, **options)
    model = cls(config).to(dtype)
    if cls is EnergyTransformerForImageClassification:
        del parameters["energy_transformer.embeddings.mask_token"]
    copy_parameters(model, parameters)
    return model


@in_both_precisions
def test_masked_image_model(dtype):
    reference = load("jax_flax_masked_image.npz")
    steps, step_size = int(reference["steps"]), reference["alpha"].item()
    model = model_of(EnergyTransformerForMaskedImageModeling, reference, "param/", 16, steps, step_size, dtype)
    image, mask = reference["image"][None].to(dtype), reference["mask"][None]
    outputs = model(image, bool_masked_pos=mask, output_hidden_states=True, output_energies=True)
    assert_close(outputs.reconstruction[0], reference["reconstruction"])
    assert_close(torch.stack(outputs.hidden_states)[:, 0], reference["tokens"])
    assert_close(outputs.energies[0], reference["energies"])
    assert_close(model.energy(image, bool_masked_pos=mask)[0], reference["energies"][-1])
    entries = (mask > 0).sum() * patchify(image, (4, 4)).shape[-1]
    assert_close(outputs.loss * entries, reference["masked_sum_squared_error"])
    loss = outputs.loss * entries / image.numel()
    assert_close(loss, reference["loss_mean_over_all_entries"])
    assert_gradients(model, loss, renamed(under(reference, "dloss/"), FLAX_NAMES))


def recon_model(dtype):
    reference = load("more/flax_recon.npz")
    config = reference["config"]
    model = model_of(
        EnergyTransformerForMaskedImageModeling, reference, "param.", 16, config["depth"], config["alpha"], dtype
    )
    return model, reference


@in_both_precisions
def test_reconstruction_and_loss_gradients(dtype):
    model, reference = recon_model(dtype)
    images, mask = reference["images"].to(dtype), reference["mask"]
    assert_close(patchify(images, (4, 4)), reference["patches"].flatten(2))
    outputs = model(images, bool_masked_pos=mask, output_hidden_states=True, output_energies=True)
    assert_close(outputs.reconstruction, reference["recon_image"])
    assert_close(patchify(outputs.reconstruction, (4, 4)), reference["recon"].flatten(2))
    assert_close(outputs.energies, reference["energies"])
    assert_close(torch.stack(outputs.hidden_states)[:, 0], reference["tokens"][0])
    assert_close(outputs.loss, reference["loss_masked_mse"])
    loss = (outputs.loss * (mask > 0).float().mean()).sqrt()
    assert_close(loss, reference["loss_rmse"])
    assert_gradients(model, loss, renamed(under(reference, "lossgrad."), FLAX_NAMES), "more/flax_recon")
    expected = renamed(under(reference, "grad."), FLAX_NAMES)
    assert_gradients(model, outputs.reconstruction.square().mean(), expected, "more/flax_recon")


@in_both_precisions
def test_reconstruction_with_too_few_masked_patches(dtype):
    """The reference then replaces patch 0 as well; here that must be said."""
    model, reference = recon_model(dtype)
    mask = reference["mask_short"]
    corrupted = mask == 1
    corrupted[:, 0] |= corrupted.sum(-1) < reference["config"]["nmask"]
    outputs = model(reference["images"].to(dtype), bool_masked_pos=mask, bool_corrupted_pos=corrupted)
    assert_close(patchify(outputs.reconstruction, (4, 4)), reference["recon_short"].flatten(2))


@in_both_precisions
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_classifier(dtype, head):
    reference = load(f"jax_flax_classification_{head}.npz")
    steps, step_size = int(reference["steps"]), reference["alpha"].item()
    cls = EnergyTransformerForImageClassification
    model = model_of(cls, reference, "param/", 16, steps, step_size, dtype, num_labels=5, classifier_head=head)
    assert_close(model(reference["image"][None].to(dtype)).logits[0], reference["logits"])


@in_both_precisions
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_classifier_loss_and_gradients(dtype, head):
    reference = load(f"more/flax_cls_{head}.npz")
    config = reference["config"]
    options = {"num_labels": config["n_classes"], "classifier_head": head, "label_smoothing": 0.1}
    cls = EnergyTransformerForImageClassification
    model = model_of(cls, reference, "param.", 16, config["depth"], config["alpha"], dtype, **options)
    images = unpatchify(reference["patches"].flatten(2), (4, 4), (4, 4), 3)
    outputs = model(images.to(dtype), labels=reference["labels"])
    assert_close(outputs.logits, reference["logits"])
    assert_close(outputs.loss, reference["loss_ce_smooth0.1"])
    expected = renamed(under(reference, "grad."), FLAX_NAMES)
    assert not expected.pop("energy_transformer.embeddings.mask_token").any()
    assert_gradients(model, outputs.logits.square().mean(), expected)


@in_both_precisions
def test_parts(dtype):
    reference = load("jax_flax_parts.npz")
    dim, memories = reference["Xi"].shape
    g, beta = reference["g"].to(dtype), reference["softmax_beta"].item()
    hopfield = SoftmaxModernHopfield(dim, memories, beta=beta, learnable_beta=False).to(dtype)
    copy_parameters(hopfield, {"W": reference["Xi"]})
    assert_close(hopfield.energy(g), reference["softmax_energy"])
    assert_close(hopfield.grad(g), reference["softmax_grad"])
    norm = EnergyLayerNorm(dim, regularization=reference["lmda"].item()).to(dtype)
    copy_parameters(norm, {"gamma": reference["gamma"], "delta": reference["delta"]})
    assert_close(norm(reference["x"].to(dtype)), reference["regularized_norm"])


def resized(old, grid, dtype):
    config = EnergyTransformerConfig(image_size=16, patch_size=4, hidden_size=old.shape[1])
    embeddings = EnergyTransformerForMaskedImageModeling(config).to(dtype).energy_transformer.embeddings
    embeddings.position_embeddings.data.copy_(old[None])
    return embeddings.interpolate_pos_encoding(grid)[0]


@in_both_precisions
def test_position_resizing(dtype):
    reference = load("jax_flax_parts.npz")
    assert_close(resized(reference["pos_embed_4x4"], (6, 6), dtype), reference["pos_embed_6x6"])
    reference = load("more/flax_resize_pos_embed.npz")
    for kind in ("up", "down", "rect"):
        grid = tuple(reference[f"grid_{kind}"].tolist())
        assert_close(resized(reference["old"], grid, dtype), reference[f"out_{kind}"], kind)


CORE = {
    "attn": lambda dim, memories, config: EnergyAttention(dim, config["H"], learnable_beta=False),
    "attn_b": lambda dim, memories, config: EnergyAttention(
        dim, config["H"], config["beta_init_b"], learnable_beta=False
    ),
    "chn_relu": lambda dim, memories, config: BaseModernHopfield(dim, memories, learnable_beta=False),
    "chn_relu_bias": lambda dim, memories, config: BaseModernHopfield(dim, memories, bias=True, learnable_beta=False),
    "chn_softmax": lambda dim, memories, config: SoftmaxModernHopfield(dim, memories),
    "chn_softmax_bias": lambda dim, memories, config: SoftmaxModernHopfield(dim, memories, bias=True),
}


@in_both_precisions
@pytest.mark.parametrize("name", CORE)
def test_core_energies(dtype, name):
    reference = load("more/flax_core.npz")
    module = CORE[name](24, 96, reference["config"]).to(dtype)
    rename = {"kernel": "W"}
    copy_parameters(module, {rename.get(k, k): v for k, v in under(reference, f"{name}.param.").items()})
    g = reference["g"].to(dtype)
    assert_close(module.energy(g), reference[f"{name}.energy"])
    assert_close(module.grad(g), reference[f"{name}.grad"])
    assert_close(module.grad(g), reference[f"{name}.manual_grad"])
    expected = {rename.get(k, k): v for k, v in under(reference, f"{name}.wgrad.").items()}
    assert_gradients(module, module.grad(g).square().mean(), expected)


@in_both_precisions
def test_core_transformer(dtype):
    reference = load("more/flax_core.npz")
    attention = EnergyAttention(24, reference["config"]["H"], learnable_beta=False)
    hopfield = BaseModernHopfield(24, 96, learnable_beta=False)
    module = torch.nn.ModuleDict({"attention": attention, "hopfield": hopfield}).to(dtype)
    names = {"attn/Wk": "attention.Wk", "attn/Wq": "attention.Wq", "chn/kernel": "hopfield.W"}
    copy_parameters(module, {names[k]: v for k, v in under(reference, "ht.param.").items()})
    g = reference["g"].to(dtype)
    assert_close(token_energies(g, attention, hopfield).sum(), reference["ht.energy"])
    gradient = energy_gradient(g, attention, hopfield)
    assert_close(gradient, reference["ht.grad"])
    assert_close(gradient, reference["ht.manual_grad"])
    expected = {names[k]: v for k, v in under(reference, "ht.wgrad.").items()}
    assert_gradients(module, gradient.square().mean(), expected)


@in_both_precisions
@pytest.mark.parametrize("name", ["ln", "reg_ln", "ln_nobias", "reg_ln_nobias"])
def test_core_norms(dtype, name):
    reference = load("more/flax_core.npz")
    regularization = reference["config"]["lmda"] if name.startswith("reg") else 0.0
    norm = EnergyLayerNorm(24, regularization=regularization).to(dtype)
    delta = reference.get(f"{name}.param.bias", torch.zeros(24))
    copy_parameters(norm, {"gamma": reference[f"{name}.param.gamma"], "delta": delta})
    assert_close(norm(reference["x"].to(dtype)), reference[f"{name}.out"])


@in_both_precisions
@pytest.mark.parametrize("kind", ["relu", "softmax"])
def test_b_vitamins_bias_before_beta(dtype, kind):
    """Its energies are divided by the number of tokens, its gradients are not."""
    reference = load("more/bvit_layers.npz")
    parameters = under(reference, f"hop_{kind}.")
    cls = SoftmaxModernHopfield if kind == "softmax" else BaseModernHopfield
    dim, memories = parameters["kernel"].shape
    module = cls(dim, memories, bias="before_beta", learnable_beta=kind == "softmax").to(dtype)
    copy_parameters(module, {{"kernel": "W"}.get(k, k): v for k, v in parameters.items()})
    g = reference["g"].to(dtype)
    assert_close(module.energy(g) / g[..., 0].numel(), reference[f"hop_{kind}_energy"])
    assert_close(module.grad(g), reference[f"hop_{kind}_grad"])
