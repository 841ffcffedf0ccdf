"""What a step does with the pull: plain descent, learned sizes, momentum, noise, and the gradient of the state."""

import copy
import shutil

import pytest
import torch
from masked_images import images, some_mask
from safetensors.torch import load_file
from training_runs import build
from transformers import AutoModelForMaskedImageModeling

from energy_transformer import (
    EnergyBlock,
    EnergyContext,
    EnergyLayerNorm,
    EnergyTransformerConfig,
    EnergyTransformerForMaskedImageModeling,
    EnergyTransformerModel,
    Record,
    Update,
)
from energy_transformer.energies import BaseModernHopfield, EnergyAttention, LayerNorm
from energy_transformer.training.optimization import is_decayed
from energy_transformer.updates import FlexibleUpdate

NORMS = {"energy_layer_norm": EnergyLayerNorm, "layer_norm": LayerNorm, "of torch": torch.nn.RMSNorm}
UPDATES = {
    "plain": {},
    "learned sizes": {"learnable_step_size": "step"},
    "learned sizes of channels": {"learnable_step_size": "channel"},
    "momentum": {"momentum": 0.5},
    "noise": {"temperature": 1e-3},
    "state": {"descent_gradient": "state"},
    "all": {"learnable_step_size": "step", "momentum": 0.5, "temperature": 1e-3, "descent_gradient": "state"},
}


def block_of(update=None, norm=EnergyLayerNorm, descent_gradient="normalized"):
    torch.manual_seed(0)
    terms = {"attention": EnergyAttention(12, 3, scale=0.4), "hopfield": BaseModernHopfield(12, 20, scale=0.4)}
    block = EnergyBlock(terms, norm(12), update or Update(0.3), descent_gradient).double()
    for parameter in block.norm.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return block, torch.randn(2, 5, 12, dtype=torch.float64)


def total_energy(block, x):
    return sum(term.sum() for term in block(x, 0, record=Record(energies=True)).energies.values())


@pytest.mark.parametrize("norm", NORMS)
def test_the_gradient_of_the_state(norm):
    """One step along it is a step of size α down the gradient of E(norm(x)), for every norm."""
    block, x = block_of(norm=NORMS[norm], descent_gradient="state")
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(total_energy(block, x), x)
    torch.testing.assert_close(block(x, 1).state, x - 0.3 * gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("norm", ["energy_layer_norm", "layer_norm"])
def test_pullbacks_are_those_of_autograd(norm):
    module, x = NORMS[norm](12), torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True)
    module = module.double()
    for parameter in module.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    v = torch.randn_like(x)
    (expected,) = torch.autograd.grad(module(x), x, v)
    torch.testing.assert_close(module.pullback(x, v), expected, rtol=1e-11, atol=1e-12)
    regularized = EnergyLayerNorm(12, regularization=0.1).double()
    (expected,) = torch.autograd.grad(regularized(x), x, v)
    torch.testing.assert_close(regularized.pullback(x, v), expected, rtol=1e-11, atol=1e-12)


def test_the_true_gradient_lowers_the_energy_under_a_norm_where_the_other_does_not():
    """With gains of both signs, ∂E/∂g is no descent direction; ∂E/∂x is one by definition."""
    rises = {}
    for descent_gradient in ("normalized", "state"):
        block, x = block_of(Update(1e-4), LayerNorm, descent_gradient)
        block.norm.weight.data[:6] *= -1
        energies = sum(e.sum((-1, 0)) for e in block(x, 20, record=Record(energies=True)).energies.values())
        rises[descent_gradient] = (energies.diff() > 0).sum().item()
    assert rises["state"] == 0 < rises["normalized"]


def test_learned_sizes_begin_as_the_plain_step_and_go_on_with_the_last():
    plain, x = block_of()
    for learnable in ("step", "channel"):
        block, _ = block_of(FlexibleUpdate(0.3, 4, learnable, dim=12))
        torch.testing.assert_close(block.update.step_size.data, torch.full_like(block.update.step_size, 0.3))
        block.update.step_size.data.fill_(0.3)  # it was made in float32
        torch.testing.assert_close(block(x, 4).state, plain(x, 4).state, rtol=1e-12, atol=1e-12)
        sizes = block.update.step_size
        assert sizes.shape == ((4,) if learnable == "step" else (4, 12))
        sizes.data.mul_(torch.tensor([1.0, 0.5, 0.25, 2.0], dtype=torch.float64).view(4, *[1] * (sizes.ndim - 1)))
        expected = x
        for size in (0.3, 0.15, 0.075, 0.6, 0.6, 0.6):
            expected = block_of(Update(size))[0](expected, 1).state
        torch.testing.assert_close(block(x, 6).state, expected, rtol=1e-11, atol=1e-12)
        (gradient,) = torch.autograd.grad(block(x, 6).state.square().sum(), sizes)
        assert (gradient != 0).all()


def test_momentum_is_the_heavy_ball():
    block, x = block_of(FlexibleUpdate(0.3, momentum=0.6))
    plain, _ = block_of(Update(1.0))
    velocity, expected = 0, x
    for _ in range(5):
        velocity = 0.6 * velocity + (plain(expected, 1).state - expected)
        expected = expected + 0.3 * velocity
    torch.testing.assert_close(block(x, 5).state, expected, rtol=1e-11, atol=1e-12)


def test_noise_has_the_temperature_and_comes_from_the_generator():
    """On a flat energy the walk is Brownian: after T steps its variance is 2 α τ T."""
    block, _ = block_of(FlexibleUpdate(0.3, temperature=0.01))
    for parameter in block.parameters():
        parameter.data.zero_()
    x = torch.zeros(40, 50, 12, dtype=torch.float64)
    runs = [block(x, 10, EnergyContext(generator=torch.Generator().manual_seed(seed))).state for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    assert runs[0].var().item() == pytest.approx(2 * 0.3 * 0.01 * 10, rel=0.03)


@pytest.mark.parametrize("options", UPDATES.values(), ids=UPDATES)
def test_checkpointing_changes_nothing(small_config, options):
    """Noise is drawn outside of what is computed again."""
    results = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        config = EnergyTransformerConfig(**small_config.to_dict() | options)
        model = EnergyTransformerForMaskedImageModeling(config).train()
        if checkpointed:
            model.gradient_checkpointing_enable()
        loss = model(images(), bool_masked_pos=some_mask(), generator=torch.Generator().manual_seed(5)).loss
        loss.backward()
        results.append([loss, *(parameter.grad for parameter in model.parameters())])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@torch.no_grad()
@pytest.mark.parametrize("options", UPDATES.values(), ids=UPDATES)
def test_a_tolerance_and_padding_leave_the_other_images_alone(small_config, options):
    """The velocity and noise of an image follow it when others have settled, and padding never moves."""
    torch.manual_seed(0)
    config = EnergyTransformerConfig(**small_config.to_dict() | options | {"num_steps": 12})
    model = EnergyTransformerModel(config).double().eval()
    pixels = torch.tensor([0.02, 1.0, 8.0], dtype=torch.float64)[:, None, None, None] * images(3).double()
    padding = torch.ones(3, 25, dtype=torch.bool)
    padding[1, -3:] = False

    def run(**more):
        generator = torch.Generator().manual_seed(7)
        return model(
            pixels, attention_mask=padding, generator=generator, output_hidden_states="tolerance" not in more, **more
        )

    whole, settled = run(), run(tolerance=0.03)
    states = torch.stack([model.layers[0](x, 0).normalized for x in whole.hidden_states])
    for image, taken in enumerate(settled.num_steps_taken):
        found, expected = settled.last_hidden_state[image], states[taken, image]
        torch.testing.assert_close(found[padding[image]], expected[padding[image]], rtol=1e-9, atol=1e-9)
    assert torch.equal(whole.hidden_states[0][1, -3:], whole.hidden_states[-1][1, -3:])


@pytest.mark.parametrize("options", UPDATES.values(), ids=UPDATES)
def test_updates_are_saved_compiled_and_loaded(small_config, options, tmp_path):
    torch.manual_seed(0)
    config = EnergyTransformerConfig(**small_config.to_dict() | options)
    model = EnergyTransformerForMaskedImageModeling(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("step_size"):
            parameter.data.mul_(torch.rand_like(parameter) + 0.5)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForMaskedImageModeling.from_pretrained(tmp_path).eval()

    functions = [model, loaded]
    if "momentum" in options:
        functions.append(torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager"))
    results = []
    for function in functions:
        torch.manual_seed(3)
        results.append(function(images(), bool_masked_pos=some_mask()).reconstruction)
    assert torch.equal(results[0], results[1])
    torch.testing.assert_close(results[-1], results[0], rtol=1e-4, atol=1e-5)


def test_learned_sizes_are_not_decayed(small_config):
    config = EnergyTransformerConfig(**small_config.to_dict() | {"learnable_step_size": "channel"})
    model = EnergyTransformerForMaskedImageModeling(config)
    sizes = dict(model.named_parameters())["energy_transformer.layers.0.update.step_size"]
    assert sizes.shape == (3, 32) and not is_decayed("energy_transformer.layers.0.update.step_size", sizes)
    assert (sizes == 0.5).all()


def test_a_block_may_have_its_own_number_of_steps(small_config):
    config = EnergyTransformerConfig(**small_config.to_dict() | {"num_hidden_layers": 2, "num_steps": [1, 3]})
    model = EnergyTransformerModel(config).eval()
    outputs = model(images(), output_hidden_states=True, output_energies=True)
    assert len(outputs.hidden_states) == 5 and outputs.energies.shape == (8, 5)
    first, second = model.layers
    state = second(first(model.embeddings(images()), 1).state, 3).normalized
    torch.testing.assert_close(outputs.last_hidden_state, state)
    with pytest.raises(Exception, match="num_steps must be one number or one for each of 2 blocks"):
        EnergyTransformerConfig(num_hidden_layers=2, num_steps=[1, 2, 3])


@pytest.mark.parametrize("wrong", [{"momentum": 1.0}, {"temperature": -1.0}, {"learnable_step_size": "layer"}])
def test_impossible_updates_are_refused(wrong):
    with pytest.raises(Exception, match=next(iter(wrong))):
        EnergyTransformerConfig(**wrong)


@pytest.mark.slow
@pytest.mark.parametrize("options", UPDATES.values(), ids=UPDATES)
def test_every_update_learns_by_the_demo_recipe(tmp_path, options):
    """Below the mean color in a tenth of the recipe's steps; resumed, compiled and loaded again."""
    fields = {"hidden_size": 64, "head_dim": 32, "intermediate_size": 256, "num_steps": 3, **options}
    words = ["--config_overrides=" + ",".join(f"{name}={value}" for name, value in fields.items())]
    words += ["--max_train_samples=3000", "--max_eval_samples=128", "--per_device_train_batch_size=16"]
    words += ["--logging_steps=100", "--warmup_ratio=0.04", "--max_train_steps=800"]
    whole = build(tmp_path / "whole", *words, "--checkpointing_steps=640").run()
    assert whole["eval_ratio_to_mean_color"] < 0.95
    (tmp_path / "resumed").mkdir()
    shutil.copytree(tmp_path / "whole" / "checkpoint-640", tmp_path / "resumed" / "checkpoint-640")
    build(tmp_path / "resumed", *words, "--resume_from_checkpoint=latest").run()
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "resumed")]
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name]), name
    model = AutoModelForMaskedImageModeling.from_pretrained(tmp_path / "whole").eval()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    results = []
    for function in (model, compiled):
        torch.manual_seed(0)
        results.append(function(2 * torch.rand(2, 3, 32, 32) - 1).reconstruction)
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
