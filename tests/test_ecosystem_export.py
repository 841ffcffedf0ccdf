"""torch.compile without a graph break, torch.export and ONNX with a free batch size."""

import copy

import onnxruntime
import pytest
import torch

from energy_transformer import (
    EnergyTransformerForImageClassification,
    EnergyTransformerForMaskedImageModeling,
    EnergyTransformerModel,
)

RESULT = {
    EnergyTransformerModel: "last_hidden_state",
    EnergyTransformerForMaskedImageModeling: "reconstruction",
    EnergyTransformerForImageClassification: "logits",
}


def inputs(cls, batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(batch, 3, 16, 24, generator=generator) * 2 - 1
    if cls is not EnergyTransformerForMaskedImageModeling:
        return {"pixel_values": pixels}
    return {"pixel_values": pixels, "bool_masked_pos": torch.rand(batch, 24, generator=generator) < 0.5}


@pytest.fixture(params=list(RESULT), ids=list(RESULT.values()))
def model(request, small_config):
    torch.manual_seed(0)
    return request.param(small_config).eval()


def free_batch(example):
    return {name: {0: torch.export.Dim.DYNAMIC} for name in example}


@torch.no_grad()
def test_export(model):
    example = inputs(type(model), 2)
    program = torch.export.export(model, (), example, dynamic_shapes=free_batch(example)).module()
    for batch in (2, 5):
        given = inputs(type(model), batch, seed=batch)
        found, expected = program(**given), model(**given)
        torch.testing.assert_close(found[RESULT[type(model)]], expected[RESULT[type(model)]], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_onnx(model, tmp_path):
    """The masked-image model takes the mask as an input, so that nothing is drawn in the graph."""
    example = inputs(type(model), 2)
    program = torch.onnx.export(
        model, (), kwargs=example, dynamo=True, dynamic_shapes=free_batch(example), verbose=False
    )
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert [given.name for given in session.get_inputs()] == list(example)
    names = [name for name, value in model(**example).items() if value is not None]
    for batch in (1, 5):
        given = inputs(type(model), batch, seed=batch)
        results = dict(zip(names, session.run(None, {n: v.numpy() for n, v in given.items()}), strict=True))
        expected = model(**given)[RESULT[type(model)]]
        found = torch.from_numpy(results[RESULT[type(model)]])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "cls",
    [
        EnergyTransformerForImageClassification,
        pytest.param(EnergyTransformerModel, marks=pytest.mark.slow),
        pytest.param(EnergyTransformerForMaskedImageModeling, marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_compiled_inference_is_one_graph(cls, small_config):
    torch.compiler.reset()
    model, given = cls(small_config).eval(), inputs(cls, 2)
    found = torch.compile(model, fullgraph=True)(**given)[RESULT[cls]]
    torch.testing.assert_close(found, model(**given)[RESULT[cls]], rtol=1e-4, atol=1e-5)


def test_compiled_training_is_one_graph_with_the_same_gradients(small_model):
    torch.compiler.reset()
    plain, compiled = copy.deepcopy(small_model).train(), small_model.train()
    given = inputs(EnergyTransformerForMaskedImageModeling, 2)
    plain(**given).loss.backward()
    torch.compile(compiled, fullgraph=True, mode="reduce-overhead")(**given).loss.backward()
    for (name, expected), found in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-3, atol=1e-5, msg=name)
