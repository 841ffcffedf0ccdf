"""Energy terms of a user's own, from registration to a checkpoint that opens elsewhere."""

import copy
import importlib
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import quartic_memories
import torch
from masked_images import images, run, some_mask
from minimal_environment import build_minimal_environment
from quartic_memories import QuarticMemories
from safetensors.torch import load_file, save_file
from training_runs import build
from transformers import AutoModelForMaskedImageModeling

from energy_transformer import (
    EnergyBlock,
    EnergyContext,
    EnergyLayerNorm,
    EnergyTerm,
    EnergyTransformerConfig,
    EnergyTransformerForMaskedImageModeling,
    Record,
    Update,
    register_energy_term,
)
from energy_transformer.energies import (
    ENERGY_TERMS,
    BaseModernHopfield,
    EnergyAttention,
    GELUModernHopfield,
    SoftmaxModernHopfield,
)


def with_terms(small_config, *terms):
    torch.manual_seed(0)
    config = EnergyTransformerConfig(**small_config.to_dict() | {"energy_terms": list(terms)})
    return EnergyTransformerForMaskedImageModeling(config).eval()


def shipped_terms():
    torch.manual_seed(0)
    terms = {
        "attention": EnergyAttention(12, 3, scale=0.5, use_bias=True),
        "attention of fixed betas": EnergyAttention(12, 2, [0.3, 2.0], 0.5, head_dim=5, learnable_beta=False),
        "relu": BaseModernHopfield(12, 20, scale=0.5, bias=True),
        "relu, bias before beta": BaseModernHopfield(12, 20, scale=0.5, bias="before_beta"),
        "softmax": SoftmaxModernHopfield(12, 20, beta=1.5, scale=0.5, bias=True),
        "gelu": GELUModernHopfield(12, 20, scale=0.5, bias=True),
        "normalized attention": EnergyAttention(12, 3, scale=0.5, use_bias=True, qk_norm=True),
        "normalized relu": BaseModernHopfield(12, 20, scale=0.5, bias=True, norm=True),
        "normalized gelu": GELUModernHopfield(12, 20, scale=0.5, beta=0.7, learnable_beta=False, norm=True),
        "normalized softmax": SoftmaxModernHopfield(12, 20, beta=1.5, scale=0.5, norm=True),
    }
    for term in terms.values():
        for name, parameter in term.named_parameters():
            if name.endswith(("bq", "bk", "bias", "beta")):
                parameter.data.add_(0.3 * torch.randn_like(parameter))
    return {name: term.double() for name, term in terms.items()}


@pytest.mark.parametrize("name", shipped_terms())
def test_closed_forms_are_derivatives_of_the_potentials(name):
    """With every kind of mask and a bias of the scores; and what the block computes is what the term says."""
    term, g = shipped_terms()[name], torch.randn(2, 7, 12, dtype=torch.float64, requires_grad=True)
    generator = torch.Generator().manual_seed(1)
    pairs, tokens = torch.rand(2, 7, 7, generator=generator) < 0.7, torch.rand(2, 7, generator=generator) < 0.8
    bias = torch.randn(2, 1, 7, 7, dtype=torch.float64, generator=generator)
    for context in (EnergyContext(), EnergyContext(tokens, pairs, bias, causal=True)):
        (expected,) = torch.autograd.grad(term.energy(g, context), g)
        torch.testing.assert_close(term(g, context), expected, rtol=1e-11, atol=1e-12)
        h = term.project(g)
        by_autograd = EnergyTerm.pull(term, h, context, **term.constants())
        torch.testing.assert_close(term.pull(h, context, **term.constants()), by_autograd, rtol=1e-11, atol=1e-12)


def definition(g, Wq, Wk, beta, memories, activation_energy):
    """The energy with normalized projections, in plain torch from the formulas: a scalar."""

    def rms(h):
        return h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    q, k = (rms(torch.einsum("bnd,hyd->bhny", g, weight)) for weight in (Wq, Wk))
    scores = torch.einsum("h,bhqy,bhky->bhqk", beta, q, k)
    attention = -(torch.logsumexp(scores, -1).sum(-1) / beta).sum()
    return attention - activation_energy(rms(g @ memories)).sum()


def gelu_energy(h):
    """∫ t Φ(t) dt from −∞ to h by a quadrature, which checks the closed form to about 1e-7."""
    nodes = torch.linspace(0, 1, 20001, dtype=h.dtype)
    t = -12 + (h[..., None] + 12) * nodes
    return torch.trapezoid(torch.nn.functional.gelu(t), nodes, dim=-1) * (h + 12)


@pytest.mark.parametrize(
    ("activation", "energy", "tolerance"),
    [("relu", lambda h: 0.5 * h.relu().square(), 1e-9), ("gelu", gelu_energy, 1e-6)],
)
def test_the_normalized_model_is_the_definition(small_config, activation, energy, tolerance):
    options = {"attention_qk_norm": True, "hopfield_norm": True, "hopfield_activation": activation}
    config = EnergyTransformerConfig(**small_config.to_dict() | options)
    layer = EnergyTransformerForMaskedImageModeling(config).double().energy_transformer.layers[0]
    x = torch.randn(2, 5, 32, dtype=torch.float64)
    g = layer.norm(x).detach().requires_grad_()
    beta = torch.full((3,), layer.attention.beta, dtype=torch.float64)
    total = definition(g, layer.attention.Wq, layer.attention.Wk, beta, layer.hopfield.W, energy)
    (gradient,) = torch.autograd.grad(total, g)
    found = layer(x, 1, record=Record(energies=True))
    torch.testing.assert_close(found.state, x - 0.5 * gradient, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found.energy[:, 0].sum(), total, rtol=tolerance, atol=tolerance)


class ByAutograd(QuarticMemories):
    """The same energy, whose pull is not overridden."""


class InClosedForm(QuarticMemories):
    def pull(self, h, context):
        return h.relu().pow(3)


def block_of(cls, **options):
    torch.manual_seed(0)
    terms = {"attention": EnergyAttention(12, 3, scale=0.5), "own": cls(12)}
    return EnergyBlock(terms, EnergyLayerNorm(12), Update(0.3), **options).double()


@pytest.mark.parametrize("descent_gradient", ["normalized", "state"])
@pytest.mark.parametrize("way", ["plain", "no_grad", "inference_mode", "fullgraph", "checkpointed", "second order"])
def test_the_automatic_pull_serves_everywhere(way, descent_gradient):
    """As the closed form does, in values, gradients and second derivatives."""
    results = []
    for cls in (ByAutograd, InClosedForm):
        block = block_of(cls, descent_gradient=descent_gradient)
        x = torch.randn(2, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        if way in ("no_grad", "inference_mode"):
            with torch.no_grad() if way == "no_grad" else torch.inference_mode():
                results.append([block(x, 4).state])
            continue
        block.gradient_checkpointing = way == "checkpointed"
        block.attention.attn_implementation = "eager" if way == "second order" else "auto"
        x.requires_grad_()
        function = torch.compile(block, fullgraph=True, backend="aot_eager") if way == "fullgraph" else block
        state = function(x, 4).state
        inputs = [x, *block.parameters()]
        gradients = torch.autograd.grad(state.square().sum(), inputs, create_graph=way == "second order")
        if way == "second order":
            gradients = torch.autograd.grad(gradients[0].square().sum(), inputs)
        results.append([state, *gradients])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


class Halved(BaseModernHopfield):
    def pull_and_weights(self, h, context, **constants):
        return 0.5 * h.relu(), None

    def pull(self, h, context, **constants):
        return 0.5 * h.relu()


@pytest.mark.parametrize("beta", [1.3, -0.7])
@pytest.mark.parametrize("learnable", [False, True])
def test_the_pull_of_normalized_memories_in_few_passes(beta, learnable):
    """It is the Jacobian of the normalization applied to the pull, with its derivatives, also behind torch.func."""
    term = BaseModernHopfield(6, 9, scale=0.5, beta=beta, learnable_beta=learnable, norm=True).double()
    if learnable:
        torch.nn.init.constant_(term.beta, beta)
    h = torch.randn(3, 9, dtype=torch.float64, requires_grad=True)

    def pull(h, _, by=BaseModernHopfield.pull_of_raw):
        return by(term, h, EnergyContext(), **term.constants())

    learned = term.beta if learnable else h.new_tensor(beta)
    torch.testing.assert_close(pull(h, None), pull(h, None, EnergyTerm.pull_of_raw), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(torch.func.vmap(lambda h: pull(h, None))(h), pull(h, None))
    for function in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert function(pull, (h, learned), check_batched_grad=True)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("way", ["a subclass", "patched class", "patched object", "pull_and_weights alone"])
def test_what_stands_in_place_of_the_relu_counts_with_gradients_too(way, norm, monkeypatch):
    """A block applies the ReLU in place where it is the pull, and nowhere else."""
    torch.manual_seed(0)
    alone = type("Own", (BaseModernHopfield,), {"pull_and_weights": Halved.pull_and_weights})
    cls = {"a subclass": Halved, "pull_and_weights alone": alone}.get(way, BaseModernHopfield)
    memories = cls(12, 20, scale=0.5, norm=norm)
    block = EnergyBlock({"hopfield": memories}, EnergyLayerNorm(12), Update(0.3))
    if way == "patched class":
        monkeypatch.setattr(BaseModernHopfield, "pull", Halved.pull)
    if way == "patched object":
        memories.pull = lambda h, context, **constants: 0.5 * h.relu()
    record = Record(attentions=way == "pull_and_weights alone")
    x = torch.randn(2, 5, 12)
    with torch.no_grad():
        expected = block(x, 2, record=record).state
    torch.testing.assert_close(block(x, 2, record=record).state, expected)


@pytest.mark.parametrize("norm", [False, True])
def test_gradients_of_a_batch_at_once_and_of_frozen_memories(norm):
    torch.manual_seed(0)
    memories = BaseModernHopfield(6, 9, scale=0.5, norm=norm)
    terms = {"attention": EnergyAttention(6, 2, scale=0.5, qk_norm=norm), "hopfield": memories}
    block, x = EnergyBlock(terms, EnergyLayerNorm(6), Update(0.3)).double(), torch.randn(3, 6, dtype=torch.float64)
    looped, at_once = (
        torch.autograd.functional.jacobian(lambda x: block(x, 2).state, x, vectorize=way) for way in (False, True)
    )
    torch.testing.assert_close(at_once, looped)
    (expected,) = torch.autograd.grad(block(x.requires_grad_(), 2).state.sum(), x)
    block.requires_grad_(False)
    torch.testing.assert_close(torch.autograd.grad(block(x, 2).state.sum(), x)[0], expected)


class Anchored(QuarticMemories):
    """Draws the tokens to places that the call gives, `anchors` (B, N, memories)."""

    def potential(self, h, context):
        return -0.5 * (h - context.data["anchors"]).square().sum(-1)


def test_a_call_gives_a_term_its_data(small_config):
    register_energy_term("anchored")(Anchored)
    try:
        model = with_terms(small_config, "hopfield", {"name": "anchored", "memories": 5})
        anchors = torch.randn(8, 25, 5)
        found = [
            model(images(), bool_masked_pos=some_mask(), term_data={"anchors": a}).loss for a in (anchors, -anchors)
        ]
        assert found[0] != found[1]
        with pytest.raises(KeyError, match="anchors"):
            run(model)
    finally:
        del ENERGY_TERMS["anchored"]


def test_the_same_name_twice_with_options(small_config):
    model = with_terms(small_config, "attention", "hopfield", {"name": "hopfield", "hidden_dim": 7})
    layer = model.energy_transformer.layers[0]
    assert layer.hopfield.W.shape == (32, 48) and layer.hopfield_2.W.shape == (32, 7)
    parts = model(images(), bool_masked_pos=some_mask(), output_energy_parts=True).energy_parts
    total = parts.attention + parts.hopfield + parts.others["hopfield_2"]
    torch.testing.assert_close(total, parts.tokens.sum(-1))


def test_a_checkpoint_opens_where_the_term_is_registered_and_only_there(small_config, tmp_path):
    model = with_terms(small_config, "attention", {"name": "quartic", "memories": 9})
    model.save_pretrained(tmp_path)
    again = AutoModelForMaskedImageModeling.from_pretrained(tmp_path)
    assert torch.equal(run(again).reconstruction, run(model).reconstruction)
    del ENERGY_TERMS["quartic"]
    try:
        with pytest.raises(ValueError, match=r"'quartic', which is not registered.*register_energy_term\('quartic'\)"):
            AutoModelForMaskedImageModeling.from_pretrained(tmp_path)
    finally:
        ENERGY_TERMS["quartic"] = QuarticMemories


def test_a_trained_model_gets_a_new_term(small_model, tmp_path):
    """Its weights are those of `reset_parameters`, and not what the memory held."""
    small_model.save_pretrained(tmp_path)
    terms = ["attention", "hopfield", {"name": "quartic", "memories": 5000}]
    model = AutoModelForMaskedImageModeling.from_pretrained(tmp_path, energy_terms=terms)
    layer = model.energy_transformer.layers[0]
    assert torch.equal(layer.hopfield.W, small_model.energy_transformer.layers[0].hopfield.W)
    assert layer.quartic.W.shape == (32, 5000) and layer.quartic.W.std().item() == pytest.approx(0.1, rel=0.02)


OPEN = """
import importlib.util, sys
from safetensors.torch import load_file
from transformers import AutoModelForMaskedImageModeling
assert importlib.util.find_spec("energy_transformer") is None and importlib.util.find_spec("quartic_memories") is None
example = load_file(sys.argv[2])
for folder in (sys.argv[1], sys.argv[3]):
    model = AutoModelForMaskedImageModeling.from_pretrained(folder, trust_remote_code=True)
    outputs = model(example["images"], bool_masked_pos=example["mask"], output_energies=True)
    print((outputs.reconstruction - example["reconstruction"]).abs().max().item())
    model.save_pretrained(sys.argv[3])
"""


def test_the_term_travels_with_its_checkpoint(small_config, tmp_path):
    """To a process without this package and without the user's file; and from there, saved once more, on again."""
    model = with_terms(small_config, "attention", "hopfield", {"name": "quartic", "memories": 9})
    model.save_pretrained(tmp_path / "model")
    example = {"images": images(), "mask": some_mask(), "reconstruction": run(model).reconstruction}
    save_file(example, tmp_path / "example.safetensors")
    python = build_minimal_environment(sys.executable, tmp_path / "environment")
    folders = tmp_path / "model", tmp_path / "example.safetensors", tmp_path / "again"
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run([python, "-c", OPEN, *folders], capture_output=True, text=True, cwd=tmp_path, env=bare)
    assert found.returncode == 0, found.stderr
    assert max(map(float, found.stdout.split())) < 1e-5


def test_a_term_of_a_program_cannot_travel(small_config, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    cls = type("OfAProgram", (QuarticMemories,), {"__module__": "__main__"})
    register_energy_term("of_a_program")(cls)
    try:
        with_terms(small_config, "attention", "of_a_program").save_pretrained(tmp_path)
    finally:
        del ENERGY_TERMS["of_a_program"]
    assert (
        "the energy term 'of_a_program' is defined in __main__, whose code cannot be saved beside the model"
        in caplog.text
    )


def test_what_cannot_be_registered():
    with pytest.raises(ValueError, match="'hopfield' is BaseModernHopfield already"):
        register_energy_term("hopfield")(QuarticMemories)
    with pytest.raises(TypeError, match="takes a subclass of EnergyTerm"):
        register_energy_term("linear")(torch.nn.Linear)
    register_energy_term("quartic")(copy.copy(QuarticMemories))  # the same class once more, as a notebook does
    with pytest.raises(ValueError, match="needs at least one term"):
        EnergyBlock({}, EnergyLayerNorm(4), Update(0.1))
    block = EnergyBlock({"own": EnergyTerm()}, EnergyLayerNorm(4), Update(0.1))
    with pytest.raises(NotImplementedError, match="EnergyTerm has to define projection"):
        block(torch.zeros(1, 2, 4), 1)


class Cubic(BaseModernHopfield):
    """Another potential than that of its parent."""

    def potential(self, h, context):
        return h.relu().pow(3).sum(-1)


def test_a_potential_of_its_own_has_no_pull_of_its_parent():
    torch.manual_seed(0)
    term, g = Cubic(12, 20, scale=0.5).double(), torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(term.energy(g), g)
    torch.testing.assert_close(term(g), expected, rtol=1e-11, atol=1e-12)


def test_a_subclass_and_the_options_are_what_is_built(small_config):
    register_energy_term("cubic")(Cubic)
    try:
        small_config.learnable_beta = True
        terms = [{"name": "attention", "beta": 0.7, "scale": 5.0}, {"name": "cubic", "scale": 3.0}]
        terms.append({"name": "hopfield", "activation": "softmax", "beta": 0.3})
        layer = with_terms(small_config, *terms).energy_transformer.layers[0]
    finally:
        del ENERGY_TERMS["cubic"]
    assert type(layer.cubic) is Cubic and type(layer.hopfield) is SoftmaxModernHopfield
    assert (layer.attention.beta == 0.7).all() and layer.hopfield.beta == torch.tensor(0.3)
    assert layer.attention.Wq.std().item() == pytest.approx(5, rel=0.1)
    assert layer.cubic.W.std().item() == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize("name", ["norm", "update", "forward", "a.b", "config"])
def test_names_that_no_submodule_can_have(name):
    with pytest.raises(ValueError, match="an energy term is a submodule of its name"):
        register_energy_term(name)(QuarticMemories)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (["hopfield", "hopfield", "hopfield_2"], "two terms would have the same name"),
        ([{"name": "hopfield", "beta": torch.ones(2)}], "must be what JSON can hold"),
        ([{"hidden_dim": 3}], "stands under 'name'"),
        ([], "at least one term"),
    ],
)
def test_terms_that_cannot_be(terms, message):
    with pytest.raises(Exception, match=message):
        EnergyTransformerConfig(energy_terms=terms)


def test_a_file_of_the_name_of_ours_and_what_it_imports(small_config, tmp_path, caplog, monkeypatch):
    """It does not overwrite ours, and what it needs beside torch is named."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    source = Path(quartic_memories.__file__).read_text().replace('"quartic"', '"of_a_file"')
    source = source.replace(
        "from energy_transformer import EnergyTerm", "import numpy\nfrom energy_transformer import Update, EnergyTerm"
    )
    folder = tmp_path / "user"
    folder.mkdir()
    (folder / "updates.py").write_text(source)
    monkeypatch.syspath_prepend(folder)
    importlib.import_module("updates")
    try:
        with_terms(small_config, "attention", "of_a_file").save_pretrained(tmp_path / "model")
    finally:
        del ENERGY_TERMS["of_a_file"], sys.modules["updates"]
    copied = (tmp_path / "model" / "term_updates.py").read_text()
    assert "from .updates import Update\nfrom .energies import EnergyTerm\n" in copied
    assert "class FlexibleUpdate" in (tmp_path / "model" / "updates.py").read_text()
    assert "needs `import numpy`, which has to be there as well" in caplog.text


DEMO_TERMS = 'config_overrides=energy_terms=["attention",{"name":"quartic","memories":256}]'


def test_a_new_energy_learns_by_the_demo_recipe(tmp_path):
    """In a tenth of its steps to below the mean color; stopped, resumed, compiled and loaded again."""
    words = [f"--{DEMO_TERMS},hidden_size=64,head_dim=32,num_steps=3", "--max_train_samples=3000"]
    words += ["--max_eval_samples=128", "--per_device_train_batch_size=16", "--logging_steps=100"]
    whole = build(
        tmp_path / "whole", *words, "--max_train_steps=800", "--checkpointing_steps=640", "--warmup_ratio=0.04"
    ).run()
    assert whole["eval_ratio_to_mean_color"] < 0.9
    (tmp_path / "resumed").mkdir()
    shutil.copytree(tmp_path / "whole" / "checkpoint-640", tmp_path / "resumed" / "checkpoint-640")
    build(
        tmp_path / "resumed", *words, "--max_train_steps=800", "--warmup_ratio=0.04", "--resume_from_checkpoint=latest"
    ).run()
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "resumed")]
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name]), name
    model = AutoModelForMaskedImageModeling.from_pretrained(tmp_path / "whole").eval()
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(pixels).reconstruction
    torch.testing.assert_close(compiled, model(pixels).reconstruction, rtol=1e-4, atol=1e-5)
