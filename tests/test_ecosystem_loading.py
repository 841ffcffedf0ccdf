"""What transformers' users do with a checkpoint: swap heads, choose dtypes and devices, load what does not fit."""

import copy
import subprocess
import sys

import pytest
import torch
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForMaskedImageModeling
from transformers.utils import logging

from energy_transformer import (
    EnergyTransformerConfig,
    EnergyTransformerForImageClassification,
    EnergyTransformerForMaskedImageModeling,
    EnergyTransformerModel,
)

EVERY_MODULE = {
    "num_hidden_layers": 2,
    "hopfield_activation": "softmax",
    "learnable_beta": True,
    "attention_bias": True,
    "hopfield_bias": True,
    "norm_type": "layer_norm",
    "patch_embedding": "mlp",
    "decoder_norm": "layer_norm",
    "classifier_head": "mlp",
}
MODELS = [EnergyTransformerModel, EnergyTransformerForMaskedImageModeling, EnergyTransformerForImageClassification]


def images(batch=2, size=(16, 24)):
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def some_mask():
    return torch.rand(2, 24, generator=torch.Generator().manual_seed(1)) < 0.5


@pytest.fixture(params=[{}, EVERY_MODULE], ids=["paper", "every module"])
def trained(request, small_config):
    """A masked-image model no weight of which is what an initialization would make it."""
    model = EnergyTransformerForMaskedImageModeling(EnergyTransformerConfig(**small_config.to_dict() | request.param))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.rand(parameter.shape, generator=generator) + 0.01)
    return model.eval()


@pytest.fixture
def log(caplog):
    logging.enable_propagation()
    yield caplog
    logging.disable_propagation()


@pytest.mark.parametrize("swap", ["Auto class", "class"])
def test_in_a_new_head_only_the_head_is_new_and_the_report_says_so(trained, tmp_path, log, swap):
    trained.save_pretrained(tmp_path)
    names = {0: "cat", 1: "coffee", 2: "rocket"}
    cls = AutoModelForImageClassification if swap == "Auto class" else EnergyTransformerForImageClassification
    model, info = cls.from_pretrained(
        tmp_path, num_labels=3, id2label=names, label2id={v: k for k, v in names.items()}, output_loading_info=True
    )
    loaded, saved = model.state_dict(), trained.state_dict()
    assert set(info["missing_keys"]) == {name for name in loaded if name.startswith("classifier.")}
    only_for_masks = ("decoder", "energy_transformer.embeddings.mask_token")
    assert set(info["unexpected_keys"]) == {name for name in saved if name.startswith(only_for_masks)}
    assert not info["mismatched_keys"] and not info["error_msgs"]
    for name in set(loaded) - set(info["missing_keys"]):
        assert torch.equal(loaded[name], saved[name]), name
    report = [line for line in log.text.splitlines() if "MISSING" in line and "|" in line]
    assert report and all(line.startswith("classifier") for line in report)
    assert model(images()).logits.shape == (2, 3)
    assert model.config.num_labels == 3 and model.config.id2label == names


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForMaskedImageModeling])
def test_no_loaded_weight_is_initialized_again(trained, tmp_path, auto):
    trained.save_pretrained(tmp_path)
    model, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    saved = trained.state_dict()
    if auto is AutoModel:
        saved = trained.energy_transformer.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, saved[name]), name


def test_another_number_of_labels_is_refused_or_made_anew(small_config, tmp_path):
    small_config.num_labels = 5
    saved = EnergyTransformerForImageClassification(small_config)
    saved.save_pretrained(tmp_path)
    assert AutoModelForImageClassification.from_pretrained(tmp_path).num_labels == 5
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=7)
    model, info = AutoModelForImageClassification.from_pretrained(
        tmp_path, num_labels=7, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {key[0] for key in info["mismatched_keys"]} == {"classifier.1.weight", "classifier.1.bias"}
    assert model(images()).logits.shape == (2, 7)
    backbone = saved.energy_transformer.state_dict()
    assert all(torch.equal(value, backbone[name]) for name, value in model.energy_transformer.state_dict().items())


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}], ids=str)
def test_a_device_map(trained, tmp_path, device_map):
    trained.save_pretrained(tmp_path)
    model = AutoModelForMaskedImageModeling.from_pretrained(tmp_path, device_map=device_map)
    on_cpu = copy.deepcopy(model).to("cpu")
    assert torch.equal(on_cpu(images(), some_mask()).reconstruction, trained(images(), some_mask()).reconstruction)


@pytest.mark.parametrize("room", [0.01, 0.6, 0.9])
def test_weights_that_do_not_fit_stay_on_disk(trained, tmp_path, room):
    """All that a call can return is the same, the energies and attentions of weights on the disk too."""
    trained.save_pretrained(tmp_path / "checkpoint")
    limits = {"cpu": int(room * trained.get_memory_footprint())}
    model = AutoModelForMaskedImageModeling.from_pretrained(
        tmp_path / "checkpoint", device_map="auto", max_memory=limits, offload_folder=tmp_path / "offloaded"
    )
    assert "disk" in model.hf_device_map.values()
    _check_offloaded(model, trained)


def test_any_module_can_be_on_disk(trained, tmp_path):
    trained.save_pretrained(tmp_path / "checkpoint")
    names = ["energy_transformer.embeddings", "energy_transformer.layers", "decoder"]
    names += ["decoder_norm"] if trained.decoder_norm is not None else []
    for on_disk in names:
        device_map = {name: "disk" if name == on_disk else "cpu" for name in names}
        model = AutoModelForMaskedImageModeling.from_pretrained(
            tmp_path / "checkpoint", device_map=device_map, offload_folder=tmp_path / on_disk
        )
        assert any(parameter.is_meta for parameter in model.get_submodule(on_disk).parameters())
        _check_offloaded(model, trained)


@torch.no_grad()
def _check_offloaded(model, whole):
    wanted = {"output_hidden_states": True, "output_energy_parts": True, "output_energies": True}
    for attentions in (False, True):
        found, expected = (
            m(images(), some_mask(), **wanted, output_attentions=attentions, return_dict=True) for m in (model, whole)
        )
        assert torch.equal(found.reconstruction, expected.reconstruction)
        assert torch.equal(found.energies, expected.energies)
        assert torch.equal(found.energy_parts.tokens, expected.energy_parts.tokens)
    assert all(torch.equal(a, b) for a, b in zip(found.attentions, expected.attentions, strict=True))


@pytest.mark.slow
def test_loading_needs_room_for_the_weights_once(tmp_path):
    config = EnergyTransformerConfig(
        image_size=32, patch_size=4, hidden_size=512, intermediate_size=2**18, initialization="scaled"
    )
    model = EnergyTransformerModel(config)  # 2**27 memories, 512 MiB
    model.save_pretrained(tmp_path)
    program = (
        "import resource, sys\n"
        "from transformers import AutoModel\n"
        "import energy_transformer.modeling_energy_transformer\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "model = AutoModel.from_pretrained(sys.argv[1])\n"
        "print((peak() - before) * 1024 / model.get_memory_footprint())"
    )
    run = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 1.3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cls", MODELS)
def test_dtypes(small_config, tmp_path, cls, dtype):
    model = cls(small_config).eval()
    model.save_pretrained(tmp_path / "single")
    half = cls.from_pretrained(tmp_path / "single", dtype=dtype)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype} and half.config.dtype == dtype
    half.save_pretrained(tmp_path / "half")
    again = cls.from_pretrained(tmp_path / "half", dtype="auto")
    assert {parameter.dtype for parameter in again.parameters()} == {dtype}
    with torch.no_grad():
        found, expected = _result(again(images())), _result(model(images()))
    assert found.dtype == dtype and found.isfinite().all()
    assert (found.float() - expected).norm() < 0.05 * expected.norm()
    single = cls.from_pretrained(tmp_path / "half", dtype=torch.float32)
    assert {parameter.dtype for parameter in single.parameters()} == {torch.float32}


def _result(outputs):
    return next(outputs[name] for name in ("reconstruction", "logits", "last_hidden_state") if name in outputs)


@pytest.mark.parametrize("cls", MODELS)
@torch.no_grad()
def test_a_tuple_holds_what_the_dictionary_does_in_its_order(small_config, cls):
    model = cls(small_config).eval()
    wanted = {"output_hidden_states": True, "output_attentions": True, "output_energies": True}
    for options in ({}, wanted):
        outputs, plain = model(images(), **options), model(images(), **options, return_dict=False)
        assert isinstance(plain, tuple) and len(plain) == len(outputs)
        for expected, found in zip(outputs.values(), plain, strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
    model.config.return_dict = False
    assert isinstance(model(images()), tuple)


@pytest.mark.parametrize("cls", MODELS)
def test_the_input_embeddings_can_be_seen_and_replaced(small_config, cls):
    model = cls(small_config)
    assert model.get_input_embeddings() is model.base_model.embeddings.patch_embeddings
    replacement = torch.nn.Linear(48, 32)
    torch.nn.init.zeros_(replacement.weight)
    model.set_input_embeddings(replacement)
    tokens = model.base_model.embeddings(images()) - model.base_model.embeddings.position_embeddings
    torch.testing.assert_close(tokens[:, 1:], replacement.bias.expand(2, 24, -1))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_the_pooler_output_has_no_weights_and_pools_the_last_state(small_config, pooling):
    small_config.classifier_pooling = pooling
    outputs = EnergyTransformerModel(small_config)(images())
    tokens = outputs.last_hidden_state
    torch.testing.assert_close(outputs.pooler_output, tokens[:, 0] if pooling == "cls" else tokens[:, 1:].mean(1))
