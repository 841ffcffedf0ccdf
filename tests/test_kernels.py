"""The fused attention against the eager one in float64: on the device when there is one, else in Triton's interpreter.

The interpreter multiplies bfloat16 wrongly, so that this dtype is only compiled here when there is no device.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from blocks import without_context

from energy_transformer import EnergyLayerNorm, EnergyTransformer, attention_backends

if sys.platform != "linux":
    pytest.skip("triton is made for Linux alone", allow_module_level=True)

import kernel_resources

from energy_transformer.kernels import energy_attention, tiles, triton_attention, triton_logsumexp

eager_attention = without_context(attention_backends.eager_attention)
eager_logsumexp = without_context(attention_backends.eager_logsumexp)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
runs = pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="run by the test of the interpreter")
compiled = pytest.mark.skipif(INTERPRETED, reason="needs kernels that are compiled")
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * (DEVICE == "cuda")
SOME_DTYPES = DTYPES if DEVICE == "cuda" else DTYPES[:1]  # the interpreter takes its time
# of float16, 3.7e-3 is the largest error found; the eager form, which has float32 scores, is more exact
TOLERANCES = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


@pytest.mark.skipif(INTERPRETED or DEVICE == "cuda", reason="this run tests the kernels itself")
def test_the_interpreter_agrees():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    result = subprocess.run(
        command,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    assert " passed" in result.stdout


def make(shape=(2, 3, 37, 16), dtype=torch.float32, beta=(0.7, -0.4, 1.3)):
    """Query and key as the projections leave them, (B, N, H, Y) seen as (B, H, N, Y), and beta."""
    generator = torch.Generator().manual_seed(0)
    *leading, heads, length, width = shape
    tensors = [torch.randn(*leading, length, heads, width, generator=generator).transpose(-3, -2) for _ in range(2)]
    tensors = [tensor.to(DEVICE, dtype).requires_grad_() for tensor in tensors]
    assert heads <= len(beta)
    return *tensors, torch.tensor(beta[:heads], device=DEVICE).requires_grad_()


def masks(kind, length, batch=2):
    generator = torch.Generator().manual_seed(1)
    mask = tokens = None
    if "pairs" in kind:
        mask = torch.rand(batch, length, length, generator=generator) < 0.6
        mask[0, 2] = False
    if "shared" in kind:
        mask = torch.rand(length, length, generator=generator) < 0.6
    if "columns" in kind:
        mask = torch.rand(batch, 1, length, generator=generator) < 0.6
    if "padding" in kind:
        tokens = torch.rand(batch, length, generator=generator) < 0.7
    return [None if tensor is None else tensor.to(DEVICE) for tensor in (mask, tokens)]


def whole_mask(mask, tokens, attend_to_self, length):
    """All restrictions as one mask (..., N, N), None when there are none."""
    if mask is None and tokens is None and attend_to_self:
        return None
    allowed = torch.ones(1, length, length, dtype=torch.bool, device=DEVICE)
    if mask is not None:
        allowed = allowed & mask
    if tokens is not None:
        allowed = allowed & tokens[..., :, None] & tokens[..., None, :]
    return allowed if attend_to_self else allowed & ~torch.eye(length, dtype=torch.bool, device=DEVICE)


def error(found, expected):
    """Relative to the largest number, or to 1: what cancels to nearly nothing keeps the error of its terms."""
    assert found.shape == expected.shape and found.isfinite().all()
    return ((found.double() - expected).abs().max() / expected.abs().max().clamp(min=1.0)).item()


def close(found, expected, dtype):
    assert error(found, expected) <= TOLERANCES[dtype]


def with_grads(function, inputs, *options):
    """Results, and the gradients of a random function of them."""
    results = function(*inputs, *options)
    results = results if isinstance(results, tuple) else (results,)
    generator = torch.Generator().manual_seed(2)
    upstream = [torch.randn(result.shape, generator=generator).to(result) for result in results]
    return results, torch.autograd.grad(results, inputs, upstream)


def agree(fused, eager, inputs, mask, tokens, attend_to_self, bias=None, causal=False):
    """The fused form is as near to float64 as the eager one, in its values and its gradients; the errors of both."""
    dtype = inputs[0].dtype
    allowed = whole_mask(mask, tokens, attend_to_self, inputs[0].shape[-2])

    def with_bias(function, *options):  # the bias is an input too, for its gradient
        return lambda query, key, beta, *bias: function(query, key, beta, *options, *bias, causal=causal)

    given = [*inputs] if bias is None else [*inputs, bias]
    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    found = with_grads(with_bias(fused, mask, tokens, attend_to_self), given)
    plain = with_bias(eager, allowed, None, True)
    rounded, expected = with_grads(plain, given), with_grads(plain, exact)
    errors = {}
    for kind, ours, eagers, right in zip(("value", "gradient"), found, rounded, expected, strict=True):
        pairs = [(error(a, c), error(b, c)) for a, b, c in zip(ours, eagers, right, strict=True)]
        errors |= {f"{kind}_error": max(a for a, _ in pairs), f"eager_{kind}_error": max(b for _, b in pairs)}
        assert all(a <= TOLERANCES[dtype] + 2 * b for a, b in pairs), pairs
    return errors


SHAPES = [(1, 2, 1, 16), (1, 2, 64, 32), (1, 1, 65, 64), (2, 1, 130, 24), (1, 1, 70, 128), (3, 9, 7), (2, 2, 1, 19, 40)]
if DEVICE == "cuda":
    SHAPES += [(2, 3, n, y) for n in (1, 16, 63, 197, 256, 257, 1024, 4096) for y in (16, 32, 64, 80, 128)]
PAIRS = [(triton_attention, eager_attention), (triton_logsumexp, eager_logsumexp)]


@runs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("attend_to_self", [True, False])
@pytest.mark.parametrize("kind", ["none", "pairs", "columns", "padding", "shared and padding"])
@pytest.mark.parametrize("fused, eager", PAIRS, ids=["terms", "logsumexp"])
def test_values_and_gradients_under_every_mask(fused, eager, kind, attend_to_self, dtype):
    agree(fused, eager, make(dtype=dtype), *masks(kind, 37), attend_to_self)


@runs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("fused, eager", PAIRS, ids=["terms", "logsumexp"])
def test_every_length_width_and_number_of_axes(fused, eager, shape, dtype, record_property):
    for name, value in agree(fused, eager, make(shape, dtype), None, None, True).items():
        record_property(name, value)


@runs
@pytest.mark.parametrize("dtype", SOME_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(37, 37), (3, 37, 37), (2, 1, 37, 37), (2, 3, 37, 37)], ids=str)
@pytest.mark.parametrize("fused, eager", PAIRS, ids=["terms", "logsumexp"])
def test_a_bias_and_its_gradient(fused, eager, shape, dtype):
    """Shared or not by images and heads, in the layout of a transposed view, with masks and without."""
    generator = torch.Generator().manual_seed(3)
    bias = torch.randn(shape, generator=generator).mT.to(DEVICE, dtype).requires_grad_()
    agree(fused, eager, make(dtype=dtype), None, None, True, bias)
    agree(fused, eager, make(dtype=dtype), *masks("pairs and padding", 37), False, bias, causal=True)


@runs
@pytest.mark.parametrize("attend_to_self", [True, False])
@pytest.mark.parametrize("fused, eager", PAIRS, ids=["terms", "logsumexp"])
def test_causal(fused, eager, attend_to_self):
    agree(fused, eager, make((1, 2, 70, 16)), None, None, attend_to_self, causal=True)


@runs
@pytest.mark.parametrize("dtype", SOME_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 37, 16), (1, 2, 64, 32), (1, 2, 130, 24), (1, 1, 1, 64)], ids=str)
def test_whole_heads_in_one_program(shape, dtype):
    generator = torch.Generator().manual_seed(3)
    length = shape[-2]
    bias = torch.randn(length, length, generator=generator).to(DEVICE, dtype).requires_grad_()
    with tiles.pinned(whole=True):
        agree(triton_attention, eager_attention, make(shape, dtype), None, None, True)
        restrictions = *masks("pairs and padding" if length > 2 else "padding", length, shape[0]), False
        agree(triton_attention, eager_attention, make(shape, dtype), *restrictions, bias, causal=True)


@runs
def test_which_kernel_computes_a_call(monkeypatch):
    """Short heads in half precision go whole, unless tiles are pinned; all else goes in tiles."""
    launched = []

    def launch(kernel, *others):
        launched.append(kernel.fn.__name__ if hasattr(kernel, "fn") else kernel.__name__)
        return run(kernel, *others)

    run = energy_attention._launch
    monkeypatch.setattr(energy_attention, "_launch", launch)
    kinds = {True: ["forward_whole", "backward_whole"], False: kernel_resources.IN_TILES[:4]}
    for shape, dtype, whole in (
        ((1, 2, 64, 32), torch.float16, True),
        ((1, 2, 64, 32), torch.float32, False),
        ((1, 2, 65, 32), torch.float16, False),  # too few of them
        ((1, 2, 64, 80), torch.float16, False),
    ):
        launched.clear()
        with_grads(triton_attention, make(shape, dtype))
        assert launched == kinds[whole]
        if whole:
            launched.clear()
            with tiles.pinned(whole=False):
                with_grads(triton_attention, make(shape, dtype))
            assert launched == kinds[False]


@runs
def test_a_bias_of_several_leading_axes_and_one_without_a_gradient():
    shape = (2, 2, 1, 9, 16)
    query, key, beta = make(shape)
    bias = torch.randn(2, 2, 1, 9, 9, generator=torch.Generator().manual_seed(4)).to(DEVICE)
    agree(triton_attention, eager_attention, (query, key, beta), None, None, True, bias.requires_grad_())
    found = with_grads(lambda *given: triton_attention(*given, bias=bias.detach()), (query, key, beta))
    expected = with_grads(lambda *given: eager_attention(*given, bias=bias.detach()), (query, key, beta))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@runs
def test_layouts_and_upstream_gradients_of_any_stride():
    query, key, beta = make()
    expected = with_grads(triton_attention, (query, key, beta))
    packed = torch.cat([query, key], -1).detach()
    slices = packed[..., :16].requires_grad_(), packed[..., 16:].requires_grad_()
    found = with_grads(triton_attention, (*slices, beta))
    columns = [tensor.detach().transpose(-1, -2).contiguous().transpose(-1, -2).requires_grad_() for tensor in slices]
    for other in (found, with_grads(triton_attention, (*columns, beta))):
        torch.testing.assert_close(other, expected, rtol=1e-5, atol=1e-5)
    sums = sum(term.sum() for term in triton_attention(query, key, beta))  # its upstream gradient has stride 0
    ones = sum((term * torch.ones_like(term)).sum() for term in triton_attention(query, key, beta))
    grads = [torch.autograd.grad(value, (query, key, beta)) for value in (sums, ones)]
    torch.testing.assert_close(*grads)


@runs
def test_beta_as_a_number_or_one_for_all_heads():
    query, key, _ = make()
    exact = eager_attention(query.double(), key.double(), 0.5)
    shared = torch.tensor([0.5], device=DEVICE, requires_grad=True)
    for beta in (0.5, shared):
        for found, expected in zip(triton_attention(query, key, beta), exact, strict=True):
            close(found, expected, torch.float32)
    agree(triton_attention, eager_attention, (query, key, shared), None, None, True)


@runs
def test_padding_may_hold_anything():
    query, key, beta = make()
    tokens = torch.ones(2, 37, dtype=torch.bool, device=DEVICE)
    tokens[1, 30:] = False
    expected = with_grads(triton_attention, (query, key, beta), None, tokens)
    dirty = [x.detach().masked_fill(~tokens[:, None, :, None], torch.nan).requires_grad_() for x in (query, key)]
    found = with_grads(triton_attention, (*dirty, beta), None, tokens)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert (found[0][0][1, :, 30:] == 0).all() and (found[1][1][1, :, 30:] == 0).all()


@runs
def test_one_term_alone_is_differentiated():
    query, key, beta = make()
    exact = [tensor.detach().double().requires_grad_() for tensor in (query, key, beta)]
    for index in range(2):
        found = torch.autograd.grad(triton_attention(query, key, beta)[index].sum(), (query, key, beta))
        expected = torch.autograd.grad(eager_attention(*exact)[index].sum(), exact)
        for left, right in zip(found, expected, strict=True):
            close(left, right, torch.float32)


@runs
def test_results_lie_as_the_next_projection_reads_them():
    query, key, beta = make()
    for tensor in (*triton_attention(query, key, beta), *with_grads(triton_attention, (query, key, beta))[1][:2]):
        assert tensor.transpose(-3, -2).is_contiguous()


@runs
def test_empty_batch():
    query, key, beta = make((0, 3, 37, 16))
    assert triton_attention(query, key, beta)[0].shape == query.shape


@runs
@pytest.mark.parametrize("function", [triton_attention, triton_logsumexp])
def test_a_second_derivative_is_refused(function):
    inputs = make((1, 1, 5, 16))
    result = function(*inputs)
    value = (result[0] if isinstance(result, tuple) else result).sum()
    grad = torch.autograd.grad(value, inputs[0], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="can be differentiated once only"):
        grad.sum().backward()


@runs
@pytest.mark.parametrize("function", [triton_attention, triton_logsumexp])
def test_no_graph_break_when_compiled(function):
    inputs, (mask, tokens) = make(), masks("pairs and padding", 37)
    expected = with_grads(function, inputs, mask, tokens, False)
    whole = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(with_grads(whole, inputs, mask, tokens, False), expected)


@runs
@pytest.mark.parametrize("name", ["attention_operator", "logsumexp_operator"])
def test_operators_are_registered_as_torch_wants_them(name):
    bias = torch.randn(3, 9, 9, generator=torch.Generator().manual_seed(3)).to(DEVICE)[None].requires_grad_()
    inputs = (*make((2, 3, 9, 16)), *masks("pairs and padding", 9), bias, False, True)
    torch.library.opcheck(getattr(energy_attention, name), inputs, rtol=1e-4, atol=1e-4)


@runs
def test_masks_of_numbers_are_refused():
    query, key, beta = make()
    with pytest.raises(ValueError, match=r"mask and tokens must be of dtype torch\.bool"):
        triton_attention(query, key, beta, torch.zeros(37, 37, device=DEVICE))


@pytest.mark.skipif(DEVICE == "cpu", reason="a model takes the fused attention on a CUDA device only")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_model_learns_the_same(dtype):
    gradients = {}
    for backend, precision in (("eager", torch.float64), ("triton", dtype)):
        torch.manual_seed(0)
        block = EnergyTransformer(64, 128, 2, norm=EnergyLayerNorm, attn_implementation=backend)
        for weight in (block.mha.Wq, block.mha.Wk, block.hopfield.W):
            torch.nn.init.normal_(weight, std=0.1)
        block.to(DEVICE, precision)
        x = torch.randn(2, 70, 64, generator=torch.Generator().manual_seed(1)).to(DEVICE, precision)
        block(x).float().square().sum().backward()
        gradients[backend] = [parameter.grad for parameter in block.parameters()]
    for found, expected in zip(gradients["triton"], gradients["eager"], strict=True):
        close(found, expected, dtype)


@compiled
def test_what_the_kernels_cannot_do_is_refused():
    query, key, beta = (tensor.detach() for tensor in make())
    with pytest.raises(ValueError, match=r'got torch\.float64 and torch\.float64; use attn_implementation "eager"'):
        triton_attention(query.double(), key.double(), beta)
    with pytest.raises(ValueError, match=r"a head width Y of 1 to 128, got \(1, 2, 136\)"):
        triton_logsumexp(torch.zeros(1, 2, 136), torch.zeros(1, 2, 136), 1.0)
    with pytest.raises(ValueError, match="needs a CUDA device, got tensors on cpu"):
        triton_attention(query.cpu(), key.cpu(), beta.cpu())


@pytest.mark.parametrize("backend", [False, True], ids=["import", "backend"])
def test_without_triton_the_error_says_what_to_install(backend):
    by_import, by_name = "import energy_transformer.kernels", "attention_backends.check_attention_backend('triton')"
    code = "import sys; sys.modules['triton'] = None\nfrom energy_transformer import attention_backends\n"
    code += f"try: {by_name if backend else by_import}\nexcept (ImportError, ValueError) as error: print(error)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pip install triton" in found and ("chunked" in found or not backend)


# one kind of each kernel, for the many take minutes
@compiled
@pytest.mark.parametrize("kernel", [*kernel_resources.IN_TILES, *kernel_resources.WHOLE])
def test_kernels_compile_for_an_h100_without_spills(kernel):
    width, length = (32, 64) if kernel == "backward_whole" else (64, 256)
    check_resources(kernel_resources.Case(kernel, "sm_90", "bf16", width, True, length))


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("target", kernel_resources.CAPABILITIES)
@pytest.mark.parametrize("dtype, widths", [("bf16", (16, 32, 64, 128)), ("fp16", (64,)), ("fp32", (32, 64))], ids=str)
def test_all_that_the_backend_chooses_compiles_without_spills(target, dtype, widths):
    for case in kernel_resources.cases((dtype,), widths, (target,)):
        check_resources(case)


def check_resources(case):
    found = kernel_resources.resources(case)
    assert found.stack == 0, (case, found)
    assert found.shared <= 99 * 1024, (case, found)  # what a consumer's GPU has
    assert found.products > 0, (case, found)  # on the units for matrices
