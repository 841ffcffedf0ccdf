"""The memory-linear attention against the eager one, and how `attn_implementation` chooses between them."""

import importlib.util
import itertools
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from blocks import without_context

from energy_transformer import (
    EnergyTransformerConfig,
    EnergyTransformerForMaskedImageModeling,
    EnergyTransformerModel,
    context,
)
from energy_transformer import attention_backends as backends

eager_attention, eager_logsumexp, chunked_attention, chunked_logsumexp = (
    without_context(getattr(backends, name))
    for name in ("eager_attention", "eager_logsumexp", "chunked_attention", "chunked_logsumexp")
)
PAIRS = [(eager_attention, chunked_attention), (eager_logsumexp, chunked_logsumexp)]


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks over images, heads and rows, the last ones shorter."""
    monkeypatch.setattr(backends, "_CPU_BLOCK", 100)
    monkeypatch.setattr(backends, "_LEAST_ROWS", 4)


def inputs(leads, count, dtype=torch.float64, heads=2, width=5):
    torch.manual_seed(0)
    # not contiguous, as projections are
    shape = (*leads, count, heads, width)
    return [torch.randn(shape, dtype=dtype).transpose(-2, -3).requires_grad_() for _ in range(2)]


def values_and_gradients(function, variables, *arguments):
    outputs = function(*arguments)
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(out.shape, dtype=torch.float64, generator=generator).to(out.dtype) for out in outputs]
    return [*outputs, *torch.autograd.grad(outputs, variables, upstream)]


@pytest.mark.parametrize("pair", PAIRS, ids=["terms", "logsumexp"])
@pytest.mark.parametrize("leads, count", [((), 7), ((3,), 4), ((2, 3), 11), ((2,), 1)])
def test_chunked_equals_eager(pair, leads, count, small_blocks):
    """Values and the gradients of q, k and beta, for every kind of mask and beta."""
    query, key = inputs(leads, count)
    pair_masks = (None, torch.rand(*leads, count, count) < 0.6, torch.rand(count, count) < 0.3)
    betas = (torch.tensor([0.3, -1.2]).double(), torch.tensor([0.7]).double(), 0.4)
    for mask, padded, to_self, beta in itertools.product(pair_masks, (False, True), (True, False), betas):
        tokens = torch.rand(*leads, count) < 0.7 if padded else None
        variables = [query, key]
        if isinstance(beta, torch.Tensor):
            variables.append(beta.requires_grad_())
        expected, found = (
            values_and_gradients(function, variables, query, key, beta, mask, tokens, to_self) for function in pair
        )
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("function", [chunked_attention, chunked_logsumexp], ids=["terms", "logsumexp"])
def test_the_closed_form_against_finite_differences(function, small_blocks):
    variables = [*inputs((2,), 6), torch.tensor([0.5, -0.8]).double().requires_grad_()]
    tokens = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    assert torch.autograd.gradcheck(lambda *v: function(*v, None, tokens, False), variables)


@pytest.mark.parametrize("pair", PAIRS, ids=["terms", "logsumexp"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
def test_chunked_in_lower_precision(pair, dtype, tolerance, small_blocks):
    exact = inputs((2,), 33)
    rounded = [tensor.detach().to(dtype).requires_grad_() for tensor in exact]
    expected = values_and_gradients(pair[0], exact, *exact, 0.4)
    found = values_and_gradients(pair[1], rounded, *rounded, 0.4)
    for actual, exact_value in zip(found, expected, strict=True):
        assert (actual.double() - exact_value).norm() < tolerance * exact_value.norm()
    assert found[0].dtype == (torch.float32 if pair[1] is chunked_logsumexp else dtype)


def test_the_operator_is_sound():
    query, key = inputs((2,), 5)
    beta = torch.tensor([0.5, 0.8]).double().requires_grad_()
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    tokens, pairs = torch.rand(2, 5) < 0.7, torch.rand(2, 5, 5) < 0.7
    bias = torch.randn(2, 1, 5, 5).double().requires_grad_()
    for masks in ((None, None, None), (tokens, pairs, bias)):
        torch.library.opcheck(backends._attention, (query, key, beta, *masks, False, True), test_utils=tests)


@pytest.mark.parametrize("folder", ["my model (1)", "modèle", "2024.11-run"])
def test_copies_of_the_files_run_under_any_name(folder, monkeypatch):
    """A checkpoint's code becomes modules whose names have that of its folder."""
    for file in (context.__file__, backends.__file__):
        name = f"transformers_modules.{folder}.{Path(file).stem}"
        spec = importlib.util.spec_from_file_location(name, file)
        copy = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, copy)
        monkeypatch.setitem(sys.modules, name.rpartition(".")[0], ModuleType("package"))
        spec.loader.exec_module(copy)
    query, key = inputs((2,), 5)
    for function in ("chunked_attention", "chunked_logsumexp"):
        functions = (without_context(getattr(module, function)) for module in (backends, copy))
        expected, found = (values_and_gradients(f, (query, key), query, key, 0.4) for f in functions)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_second_derivative_is_refused():
    query, key = inputs((1,), 4)
    (gradient,) = torch.autograd.grad(
        sum(t.sum() for t in chunked_attention(query, key, 0.5)), query, create_graph=True
    )
    with pytest.raises(RuntimeError, match="attn_implementation='eager' for a second derivative"):
        gradient.sum().backward()


@pytest.fixture
def pixel_values():
    return torch.randn(3, 3, 16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("options", [{}, {"attend_to_self": False, "learnable_beta": True, "attention_bias": True}])
def test_results_and_gradients_do_not_depend_on_the_backend(small_config, options, pixel_values, tmp_path):
    config = EnergyTransformerConfig(**{**small_config.to_dict(), **options})
    torch.manual_seed(0)
    EnergyTransformerForMaskedImageModeling(config).double().save_pretrained(tmp_path)
    padding = torch.rand(3, 25, generator=torch.Generator().manual_seed(2)) < 0.8
    found = {}
    for name in ("eager", "chunked", "auto"):
        load = EnergyTransformerForMaskedImageModeling.from_pretrained
        model = load(tmp_path, attn_implementation=name, dtype=torch.float64)
        assert model.energy_transformer.layers[0].config._attn_implementation == name
        outputs = model(pixel_values, attention_mask=padding, output_energies=True)
        outputs.loss.backward()
        found[name] = [outputs.reconstruction, outputs.energies, *(p.grad for p in model.parameters())]
    torch.testing.assert_close(found["chunked"], found["eager"], rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(found["auto"], found["eager"], rtol=1e-11, atol=1e-12)


def test_training_does_not_depend_on_the_backend(small_config):
    """200 steps: the same losses within the noise of float32."""
    pixels = torch.rand(8, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.rand(8, 24, generator=torch.Generator().manual_seed(1)) < 0.5
    losses = {}
    for name in ("eager", "chunked"):
        torch.manual_seed(0)
        model = EnergyTransformerForMaskedImageModeling(small_config)
        model.set_attn_implementation(name)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        losses[name] = []
        for _ in range(200):
            loss = model(pixels, bool_masked_pos=mask).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[name].append(loss.item())
    assert losses["eager"][-1] < 0.8 * losses["eager"][0]
    assert losses["chunked"] == pytest.approx(losses["eager"], rel=1e-3)


def test_switching(small_config, tmp_path):
    model = EnergyTransformerModel(small_config)
    assert model.config._attn_implementation == "auto"
    model.set_attn_implementation("chunked")
    assert model.layers[0].config._attn_implementation == "chunked"
    model.save_pretrained(tmp_path)
    assert EnergyTransformerModel.from_pretrained(tmp_path).config._attn_implementation == "auto"


@pytest.mark.parametrize("name", ["sdpa", "flash_attention_2", "flex_attention", "chunky"])
def test_other_names_are_refused(small_config, name, tmp_path):
    model = EnergyTransformerModel(small_config)
    model.save_pretrained(tmp_path)
    message = f"attn_implementation must be one of auto, eager, chunked, triton, got '{name}'"
    with pytest.raises(ValueError, match=message):
        model.set_attn_implementation(name)
    with pytest.raises(ValueError, match=message):
        EnergyTransformerModel.from_pretrained(tmp_path, attn_implementation=name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_triton_without_a_device_is_refused_at_load_time(small_config, tmp_path):
    EnergyTransformerModel(small_config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="attn_implementation='triton' needs"):
        EnergyTransformerModel.from_pretrained(tmp_path, attn_implementation="triton")


def test_attentions_need_the_matrix(small_config):
    model = EnergyTransformerModel(small_config).eval()
    pixels = torch.zeros(1, 3, 16, 24)
    assert len(model(pixels, output_attentions=True).attentions) == 3
    model.set_attn_implementation("chunked")
    with pytest.raises(ValueError, match="output_attentions needs attn_implementation='eager'"):
        model(pixels, output_attentions=True)


def test_no_tensor_of_pairs_is_made(small_config):
    """Neither padding nor the excluded diagonal makes a tensor of N×N, forward or backward."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            output = function(*args, **(kwargs or {}))
            for tensor in output if isinstance(output, list | tuple) else [output]:
                if isinstance(tensor, torch.Tensor):
                    self.numel = max(self.numel, tensor.untyped_storage().nbytes() // tensor.element_size())
            return output

    config = EnergyTransformerConfig(
        image_size=256, patch_size=4, hidden_size=8, num_attention_heads=1, head_dim=8, intermediate_size=8,
        num_steps=1, attend_to_self=False,
    )  # fmt: skip
    largest = {}
    for name in ("chunked", "eager"):
        model = EnergyTransformerModel(config, final_norm=False)
        model.set_attn_implementation(name)
        tokens = torch.ones(1, 4097, dtype=torch.bool)
        tokens[:, -5:] = False
        with Largest() as seen:
            model(torch.rand(1, 3, 256, 256), attention_mask=tokens).last_hidden_state.square().sum().backward()
        largest[name] = seen.numel
    assert largest["eager"] >= 4097**2 > 16 * largest["chunked"]


def test_compiles_without_graph_breaks(small_model):
    pixels, mask = torch.rand(2, 3, 16, 24), torch.rand(2, 24) < 0.5
    compiled = torch.compile(small_model, fullgraph=True, backend="aot_eager")
    for model in (small_model, compiled):
        small_model.zero_grad()
        outputs = model(pixels, bool_masked_pos=mask)
        outputs.loss.backward()
        gradients = [p.grad.clone() for p in small_model.parameters()]
        if model is small_model:
            expected = [outputs.reconstruction, *gradients]
    torch.testing.assert_close([outputs.reconstruction, *gradients], expected, rtol=1e-4, atol=1e-5)


def test_export_and_compilation_are_told_apart_by_torch_2_6_as_well(small_model, monkeypatch):
    monkeypatch.setattr(backends, "hasattr", lambda *_: False, raising=False)  # torch.compiler has no is_exporting
    pixels, mask = torch.rand(2, 3, 16, 24), torch.rand(2, 24) < 0.5
    with torch.no_grad():
        expected = small_model(pixels, bool_masked_pos=mask).reconstruction
        exported = torch.export.export(small_model, (pixels,), {"bool_masked_pos": mask}, strict=False)
        found = exported.module()(pixels, bool_masked_pos=mask)["reconstruction"]
        compiled = torch.compile(small_model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(pixels, bool_masked_pos=mask).reconstruction, expected)
    torch.testing.assert_close(found, expected)
    called = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert called and not any("energy_transformer" in name for name in called)


def test_a_compiled_transform_of_torch_func(small_model):
    pixels, mask = torch.rand(2, 3, 16, 24), torch.rand(2, 24) < 0.5
    gradient = torch.func.grad(lambda x: small_model(x, bool_masked_pos=mask).reconstruction.square().sum())
    torch.testing.assert_close(torch.compile(gradient, backend="aot_eager")(pixels), gradient(pixels))


@pytest.mark.parametrize("name", ["eager", "chunked"])
def test_an_empty_batch(small_config, name):
    model = EnergyTransformerModel(small_config)
    model.set_attn_implementation(name)
    outputs = model(torch.rand(0, 3, 16, 24), output_energies=True)
    outputs.last_hidden_state.sum().backward()
    assert outputs.last_hidden_state.shape == (0, 25, small_config.hidden_size) and len(outputs.energies) == 0
