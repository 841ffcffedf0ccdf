"""Masks, score bias and causality of the attention, the same in every backend, and tokens in place of images."""

import pytest
import torch

from energy_transformer import (
    EnergyAttention,
    EnergyContext,
    EnergyTransformer,
    EnergyTransformerConfig,
    EnergyTransformerForImageClassification,
    EnergyTransformerModel,
)


def attention(implementation="eager", **options):
    torch.manual_seed(0)
    made = EnergyAttention(12, 3, scale=0.5, attn_implementation=implementation, **options).double()
    made.beta.data.mul_(torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64))
    return made, torch.randn(2, 9, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def by_the_definition(module, g, allowed, bias):
    """−Σ over heads and queries of 1/β log Σ over allowed keys of exp(β q·k + bias), with loops."""
    q, k = (torch.einsum("bnd,hyd->bhny", g, weight) for weight in (module.Wq, module.Wk))
    total = g.new_zeros(())
    for image in range(g.shape[0]):
        for head in range(module.n_heads):
            for row in range(g.shape[1]):
                scores = [
                    module.beta[head] * q[image, head, row] @ k[image, head, column] + bias[image, head, row, column]
                    for column in range(g.shape[1])
                    if allowed[image, row, column]
                ]
                if scores:
                    total = total - torch.stack(scores).logsumexp(0) / module.beta[head]
    return total


@pytest.mark.parametrize("implementation", ["eager", "chunked"])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("images", [1, 2])
def test_the_definition_with_everything_at_once(implementation, heads, images, monkeypatch):
    """The bias stands outside of beta; its gradient and that of beta are those of the definition too."""
    monkeypatch.setattr("energy_transformer.attention_backends._CPU_BLOCK", 64)  # several blocks of rows
    monkeypatch.setattr("energy_transformer.attention_backends._LEAST_ROWS", 2)
    module, g = attention(implementation)
    generator = torch.Generator().manual_seed(2)
    bias = torch.randn(images, heads, 9, 9, dtype=torch.float64, generator=generator, requires_grad=True)
    pairs = torch.rand(2, 9, 9, generator=generator) < 0.8
    tokens = torch.rand(2, 9, generator=generator) < 0.9
    context = EnergyContext(tokens, pairs, bias, causal=True, attend_to_self=False)
    allowed = pairs & tokens[:, :, None] & tokens[:, None] & torch.ones(9, 9, dtype=torch.bool).tril(-1)
    g.requires_grad_()
    expected = by_the_definition(module, g, allowed, bias.expand(2, 3, 9, 9))
    torch.testing.assert_close(module.energy(g, context), expected, rtol=1e-12, atol=1e-12)
    inputs = [g, bias, *module.parameters()]
    gradients = torch.autograd.grad(expected, inputs, create_graph=True)
    for found, gradient in zip(torch.autograd.grad(module.energy(g, context), inputs), gradients, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(module(g, context), gradients[0], rtol=1e-10, atol=1e-12)
    upstream = torch.randn_like(g)
    expected = torch.autograd.grad((gradients[0] * upstream).sum(), inputs)
    for found, second in zip(torch.autograd.grad((module(g, context) * upstream).sum(), inputs), expected, strict=True):
        torch.testing.assert_close(found, second, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("shape", [(9, 9), (1, 9, 9), (3, 9, 9), (2, 1, 9, 9)])
def test_every_shape_of_a_bias(shape):
    results = []
    for implementation in ("eager", "chunked"):
        module, g = attention(implementation)
        bias = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
        pull = module(g, EnergyContext(bias=bias))
        results.append([pull, *torch.autograd.grad(pull.square().sum(), [bias, module.Wq])])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_the_block_and_the_model_take_them():
    torch.manual_seed(0)
    block = EnergyTransformer(12, 20, 3, norm="energy_layer_norm", initialization="scaled").double()
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    bias = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    padding = torch.ones(2, 9, dtype=torch.bool)
    padding[1, 5:] = False
    found = block(x, attention_mask=padding, attention_bias=bias, is_causal=True)
    short = block(x[1:, :5], attention_bias=bias[1:, :, :5, :5], is_causal=True)
    torch.testing.assert_close(found[1:, :5], short, rtol=1e-11, atol=1e-12)
    assert torch.equal(found[1, 5:], x[1, 5:])
    descent = block.descend(x, 3, attention_bias=bias)
    assert len(descent.states) == 4 and descent.energies["mha"].shape == (2, 4, 9)
    torch.testing.assert_close(descent.energy, sum(e.sum(-1) for e in descent.energies.values()))

    config = EnergyTransformerConfig(
        image_size=8, patch_size=4, hidden_size=12, num_attention_heads=3, head_dim=4, intermediate_size=20,
        initialization="scaled", num_steps=4,
    )  # fmt: skip
    model = EnergyTransformerModel(config).double()
    found = model(inputs_embeds=x, attention_bias=bias, output_hidden_states=True)
    assert torch.equal(found.hidden_states[0], x) and found.last_hidden_state.shape == x.shape
    assert not torch.allclose(found.last_hidden_state, model(inputs_embeds=x).last_hidden_state)
    pixels = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    embedded = model(inputs_embeds=model.embeddings(pixels)).last_hidden_state
    assert torch.equal(embedded, model(pixels).last_hidden_state)
    classifier = EnergyTransformerForImageClassification(config).double()
    assert classifier(inputs_embeds=x).logits.shape == (2, 2)


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (EnergyContext(tokens=torch.ones(2, 9)), "tokens must be a boolean tensor, True to attend, got torch.float32"),
        (EnergyContext(tokens=torch.ones(2, 8, dtype=torch.bool)), r"tokens must have shape \(2, 9\), got \(2, 8\)"),
        (EnergyContext(pairs=torch.ones(2, 9, dtype=torch.bool)), r"pairs must have shape \(2, 9, 9\), got \(2, 9\)"),
        (EnergyContext(bias=torch.ones(2, 3, 9, 9, dtype=torch.bool)), "bias must be a floating point tensor"),
        (EnergyContext(bias=torch.ones(2, 3, 1, 9)), r"bias must have shape .* got \(2, 3, 1, 9\)"),
        (EnergyContext(bias=torch.ones(9)), r"bias must have shape .* got \(9,\)"),
    ],
)
def test_what_does_not_fit_is_named(context, message):
    block = EnergyTransformer(12, 20, 3)
    with pytest.raises(ValueError, match=message):
        super(EnergyTransformer, block).forward(torch.randn(2, 9, 12), 1, context)


def test_wrong_tokens_are_named():
    block = EnergyTransformer(12, 20, 3, context=9)
    with pytest.raises(ValueError, match=r"x must have shape \(..., N, dim\) with dim=12, got \(2, 9, 11\)"):
        block(torch.randn(2, 9, 11))
    with pytest.raises(ValueError, match="as many tokens as there are positions, 9, got 8"):
        block(torch.randn(2, 8, 12))
    model = EnergyTransformerModel(EnergyTransformerConfig(image_size=8, patch_size=4, hidden_size=12))
    with pytest.raises(ValueError, match=r"inputs_embeds must have shape \(B, N, 12\), got \(2, 9, 11\)"):
        model(inputs_embeds=torch.randn(2, 9, 11))
    for wrong in ({}, {"pixel_values": torch.randn(1, 3, 8, 8), "inputs_embeds": torch.randn(1, 9, 12)}):
        with pytest.raises(ValueError, match="exactly one of pixel_values and inputs_embeds"):
            model(**wrong)


@pytest.mark.parametrize("implementation", ["eager", "chunked"])
def test_edges(implementation):
    """No tokens at all; a beta that was learned to zero; scores of float16 beyond 65504."""
    block = EnergyTransformer(12, 20, 3, attn_implementation=implementation, initialization="scaled")
    assert block(torch.zeros(2, 0, 12)).shape == (2, 0, 12)
    block.mha.beta.data.zero_()
    block.hopfield.beta.data.zero_()
    x = torch.randn(2, 5, 12)
    block(x).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in block.parameters())
    module, g = EnergyAttention(8, 1, 1.0, 30.0, attn_implementation=implementation), torch.randn(1, 6, 8)
    expected = module(g)
    found = module.half()(g.half())
    assert found.isfinite().all() and module.energy(g.half()).isfinite()
    assert (found.float() - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("value", [255, 2, -1, -10000, 1.0])
def test_masks_of_other_values_are_refused(value):
    model = EnergyTransformerModel(EnergyTransformerConfig(image_size=8, patch_size=4, hidden_size=12))
    mask = torch.ones(1, 5, dtype=torch.float32 if isinstance(value, float) else torch.int64)
    mask[0, 2] = value
    with pytest.raises(ValueError, match="attention_mask must hold booleans, or the integers 0 and 1, got"):
        model(torch.randn(1, 3, 8, 8), attention_mask=mask)


def test_the_block_takes_exact_shapes_alone():
    """A mask of pairs for as many images as tokens is no padding."""
    block = EnergyTransformer(12, 20, 3)
    x = torch.randn(5, 5, 12)
    for wrong in (torch.ones(5, dtype=torch.bool), torch.ones(1, 5, dtype=torch.bool), torch.ones(5, 5, 5, 5)):
        with pytest.raises(ValueError, match="attention_mask must"):
            block(x, attention_mask=wrong)
    with pytest.raises(ValueError, match=r"attention_bias must have shape \(5, 1, 5, 5\) or \(5, 3, 5, 5\)"):
        block(x, attention_bias=torch.zeros(5, 5, 5))
    assert torch.equal(block(x, attention_mask=torch.ones(5, 5).long().numpy()), block(x))


def test_padding_of_nan_poisons_no_gradient():
    torch.manual_seed(0)
    block = EnergyTransformer(12, 20, 3, norm="energy_layer_norm", initialization="scaled")
    x, padding = torch.randn(2, 5, 12), torch.ones(2, 5, dtype=torch.bool)
    x[0, 3:], padding[0, 3:] = torch.nan, False
    block.descend(x, 3, attention_mask=padding).normalized[padding].square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in block.parameters())


def test_half_precision_saving_and_the_step_size(tmp_path):
    for dtype in (torch.bfloat16, torch.float16):
        assert EnergyTransformer(12, 20, 3).to(dtype)(torch.randn(2, 5, 12, dtype=dtype)).isfinite().all()
    x = torch.randn(2, 5, 12)
    for beta in (torch.tensor(0.4), torch.tensor([0.1, 0.2, 0.3]), 0.7, None):
        block = EnergyTransformer(12, 20, 3, beta=beta, initialization="scaled")
        block.save_pretrained(tmp_path)
        assert torch.equal(EnergyTransformer.from_pretrained(tmp_path)(x), block(x))
    before = block(x, 1)
    block.alpha = 0.05
    torch.testing.assert_close(block(x, 1) - x, 0.5 * (before - x))
    with pytest.raises(ValueError, match=r"norm=.* cannot be saved"):
        EnergyTransformer(12, 20, 3, norm=torch.nn.RMSNorm).save_pretrained(tmp_path)
