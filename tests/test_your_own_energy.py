"""The page on energies of one's own: its code runs, and every pull is the derivative of its potential."""

import pytest
import torch
from documents import ROOT, blocks

from energy_transformer import EnergyContext, EnergyTransformerConfig, EnergyTransformerModel
from energy_transformer.energies import ENERGY_TERMS, EnergyTerm

PAGE = ROOT / "docs" / "your_own_energy.md"
TERMS = {
    "triangles": {"memories": 5},
    "causal_attention": {"n_heads": 2},
    "normalized_attention": {"n_heads": 2},
    "sparse_memories": {"memories": 7},
}


@pytest.fixture(scope="module")
def names():
    """What the page defines; its names are not registered for the tests after this file."""
    before = dict(ENERGY_TERMS)
    found = {}
    for code in blocks(PAGE, "python"):
        exec(code, found)
    yield found
    ENERGY_TERMS.clear()
    ENERGY_TERMS.update(before)


def make(name):
    torch.manual_seed(0)
    term = ENERGY_TERMS[name](8, **TERMS[name]).double()
    for parameter in term.parameters():
        parameter.data.mul_(1 if parameter.abs().max() > 0.1 else 100)
    return term, torch.randn(2, 6, 8, dtype=torch.float64)


def test_the_page_shows_its_shapes(names):
    assert names["outputs"].energy_parts.others["triangles"].shape == (2, 13)
    parts = names["outputs"].energy_parts
    total = parts.attention + parts.hopfield + parts.others["triangles"]
    torch.testing.assert_close(total, parts.tokens.sum(-1))


@pytest.mark.parametrize("name", TERMS)
def test_pulls_are_derivatives_of_the_potentials(names, name):
    term, g = make(name)
    context, h, constants = EnergyContext(), term.project(g).detach().requires_grad_(), term.constants()
    (expected,) = torch.autograd.grad(term.potential(h, context, **constants).sum(), h)
    torch.testing.assert_close(term.pull(h, context, **constants), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(EnergyTerm.pull(term, h, context, **constants), expected, rtol=1e-10, atol=1e-12)
    g.requires_grad_()
    (expected,) = torch.autograd.grad(term.energy(g), g)
    torch.testing.assert_close(term(g), expected, rtol=1e-10, atol=1e-12)


def test_causal_attention_looks_back_only(names):
    term, g = make("causal_attention")
    weights = term.attention_weights(term.project(g), EnergyContext(), **term.constants())
    assert (weights.triu(1) == 0).all() and (weights.tril() > 0).sum() == weights[..., 0, 0].numel() * 21
    changed = g.clone()
    changed[:, -1] += 1
    energies = term.token_energies(torch.stack([g, changed]))
    torch.testing.assert_close(energies[0, :, :-1], energies[1, :, :-1], rtol=0, atol=0)
    assert (energies[0, :, -1] != energies[1, :, -1]).all()


def test_sparsemax_is_a_sparse_distribution(names):
    h = 3 * torch.randn(50, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p = names["sparsemax"](h)
    torch.testing.assert_close(p.sum(-1), torch.ones(50, dtype=torch.float64))
    assert (p >= 0).all() and (p == 0).any(-1).all()
    # nothing nearer to h among many distributions
    others = torch.rand(2000, 9, dtype=torch.float64).pow(4)
    others /= others.sum(-1, keepdim=True)
    assert (torch.cdist(h, others).min(-1).values >= (h - p).norm(dim=-1) - 1e-12).all()


@pytest.mark.parametrize("name", ["causal_attention", "normalized_attention"])
def test_recording_the_attention_changes_nothing(names, name):
    """The weights that are recorded are those of the term, and the descent is the same with and without them."""
    torch.manual_seed(0)
    config = EnergyTransformerConfig(
        image_size=8, patch_size=4, hidden_size=12, num_attention_heads=3, head_dim=4, intermediate_size=20,
        initialization="scaled", num_steps=4, energy_terms=[name, "hopfield"],
    )  # fmt: skip
    model, pixels = EnergyTransformerModel(config).double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    recorded = model(pixels, output_attentions=True)
    torch.testing.assert_close(recorded.last_hidden_state, model(pixels).last_hidden_state, rtol=1e-11, atol=1e-12)
    above = recorded.attentions[0].triu(1).abs().max()
    assert (above == 0) == (name == "causal_attention")
