"""The interface of LumenPallidium/energy_transformer: its constructor arguments, names, shapes and habits."""

import copy
import inspect

import pytest
import torch

from energy_transformer import (
    BaseModernHopfield,
    EnergyAttention,
    EnergyLayerNorm,
    EnergyMHA,
    EnergyTransformer,
    SoftmaxModernHopfield,
)

ARGUMENTS = {
    EnergyMHA: {"embed_dim": ..., "n_heads": ..., "beta": None, "scale": 0.002},
    BaseModernHopfield: {"in_dim": ..., "hidden_dim": ..., "use_bias": False, "beta": None, "scale": 0.002},
    SoftmaxModernHopfield: {"in_dim": ..., "hidden_dim": ..., "use_bias": False, "beta": None, "scale": 0.002},
    EnergyTransformer: {
        "dim": ...,
        "hidden_dim": ...,
        "n_heads": ...,
        "context": 0,
        "n_iters_default": 12,
        "alpha": 0.1,
        "beta": None,
        "hopfield_type": "relu",
        "use_positional_embedding": True,
        "norm": torch.nn.LayerNorm,
        "ema_decay": 0.996,
        "return_energy": False,
    },
}


@pytest.fixture(params=["relu", "softmax"])
def model(request):
    torch.manual_seed(0)
    model = EnergyTransformer(12, 20, 3, context=7, n_iters_default=4, alpha=0.3, hopfield_type=request.param).double()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.fixture
def x():
    return torch.randn(2, 7, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("cls", ARGUMENTS, ids=lambda cls: cls.__name__)
def test_positional_arguments_and_defaults(cls):
    parameters = inspect.signature(cls).parameters.values()
    found = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD}
    expected = {name: inspect.Parameter.empty if value is ... else value for name, value in ARGUMENTS[cls].items()}
    assert list(found.items()) == list(expected.items())
    assert EnergyMHA is EnergyAttention


@pytest.mark.parametrize("hopfield_type, beta_shape", [("relu", (1,)), ("softmax", ())])
def test_parameter_names_shapes_and_order(hopfield_type, beta_shape):
    """The order too: `ema_update` and the states of optimizers go by it."""
    model = EnergyTransformer(12, 20, 3, context=7, hopfield_type=hopfield_type)
    assert [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()] == [
        ("pos_embedding", (1, 7, 12)),
        ("mha.beta", (3,)),
        ("mha.Wq", (3, 4, 12)),
        ("mha.Wk", (3, 4, 12)),
        ("hopfield.beta", beta_shape),
        ("hopfield.W", (12, 20)),
        ("norm.weight", (12,)),
        ("norm.bias", (12,)),
    ]
    assert [*model.state_dict()] == [name for name, _ in model.named_parameters()]
    assert model.num_quantizers == model.n_iters == 12


@pytest.mark.parametrize("options", [{"context": 0}, {"context": 7, "use_positional_embedding": False}])
def test_no_positions(options):
    model = EnergyTransformer(12, 20, 3, **options)
    assert "pos_embedding" not in model.state_dict() and model.pos_embedding == 0
    assert model(torch.randn(5, 12)).shape == (5, 12)
    with pytest.raises(ValueError, match="positional embeddings"):
        model.filtered_forward(torch.randn(5, 12), [0])


def test_initial_values():
    model = EnergyTransformer(64, 500, 4, context=300)
    for parameter, std in (
        (model.mha.Wq, 0.002),
        (model.mha.Wk, 0.002),
        (model.hopfield.W, 0.002),
        (model.pos_embedding, 1),
    ):
        assert parameter.std().item() == pytest.approx(std, rel=0.05)
    assert (model.mha.beta == 1 / 4).all() and (model.hopfield.beta == 1).all()
    assert SoftmaxModernHopfield(4, 8).beta.item() == pytest.approx(0.01)


def test_betas():
    per_head = torch.tensor([0.3, 0.4, 0.5])
    model = EnergyTransformer(12, 20, 3, beta=per_head)
    assert torch.equal(model.mha.beta, per_head) and model.hopfield.beta.item() == 1
    single = torch.tensor([0.3])
    model = EnergyTransformer(12, 20, 3, beta=single, hopfield_type="softmax")
    with torch.no_grad():
        model.mha.beta.add_(1)
    assert model.hopfield.beta.item() == single.item() == pytest.approx(0.3), "no beta is shared"
    assert model(torch.randn(2, 5, 12)).shape == (2, 5, 12)
    assert EnergyMHA(12, 3, beta=0.7).beta.tolist() == pytest.approx([0.7] * 3)
    with pytest.raises(ValueError, match=r"beta must be a number or have shape \(3,\) or \(1,\), got \(2,\)"):
        EnergyMHA(12, 3, beta=torch.ones(2))
    for cls in (BaseModernHopfield, SoftmaxModernHopfield):
        with pytest.raises(ValueError, match=r"beta must be a number or have shape .*, got \(1, 1\)"):
            cls(12, 20, beta=torch.ones(1, 1), learnable_beta=False)
    for learnable in (True, False):
        with pytest.raises(ValueError, match=r"beta must be a number or have shape \(1,\) or \(1,\), got \(1, 1\)"):
            EnergyMHA(12, 1, beta=torch.ones(1, 1), learnable_beta=learnable)
        with pytest.raises(ValueError, match=r"beta must be a number or have shape \(3,\) or \(1,\), got \(2,\)"):
            EnergyMHA(12, 3, beta=[0.1, 0.2], learnable_beta=learnable)


@pytest.mark.parametrize("cls", [BaseModernHopfield, SoftmaxModernHopfield])
def test_hopfield_ignores_what_lumen_ignores(cls):
    """No bias parameter, and for ReLU no initial beta; `bias` is ours."""
    module = cls(5, 9, True, torch.tensor(3.0))
    assert {name: tuple(value.shape) for name, value in module.state_dict().items()} == {
        "beta": cls.beta_shape,
        "W": (5, 9),
    }
    assert module.beta.item() == (1.0 if cls is BaseModernHopfield else 3.0)
    assert cls(5, 9, bias=True).bias.shape == (9,)


def test_call_is_the_gradient_of_the_energy(model, x):
    for module in (model.mha, model.hopfield):
        expected = torch.func.grad(module.energy)(x)
        torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)
        assert module.energy(x).shape == ()
    torch.testing.assert_close(model.forward_step(x), torch.func.grad(model.energy)(x), rtol=1e-12, atol=1e-12)


def test_forward_takes_n_iters_and_refuses_other_arguments(model, x):
    expected = x + model.pos_embedding
    for _ in range(2):
        expected = expected - model.alpha * torch.func.grad(model.energy)(model.norm(expected))
    torch.testing.assert_close(model(x, n_iters=2), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model(x, 0), x + model.pos_embedding)
    torch.testing.assert_close(model(x), model(x, 4), rtol=0, atol=0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'anything'"):
        model(x, n_iters=2, anything=3)


def test_return_energy(model, x):
    plain = model(x)
    model.return_energy = True
    y, features, energies = model(x)
    torch.testing.assert_close(y, plain, rtol=0, atol=0)
    assert len(features) == len(energies) == 4
    torch.testing.assert_close(features[-1], y.detach())
    assert not features[-1].requires_grad and not energies[-1].requires_grad
    for state, energy in zip(features, energies, strict=True):
        torch.testing.assert_close(energy, model.energy(state).detach())
    assert model(x, n_iters=0)[1:] == ([], [])


@pytest.mark.parametrize("indices", [torch.tensor([1, 4, 6]), [0, 2, 3], slice(0, 3)], ids=["tensor", "list", "slice"])
def test_filtered_forward(model, x, indices):
    expected = x[:, :3] + model.pos_embedding[:, indices]
    for _ in range(4):
        expected = expected - model.alpha * model.forward_step(model.norm(expected))
    torch.testing.assert_close(model.filtered_forward(x[:, :3], indices), expected, rtol=1e-12, atol=1e-12)


def test_filtered_forward_with_indices_of_each_image(model, x):
    """Each image then has positions of its own; LumenPallidium puts an axis before the result."""
    indices = torch.tensor([[1, 2, 3], [5, 2, 0]])
    y = model.filtered_forward(x[:, :3], indices, n_iters=2)
    assert y.shape == (1, 2, 3, 12)
    for image in range(2):
        alone = model.filtered_forward(x[image : image + 1, :3], indices[image], n_iters=2)
        torch.testing.assert_close(y[0, image], alone[0], rtol=1e-12, atol=1e-12)


def test_ema_update(model):
    model.ema_decay = 0.75
    new = copy.deepcopy(model)
    for parameter in new.parameters():
        parameter.data.normal_()
    before = copy.deepcopy(model.state_dict())
    model.ema_update(new)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * new.state_dict()[name], rtol=1e-14, atol=1e-14)
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match="zip"):
        model.ema_update(torch.nn.Module())


def test_unbatched_batched_and_vmap_agree(model, x):
    expected = model(x)
    unbatched = torch.stack([model(image)[0] for image in x])  # the positions have a batch axis
    torch.testing.assert_close(unbatched, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.func.vmap(model)(x)[:, 0], expected, rtol=1e-12, atol=1e-12)
    per_image = torch.func.vmap(torch.func.grad(model.energy))(x)
    torch.testing.assert_close(per_image, model.forward_step(x), rtol=1e-12, atol=1e-12)


def test_functional_call(model, x):
    parameters = {name: parameter.detach() * 1.5 for name, parameter in model.named_parameters()}
    other = copy.deepcopy(model)
    other.load_state_dict(parameters, strict=True)
    y = torch.func.functional_call(model, parameters, (x,), {"n_iters": 3})
    torch.testing.assert_close(y, other(x, n_iters=3), rtol=0, atol=0)

    def loss(parameters):
        return torch.func.functional_call(model, parameters, (x,)).square().mean()

    gradients = torch.func.grad(loss)(dict(model.named_parameters()))
    model(x).square().mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-12, atol=1e-12)


def test_compile_makes_one_graph_and_the_same_numbers(model, x):
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-12, atol=1e-12)
    gradients = []
    for module in (compiled, model):
        model.zero_grad()
        module(x).square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-12)


def test_energy_layer_norm_in_place_of_the_layer_norm(x):
    torch.manual_seed(0)
    model = EnergyTransformer(12, 20, 3, n_iters_default=30, norm=EnergyLayerNorm, return_energy=True).double()
    for parameter in (model.mha.Wq, model.mha.Wk, model.hopfield.W):
        parameter.data.normal_(std=0.3)
    _, features, _ = model(x)
    energies = torch.stack([model.energy(model.norm(state)) for state in (x, *features)])
    assert (energies.diff() < 0).all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"n_heads": 5}, "embed_dim must be divisible by n_heads, got embed_dim=12, n_heads=5"),
        ({"hopfield_type": "tanh"}, "hopfield_type must be one of 'relu', 'softmax', got 'tanh'"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        EnergyTransformer(**{"dim": 12, "hidden_dim": 20, "n_heads": 3, **arguments})


def test_unknown_biases_are_refused():
    with pytest.raises(ValueError, match="use_bias must be False, True or 'shared', got 'heads'"):
        EnergyMHA(12, 3, use_bias="heads")
    with pytest.raises(ValueError, match="bias must be False, True or 'before_beta', got 'after'"):
        BaseModernHopfield(12, 3, bias="after")


def test_masked_patches_are_learned_as_in_the_example():
    """Tokens from outside, one learned token in place of the hidden ones, energies and states returned."""
    torch.manual_seed(0)
    patches = torch.randn(1, 16, 8).cumsum(1).expand(8, 16, 8) / 4
    encoder, decoder = torch.nn.Linear(8, 16), torch.nn.Linear(16, 8)
    mask_token = torch.randn(16, requires_grad=True)
    model = EnergyTransformer(
        16, 32, 2, hopfield_type="softmax", context=16, n_iters_default=4, alpha=0.1, return_energy=True
    )
    parameters = [*model.parameters(), *encoder.parameters(), *decoder.parameters(), mask_token]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    losses = []
    for _ in range(60):
        draw = torch.rand(8, 16)
        tokens = encoder(patches)
        tokens[draw < 0.45] = mask_token
        tokens, features, energies = model(tokens)
        loss = torch.nn.functional.mse_loss(decoder(tokens)[draw < 0.5], patches[draw < 0.5])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        assert len(features) == len(energies) == 4
    assert sum(losses[-5:]) < 0.2 * sum(losses[:5])
