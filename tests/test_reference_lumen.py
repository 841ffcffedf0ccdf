"""The package that this one descends from, LumenPallidium/energy_transformer."""

import pytest
import torch
from reference_numbers import (
    assert_close,
    assert_gradients,
    in_both_precisions,
    load,
    tolerance_of,
    under,
)

from energy_transformer import EnergyTransformer

LUMEN_FILE = "lumen_energy_transformer_{}"


def model_of(state, kind, context, steps, step_size, dtype):
    dim, memories = state["hopfield.W"].shape
    heads = state["mha.beta"].shape[0]
    model = EnergyTransformer(dim, memories, heads, context, steps, step_size, hopfield_type=kind, return_energy=True)
    model = model.to(dtype)
    model.load_state_dict(state, strict=True)
    assert [*model.state_dict()] == [*state]
    return model


@pytest.fixture(params=["relu", "softmax"])
def kind(request):
    return request.param


def lumen_model(kind, dtype):
    reference = load(f"{LUMEN_FILE.format(kind)}.npz")
    state = under(reference, "state_dict/")
    steps, step_size = int(reference["n_iters"]), reference["alpha"].item()
    return model_of(state, kind, reference["x"].shape[1], steps, step_size, dtype), reference


@in_both_precisions
def test_descent_and_loss_gradients(kind, dtype):
    model, reference = lumen_model(kind, dtype)
    x = reference["x"].to(dtype).requires_grad_()
    y, features, energies = model(x)
    assert_close(y, reference["y"])
    assert_close(torch.stack(features), reference["features"])
    assert_close(torch.stack(energies), reference["energies"])
    loss = y.square().mean()
    assert_close(loss, reference["loss"])
    (gradient,) = torch.autograd.grad(loss, x, retain_graph=True)
    assert_close(gradient, reference["dloss_x"], "x", tolerance_of(LUMEN_FILE.format(kind)))
    assert_gradients(model, loss, under(reference, "dloss/"), LUMEN_FILE.format(kind))


@in_both_precisions
def test_parts(kind, dtype):
    model, reference = lumen_model(kind, dtype)
    g = reference["g"].to(dtype)
    assert_close(model(reference["x"].to(dtype), n_iters=5)[0], reference["y_5_iterations"])
    filtered = model.filtered_forward(reference["filtered_x"].to(dtype), reference["filtered_indices"])
    assert_close(filtered, reference["filtered_y"])
    assert_close(model.mha(g), reference["mha_forward"])
    assert_close(model.hopfield(g), reference["hopfield_forward"])


@in_both_precisions
def test_ema_update(kind, dtype):
    model, reference = lumen_model(kind, dtype)
    new, _ = lumen_model(kind, dtype)
    model.ema_decay = 0.9
    model.load_state_dict(under(reference, "ema_before/"), strict=True)
    model.ema_update(new)
    for name, parameter in model.named_parameters():
        assert_close(parameter, reference[f"ema_after/{name}"], name)


@in_both_precisions
@pytest.mark.parametrize("context", [0, 9])
def test_with_and_without_positions(kind, context, dtype):
    file = f"more/lumen_{kind}_ctx{'N' if context else 0}"
    reference = load(f"{file}.npz")
    config = reference["config"]
    model = model_of(under(reference, "state."), kind, context, config["n_iters_default"], config["alpha"], dtype)
    x, g, steps = reference["x"].to(dtype), reference["g"].to(dtype), int(reference["n_iters_override"])

    output, features, energies = model(x)
    assert_close(output, reference["output"])
    assert_close(torch.stack(features), reference["features"])
    assert_close(torch.stack(energies), reference["energies"])
    assert_gradients(model, output.square().mean(), under(reference, "grad."), file)

    assert_close(model(x, n_iters=steps)[0], reference["output_n_iters"])
    assert_close(model(x, n_iters=0)[0], reference["output_n_iters0"])
    assert_close(model.norm(x + model.pos_embedding), reference["g"])
    assert_close(model.mha.energy(g), reference["mha_energy"])
    assert_close(model.mha(g), reference["mha_grad"])
    assert_close(model.hopfield.energy(g), reference["hopfield_energy"])
    assert_close(model.hopfield(g), reference["hopfield_grad"])
    trace = [model.energy(model.norm(state)) for state in (x + model.pos_embedding, *features)]
    assert_close(torch.stack(trace), reference["energy_g_trace"])
    if context:
        filtered_x, indices = reference["filtered_x"].to(dtype), reference["filtered_indices"]
        assert_close(model.filtered_forward(filtered_x, indices), reference["filtered_output"])
        assert_close(model.filtered_forward(filtered_x, indices, steps), reference["filtered_output_n_iters"])
    else:
        assert_close(model(reference["x_unbatched"].to(dtype))[0], reference["output_unbatched"])

    new = model_of(under(reference, "ema_new."), kind, context, steps, config["alpha"], dtype)
    model.ema_update(new)
    for name, value in under(reference, "ema_result.").items():
        assert_close(model.state_dict()[name], value, name)
