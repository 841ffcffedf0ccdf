"""What holds for every shape, weight and option, in float64, and what does not, by counterexample."""

from dataclasses import dataclass
from functools import partial

import pytest
import reference_numbers
import torch
from blocks import descent_step, energy_gradient, energy_parts, token_energies
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from energy_transformer import (
    BaseModernHopfield,
    EnergyAttention,
    EnergyContext,
    EnergyLayerNorm,
    EnergyTransformerConfig,
    EnergyTransformerForMaskedImageModeling,
    Record,
    SoftmaxModernHopfield,
)
from energy_transformer.energies import LayerNorm

reproducible = settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)


def padding_mask(tokens: torch.Tensor) -> torch.Tensor:
    """(..., N), False for padding, to the (..., N, N) in which no token attends to padding and padding to none."""
    return tokens[..., :, None] & tokens[..., None, :]


@dataclass
class Case:
    """A block, its tokens x (B, N, D), and a mask for them."""

    norm: torch.nn.Module
    attention: EnergyAttention
    hopfield: BaseModernHopfield
    x: torch.Tensor
    mask: torch.Tensor | None = None
    tokens: torch.Tensor | None = None

    @property
    def block(self):
        return self.norm, self.attention, self.hopfield

    @property
    def context(self):
        return EnergyContext(self.tokens, self.mask)

    def energies(self, x):
        """(B,)."""
        return token_energies(self.norm(x), self.attention, self.hopfield, self.context).sum(-1)

    def descend(self, x, steps=3, step_size=0.1):
        for _ in range(steps):
            x = descent_step(x, *self.block, step_size, self.context)
        return x


BETAS = st.floats(0.2, 3.0)
SIGNED_BETAS = BETAS | st.floats(-3.0, -0.2)


@st.composite
def cases(draw, masks=("none", "pairs", "padding"), betas=SIGNED_BETAS, most=(7, 3, 5, 6, 3, 6)):
    """Every kind of attention, Hopfield network, energy layer norm and mask; random shapes and weights."""
    dim, heads, head_dim, memories = (draw(st.integers(1, largest)) for largest in most[:4])
    batch, tokens = (draw(st.integers(1, largest)) for largest in most[4:])
    torch.manual_seed(draw(st.integers(0, 2**31)))
    attention = EnergyAttention(
        dim,
        heads,
        torch.tensor([draw(betas) for _ in range(heads)]),
        scale=draw(st.floats(0.1, 1.5)),
        head_dim=head_dim,
        use_bias=draw(st.sampled_from([False, True, "shared"])),
        learnable_beta=draw(st.booleans()),
        attend_to_self=draw(st.booleans()),
        attn_implementation=draw(st.sampled_from(["auto", "eager"])),
    )
    hopfield = draw(st.sampled_from([BaseModernHopfield, SoftmaxModernHopfield]))(
        dim,
        memories,
        beta=draw(betas),
        scale=draw(st.floats(0.1, 1.5)),
        bias=draw(st.sampled_from([False, True, "before_beta"])),
        learnable_beta=draw(st.booleans()),
    )
    norm = EnergyLayerNorm(dim, eps=1e-3, regularization=draw(st.sampled_from([0.0, 0.2])))
    norm.gamma.data.fill_(draw(st.floats(0.1, 3.0)))
    for parameter in (norm.delta, attention.bq, attention.bk, hopfield.bias):
        if parameter is not None:
            parameter.data.normal_()
    x = torch.randn(batch, tokens, dim, dtype=torch.float64) * draw(st.floats(0.1, 10.0))
    case = Case(norm.double(), attention.double(), hopfield.double(), x)
    kind = draw(st.sampled_from(masks))
    if kind == "pairs":
        case.mask = torch.rand(batch, tokens, tokens) < 0.7
    elif kind == "padding":
        case.tokens = torch.rand(batch, tokens) < 0.7
        case.mask = padding_mask(case.tokens)
    return case


assert_close = partial(reference_numbers.assert_close, floor=1e-6)


@given(cases())
@reproducible
def test_the_closed_form_is_the_gradient_of_the_energy(case):
    g = case.x.clone().requires_grad_()
    arguments = (case.attention, case.hopfield, case.context)
    (expected,) = torch.autograd.grad(token_energies(g, *arguments).sum(), g)
    assert_close(energy_gradient(g, *arguments), expected)


@given(cases())
@reproducible
def test_the_energy_never_rises_when_the_step_is_small_enough(case):
    """For every option that the theory covers: `docs/guarantees.md`; the tests below show why not for the others."""
    step_size = 0.1
    while step_size > 1e-9:
        states = [case.x]
        for _ in range(4):
            states.append(case.descend(states[-1], 1, step_size))
        energies = torch.stack([case.energies(state) for state in states])
        if (energies.diff(dim=0) <= 1e-13 * energies.abs().max()).all():
            return
        step_size /= 4
    raise AssertionError(f"energies rise at a step size of {4 * step_size}: {energies}")


@given(cases())
@reproducible
def test_the_slope_along_a_step_is_never_positive(case):
    """−dᵀ J d ≤ 0 for each token, with J = ∂g/∂x: the theory behind the property above. Their sum is the slope of E."""
    token_slopes, slope, size = slopes(case)
    assert (token_slopes <= 1e-12 * size).all()
    assert ((token_slopes.sum(-1) - slope).abs() <= 1e-10 * size.sum(-1)).all()


@torch.no_grad()
def slopes(case):
    """−dᵀ J d of each token (B, N), the derivative of the energies along a step (B,), and what it is measured by."""
    gradient = energy_gradient(case.norm(case.x), case.attention, case.hopfield, case.context)
    _, change = torch.func.jvp(case.norm, (case.x,), (-gradient,))
    _, slope = torch.func.jvp(case.energies, (case.x,), (-gradient,))
    return (gradient * change).sum(-1), slope, (gradient.abs() * change.abs()).sum(-1)


def test_with_a_gain_for_each_channel_the_slope_of_some_tokens_is_positive():
    """So the property above tells the two norms apart: of 200 random cases it holds for no more than 180."""
    torch.manual_seed(0)
    fulfilled = 0
    for _ in range(200):
        norm = LayerNorm(4).double()
        norm.weight.data.uniform_(0.1, 3.0)
        attention, hopfield = EnergyAttention(4, 2, scale=0.5).double(), BaseModernHopfield(4, 6, scale=0.5).double()
        token_slopes, _, size = slopes(Case(norm, attention, hopfield, torch.randn(2, 3, 4, dtype=torch.float64)))
        fulfilled += (token_slopes <= 1e-12 * size).all().item()
    assert fulfilled <= 180


@given(cases(), st.data())
@reproducible
def test_permuting_the_tokens_permutes_the_result(case, data):
    order = torch.tensor(data.draw(st.permutations(range(case.x.shape[1]))))
    expected, energies = case.descend(case.x)[:, order], case.energies(case.x)
    if case.mask is not None:
        case.mask = case.mask[:, order][:, :, order]
    if case.tokens is not None:
        case.tokens = case.tokens[:, order]
    assert_close(case.descend(case.x[:, order]), expected)
    assert_close(case.energies(case.x[:, order]), energies)


@given(cases())
@reproducible
def test_an_image_does_not_depend_on_its_batch(case):
    expected, energies = case.descend(case.x), case.energies(case.x)
    mask, tokens = case.mask, case.tokens
    for image in range(len(case.x)):
        only = slice(image, image + 1)
        case.mask, case.tokens = (None if m is None else m[only] for m in (mask, tokens))
        assert_close(case.descend(case.x[only]), expected[only])
        assert_close(case.energies(case.x[only]), energies[only])


@given(cases(masks=("none",)), st.integers(1, 4), st.floats(0.1, 100.0) | st.sampled_from([torch.nan, torch.inf]))
@reproducible
def test_padding_changes_nothing(case, extra, size):
    """Whatever it holds: large values, infinity or NaN."""
    expected, energies = case.descend(case.x), case.energies(case.x)
    batch, count, dim = case.x.shape
    padding = torch.randn(batch, extra, dim, dtype=torch.float64) * size
    case.tokens = torch.ones(batch, count + extra, dtype=torch.bool)
    case.tokens[:, count:] = False
    case.mask = padding_mask(case.tokens)
    padded = torch.cat([case.x, padding], 1)
    result = case.descend(padded)
    assert_close(result[:, :count], expected)
    torch.testing.assert_close(result[:, count:], padding, rtol=0, atol=0, equal_nan=True)
    assert_close(case.energies(padded), energies)


@given(cases(masks=("none",)))
@reproducible
def test_leading_axes_are_free(case):
    """Unbatched, one batch axis and two of them are the same; so is vmap."""
    expected = case.descend(case.x)
    assert_close(torch.stack([case.descend(image) for image in case.x]), expected)
    assert_close(case.descend(case.x[None])[0], expected)
    assert_close(torch.func.vmap(case.descend)(case.x), expected)


OPTIONS = {
    "relu": {},
    "softmax": {"hopfield": SoftmaxModernHopfield},
    "biases": {"use_bias": True, "bias": True},
    "shared bias, bias before beta, softmax": {
        "use_bias": "shared",
        "bias": "before_beta",
        "hopfield": SoftmaxModernHopfield,
    },
    "self excluded": {"attend_to_self": False},
    "mask": {"mask": torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1]], dtype=torch.bool)},
    "padding": {"tokens": torch.tensor([True, True, False])},
    "layer norm": {"norm": lambda: LayerNorm(3, 1e-2)},
    "regularized": {"norm": lambda: EnergyLayerNorm(3, 1e-2, 0.3)},
}


def small_case(hopfield=BaseModernHopfield, norm=None, use_bias=False, bias=False, attend_to_self=True, **masks):
    torch.manual_seed(0)
    norm = EnergyLayerNorm(3, 1e-2) if norm is None else norm()
    attention = EnergyAttention(3, 2, scale=0.7, head_dim=2, use_bias=use_bias, attend_to_self=attend_to_self)
    hopfield = hopfield(3, 4, bias=bias, scale=0.7)
    for parameter in (*norm.parameters(), attention.beta, hopfield.beta):
        parameter.data.add_(0.2 * torch.randn_like(parameter)).add_(0.2)
    if "tokens" in masks:
        masks["mask"] = padding_mask(masks["tokens"])
    return Case(norm.double(), attention.double(), hopfield.double(), torch.randn(3, 3, dtype=torch.float64), **masks)


@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_of_first_and_second_order_through_the_descent(name):
    """With respect to the tokens and every parameter, the betas included, against finite differences."""
    check_both_orders(small_case(**OPTIONS[name]))


@given(cases(most=(4, 2, 3, 4, 2, 3)))
@settings(reproducible, max_examples=15)
def test_gradients_of_first_and_second_order_in_any_case(case):
    check_both_orders(case, fast_mode=True)


def check_both_orders(case, fast_mode=False):
    case.attention.attn_implementation = "eager"  # the one that differentiates twice
    modules = torch.nn.ModuleList(case.block)
    names, values = zip(*modules.named_parameters(), strict=True)

    class Descent(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.modules_ = modules

        def forward(self, x):
            return case.descend(x, 2, 0.3).square().sum(-1)

    descent = Descent()

    def run(x, *parameters):
        named = {f"modules_.{name}": value for name, value in zip(names, parameters, strict=True)}
        return torch.func.functional_call(descent, named, (x,))

    inputs = [value.detach().clone().requires_grad_() for value in (case.x, *values)]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=fast_mode)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@given(
    st.sampled_from(["energy_layer_norm", "layer_norm"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["relu", "gelu", "softmax"]),
    st.integers(0, 2**32 - 1),
)
@settings(reproducible, max_examples=40)
def test_the_gradient_of_the_state_lowers_the_energy_by_its_square(norm, qk_norm, hopfield_norm, activation, seed):
    """E(x − α ∂E/∂x) = E(x) − α |∂E/∂x|² + O(α²), under every norm, gain and normalization."""
    torch.manual_seed(seed)
    config = EnergyTransformerConfig(
        image_size=8, patch_size=4, hidden_size=8, num_attention_heads=2, head_dim=3, intermediate_size=11,
        step_size=1e-6, norm_type=norm, attention_qk_norm=qk_norm, hopfield_norm=hopfield_norm,
        hopfield_activation=activation, hopfield_beta=0.7, descent_gradient="state",
    )  # fmt: skip
    layer = EnergyTransformerForMaskedImageModeling(config).double().energy_transformer.layers[0]
    for parameter in layer.parameters():
        parameter.data.normal_()  # also gains of both signs
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    found = layer(x, 1, record=Record(energies=True))
    fallen = (found.energy[:, 0] - found.energy[:, 1]) / 1e-6
    expected = ((found.state - x) / 1e-6).square().sum((1, 2))
    torch.testing.assert_close(fallen, expected, rtol=1e-2, atol=1e-6)


ONE_MEMORY = torch.tensor([[1.0], [1.0], [0.0]], dtype=torch.float64)


def energy_change(norm, x, memories, step_size):
    """Of one step on the Hopfield energy alone (the attention's weights are zero)."""
    attention = EnergyAttention(3, 1, scale=0.0, head_dim=1).double()
    hopfield = BaseModernHopfield(3, memories.shape[1]).double()
    hopfield.W.data.copy_(memories)
    case = Case(norm.double(), attention, hopfield, x)
    return (case.energies(case.descend(x, 1, step_size)) - case.energies(x)).item()


@pytest.mark.parametrize("step_size", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
def test_with_a_gain_for_each_channel_the_energy_can_rise_at_every_step_size(step_size):
    """The counterexample for `torch.nn.LayerNorm`, with positive gains."""
    x = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64)
    norm = LayerNorm(3)
    norm.weight.data.copy_(torch.tensor([3.0, 1.0, 1.0]))
    assert energy_change(norm, x, ONE_MEMORY, step_size) > 0.1 * step_size
    norm.weight.data.fill_(3.0)
    assert energy_change(norm, x, ONE_MEMORY, step_size) < -0.1 * step_size


@pytest.mark.parametrize("step_size", [1e-2, 1e-4])
def test_with_a_negative_gain_the_energy_rises(step_size):
    x = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64)
    norm = EnergyLayerNorm(3)
    assert energy_change(norm, x, ONE_MEMORY, step_size) < 0
    norm.gamma.data.fill_(-1.0)
    assert energy_change(norm, x, -ONE_MEMORY, step_size) > 0


@pytest.mark.parametrize("step_size", [1e-2, 1e-4])
def test_the_energy_of_the_raw_tokens_can_rise(step_size):
    """It is not what the descent lowers: here it rises while the energy of the normalized tokens falls."""
    x = torch.tensor([[15.0, 14.5, 13.0]], dtype=torch.float64)
    memories = torch.tensor([[-1.0, 1.0], [1.0, 0.0], [1.0, -1.0]], dtype=torch.float64)
    norm = EnergyLayerNorm(3)
    assert energy_change(norm, x, memories, step_size) < 0
    hopfield = BaseModernHopfield(3, 2).double()
    hopfield.W.data.copy_(memories)
    after = x - step_size * hopfield(norm.double()(x))
    assert hopfield.energy(after) > hopfield.energy(x)


def test_with_a_step_too_large_the_energy_rises():
    """A key opposite to its query makes E = (w·g)² of one token: the step goes past the minimum at w·g = 0."""
    attention = EnergyAttention(3, 1, beta=1.0, head_dim=1).double()
    attention.Wq.data.copy_(ONE_MEMORY.T[None])
    attention.Wk.data.copy_(-ONE_MEMORY.T[None])
    hopfield, x = BaseModernHopfield(3, 1, scale=0.0).double(), torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64)
    case = Case(EnergyLayerNorm(3).double(), attention, hopfield, x)
    before, small, large = (case.energies(state) for state in (x, case.descend(x, 1, 0.1), case.descend(x, 1, 3.0)))
    assert small < before < large


def test_the_energy_falls_within_each_block_of_a_model_and_jumps_between_them():
    torch.manual_seed(0)
    config = EnergyTransformerConfig(
        image_size=16,
        patch_size=4,
        hidden_size=16,
        num_attention_heads=2,
        head_dim=6,
        intermediate_size=20,
        num_hidden_layers=3,
        num_steps=5,
        initialization="scaled",
        hopfield_initializer_range=0.3,
    )
    model = EnergyTransformerForMaskedImageModeling(config).double().eval()
    model.energy_transformer.layers[1].hopfield.W.data.mul_(0.1)
    pixel_values = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    outputs = model.energy_transformer(pixel_values, output_hidden_states=True, output_energies=True)
    assert (outputs.energies[:, 5] > outputs.energies[:, 4]).all(), "weaker memories, at the same tokens"
    for block, layer in enumerate(model.energy_transformer.layers):
        states = outputs.hidden_states[5 * block : 5 * block + 6]
        energies = torch.stack([sum(energy_parts(layer, state)).sum(-1) for state in states])
        assert (energies.diff(dim=0) < 0).all()
