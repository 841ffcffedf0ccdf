"""Products by oneDNN and the closed-form derivative of the ReLU energy's gradient, against plain torch in float64."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from energy_transformer import BaseModernHopfield, EnergyAttention, EnergyTransformer, products
from energy_transformer.energies import _relu_gradient, _ReluGradient
from energy_transformer.products import product

needs_onednn = pytest.mark.skipif(not products._ONEDNN, reason="a build of torch or a processor without oneDNN")


@pytest.fixture
def onednn_for_all(monkeypatch):
    """Products of the sizes of these tests go there, too."""
    monkeypatch.setattr(products, "_LEAST_MULTIPLICATIONS", 0)
    monkeypatch.setattr(products, "_LEAST_WIDTH", 0)


def count_operator_calls(function):
    with torch.profiler.profile() as profile:
        function()
    return sum(event.count for event in profile.key_averages() if event.key == "mkldnn::_linear_pointwise")


def matrices(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


@needs_onednn
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("with_total", [False, True])
def test_values_and_gradients_against_float64(transposed, with_total, onednn_for_all):
    of_right = (160, 128) if transposed else (128, 160)
    left, right, total, upstream = matrices((300, 128), of_right, (300, 160), (300, 160))
    total = total if with_total else None
    variables = [left, right] + [total] * with_total
    result = product(left, right, total, transposed=transposed)
    found = [result, *torch.autograd.grad(result, variables, upstream)]
    exact = [variable.double() for variable in variables]
    expected = exact[0] @ (exact[1].mT if transposed else exact[1]) + (exact[2] if with_total else 0)
    expected = [expected, *torch.autograd.grad(expected, variables, upstream.double())]
    for actual, exact_value in zip(found, expected, strict=True):
        assert (actual - exact_value).norm() < 1e-6 * exact_value.norm()


@needs_onednn
@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_which_products_go_to_onednn(monkeypatch):
    monkeypatch.setattr(products, "_LEAST_MULTIPLICATIONS", 2**20)
    large = matrices((300, 128), (128, 160))
    small = matrices((30, 128), (128, 16))
    assert count_operator_calls(lambda: product(*large)) == 1
    assert count_operator_calls(lambda: product(*small)) == 0
    assert count_operator_calls(lambda: product(*(matrix.double() for matrix in large))) == 0
    assert count_operator_calls(lambda: product(*(matrix.bfloat16() for matrix in large))) == 0
    assert count_operator_calls(lambda: torch.func.vmap(product, (None, 0))(large[0], large[1][None])) == 0
    left, right = matrices((1024, 256), (1024, 600))
    assert count_operator_calls(lambda: product(left.mT, right)) == 1
    assert count_operator_calls(lambda: product(left.mT, right[:, :300])) == 0  # narrow for the copy of the left one
    assert count_operator_calls(lambda: product(left, right[:256, :300])) == 1
    with torch.autocast("cpu", torch.bfloat16):
        assert product(*large).dtype == torch.bfloat16
    with torch.backends.mkldnn.flags(enabled=False):
        assert count_operator_calls(lambda: product(*large)) == 0


@needs_onednn
@pytest.mark.parametrize("transposed", [False, True])
def test_the_gradient_of_a_weight_lies_in_memory_as_the_weight_does(transposed, onednn_for_all):
    left, weight = matrices((300, 128), (160, 128) if transposed else (128, 160))
    product(left, weight, transposed=transposed).sum().backward()
    assert weight.grad.stride() == weight.stride()


@needs_onednn
def test_the_operator_is_sound():
    left, right, total = matrices((6, 5), (5, 4), (6, 4))
    for arguments in ((left, right, None), (left, right, total), (left, right.mT.contiguous().mT, total)):
        torch.library.opcheck(products._onednn_operator, arguments)


@needs_onednn
def test_a_second_derivative_of_a_product(onednn_for_all):
    left, right, upstream = matrices((6, 5), (5, 4), (6, 4))
    results = []
    for tensors in ((left, right, upstream), (left.double(), right.double(), upstream.double())):
        outputs = product(*tensors[:2]).tanh()
        (gradient,) = torch.autograd.grad(outputs, left, tensors[2], create_graph=True)
        results.append(torch.autograd.grad(gradient.square().sum(), (left, right)))
    torch.testing.assert_close(*results)


@needs_onednn
@pytest.mark.parametrize("name", ["eager", "chunked"])
def test_a_block_in_float32_is_that_in_float64(name, onednn_for_all):
    torch.manual_seed(0)
    block = EnergyTransformer(128, 512, 4, n_iters_default=3, attn_implementation=name)
    for weight in (block.mha.Wq, block.mha.Wk, block.hopfield.W):
        torch.nn.init.normal_(weight, std=0.1)
    x = torch.randn(8, 64, 128)
    results = []
    for dtype in (torch.float32, torch.float64):
        block.to(dtype).zero_grad()
        tokens = x.to(dtype, copy=True).requires_grad_()
        outputs = block(tokens)
        outputs.square().mean().backward()
        results.append([outputs, tokens.grad, *(p.grad for p in block.parameters())])
    for found, expected in zip(*results, strict=True):
        assert (found - expected).norm() < 3e-5 * expected.norm()


@needs_onednn
def test_compiled_graphs_call_it_for_a_large_batch_alone(monkeypatch):
    """The compiler cannot fuse anything with it, and the call costs more than a small product."""
    monkeypatch.setattr(products, "_LEAST_MULTIPLICATIONS", 8000)
    torch.manual_seed(0)
    block = EnergyTransformer(16, 32, 2, n_iters_default=2)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend=counter)
    frames = []
    for batch, calls in ((2, 0), (3, 4), (5, 12), (4, 4), (6, 12)):  # no product is large, the widest, all
        x = torch.randn(batch, 7, 16)
        torch._dynamo.mark_dynamic(x, 0)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), block(x))
            assert count_operator_calls(lambda x=x: compiled(x)) == calls
        frames.append(counter.frame_count)
    assert frames[2] == frames[-1]


class Subclass(torch.Tensor):
    """Stands for a DTensor, whose library has no rule for an operator of ours."""


@needs_onednn
@pytest.mark.parametrize("compiled", [False, True])
def test_tensors_of_a_subclass_are_left_to_torch(compiled, onednn_for_all):
    left, right = (matrix.detach() for matrix in matrices((6, 5), (5, 4)))
    multiply = torch.compile(product, backend="eager", fullgraph=True) if compiled else product
    multiply(left, right), multiply(left.as_subclass(Subclass), right)
    assert count_operator_calls(lambda: multiply(left, right)) == 1
    assert count_operator_calls(lambda: multiply(left.as_subclass(Subclass), right)) == 0


BETAS = [1.0, 0.7, -0.6, torch.tensor(0.7), torch.tensor([-0.6])]


def relu_inputs(beta):
    rows, memories = (matrix.detach().double().requires_grad_() for matrix in matrices((6, 4), (4, 9)))
    return rows, memories, beta.double().requires_grad_() if isinstance(beta, torch.Tensor) else beta


@pytest.mark.parametrize("beta", BETAS, ids=str)
def test_the_relu_gradients_derivative_in_closed_form(beta):
    inputs = relu_inputs(beta)
    assert torch.autograd.gradcheck(_ReluGradient.apply, inputs)
    assert torch.autograd.gradgradcheck(_ReluGradient.apply, inputs)
    torch.testing.assert_close(_ReluGradient.apply(*inputs), _relu_gradient(*inputs)[0])


@pytest.mark.parametrize("frozen", range(3))
def test_a_frozen_input_gets_no_gradient(frozen):
    inputs = list(relu_inputs(torch.tensor([0.7])))
    inputs[frozen].requires_grad_(False)
    _ReluGradient.apply(*inputs).square().sum().backward()
    assert [tensor.grad is None for tensor in inputs] == [index == frozen for index in range(3)]


@pytest.mark.parametrize("learnable", [False, True])
def test_the_relu_gradient_is_that_of_the_energy(learnable):
    """Through autograd of the energy, which knows nothing of it: the gradient and its derivatives."""
    torch.manual_seed(0)
    hopfield = BaseModernHopfield(6, 11, beta=0.8, scale=1.0, learnable_beta=learnable).double()
    g = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    variables = [g, *hopfield.parameters()]
    (by_autograd,) = torch.autograd.grad(hopfield.energy(g), g, create_graph=True)
    results = [
        [gradient, *torch.autograd.grad(gradient.cos().sum(), variables)] for gradient in (hopfield(g), by_autograd)
    ]
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


def test_compilation_with_measured_kernels():
    torch.manual_seed(0)
    block = EnergyTransformer(16, 32, 2, n_iters_default=1)
    x = torch.randn(2, 7, 16)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(block, fullgraph=True, mode="max-autotune")(x), block(x))


def small_block(dtype=torch.float64):
    torch.manual_seed(0)
    block = EnergyTransformer(8, 16, 2, n_iters_default=3).to(dtype)
    for weight in (block.mha.Wq, block.mha.Wk, block.hopfield.W):
        torch.nn.init.normal_(weight, std=0.3)
    return block, torch.randn(2, 5, 8, dtype=dtype, requires_grad=True)


def test_a_gradient_to_differentiate_again_is_the_same():
    """Over several steps, so that g depends on the weights as well."""
    block, x = small_block()
    variables = [x, *block.parameters()]
    loss = block(x).square().sum()
    once = torch.autograd.grad(loss, variables, retain_graph=True)
    again = torch.autograd.grad(loss, variables, create_graph=True)
    torch.testing.assert_close(again, once, rtol=1e-12, atol=1e-12)


@needs_onednn
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_of_many_losses_at_once(onednn_for_all):
    block, x = small_block(torch.float32)
    variables = [x, *block.parameters()]
    losses = block(x).sum((0, 2))
    one_by_one = [torch.autograd.grad(loss, variables, retain_graph=True) for loss in losses]
    expected = [torch.stack(gradients) for gradients in zip(*one_by_one, strict=True)]

    def gradients(upstream, **options):
        return torch.autograd.grad(losses, variables, upstream, retain_graph=True, **options)

    torch.testing.assert_close(gradients(torch.eye(5), is_grads_batched=True), tuple(expected))
    torch.testing.assert_close(torch.func.vmap(gradients)(torch.eye(5)), tuple(expected))


def test_an_ensemble_of_biases():
    torch.manual_seed(0)
    attention = EnergyAttention(8, 2, use_bias=True)
    g, biases = torch.randn(5, 8), torch.randn(3, 2, 4)

    def gradient(bias):
        return torch.func.functional_call(attention, {"bq": bias}, g)

    torch.testing.assert_close(torch.func.vmap(gradient)(biases), torch.stack([gradient(bias) for bias in biases]))


def test_shapes_on_the_meta_device():
    block, x = small_block()
    assert block.to("meta")(x.to("meta")).shape == x.shape
