"""Checkpoints carry their code: they open where this package is not installed, on the oldest and newest transformers.

`ENERGY_TRANSFORMER_OLDEST_PYTHON` names the interpreter of an environment with the oldest transformers.
"""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from minimal_environment import build_minimal_environment
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForMaskedImageModeling, ViTConfig, ViTModel
from transformers.dynamic_module_utils import get_imports, get_relative_import_files

import energy_transformer
from energy_transformer import EnergyTransformerConfig, EnergyTransformerForMaskedImageModeling
from energy_transformer.configuration_energy_transformer import AUTO_MAP
from energy_transformer.data.demo import photograph

PACKAGE = Path(energy_transformer.__file__).parent
OLDEST = os.environ.get("ENERGY_TRANSFORMER_OLDEST_PYTHON")
NEEDS_OLDEST = pytest.mark.skipif(not OLDEST, reason="ENERGY_TRANSFORMER_OLDEST_PYTHON is not set")


def relative_imports(path):
    """The modules that a file imports by `from .name import x`, from its syntax tree; nothing else is allowed."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and node.module and "." not in node.module, f"{path.name}:{node.lineno}"
            names.add(node.module)
    return names


def _closure(name):
    """The files that `name.py` needs, itself included."""
    needed, wanted = set(), {name}
    while wanted:
        needed |= wanted
        wanted = {module for name in wanted for module in relative_imports(PACKAGE / f"{name}.py")} - needed
    return {f"{name}.py" for name in needed}


CODE = _closure("modeling_energy_transformer")

OPEN_AND_SAVE = '''
"""Opens a checkpoint with each Auto class, runs it, saves it, opens what was saved: all in one process."""
import importlib.util, json, os, sys
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig, AutoModel, AutoModelForImageClassification, AutoModelForMaskedImageModeling, AutoModelForPreTraining,
)

absent = ("energy_transformer", "datasets", "accelerate", "matplotlib", "PIL", "skimage", "torchvision")
assert [name for name in absent if importlib.util.find_spec(name)] == []
checkpoint, other, folder, again = sys.argv[1:]
saved = load_file(f"{folder}/saved.safetensors")
example = load_file(f"{folder}/example.safetensors")
options = {"trust_remote_code": True}


def run(model):
    outputs = model(example["pixel_values"], bool_masked_pos=example["mask"].bool(), output_energies=True)
    return max(
        (outputs.reconstruction - example["reconstruction"]).abs().max().item(),
        ((outputs.energies - example["energies"]) / example["energies"]).abs().max().item(),
    )


report = {"config": type(AutoConfig.from_pretrained(checkpoint, **options)).__name__}
heads = {}
for auto in (AutoModel, AutoModelForMaskedImageModeling, AutoModelForPreTraining, AutoModelForImageClassification):
    model, info = auto.from_pretrained(checkpoint, output_loading_info=True, **options)
    state = model.state_dict()
    prefix = "energy_transformer." if auto is AutoModel else ""
    common = {name: prefix + name for name in state if prefix + name in saved}
    heads[auto.__name__] = {
        "class": type(model).__name__,
        "module": type(model).__module__.split(".")[0],
        "new": sorted(info["missing_keys"]),
        "equal": bool(common) and all(torch.equal(state[name], saved[old]) for name, old in common.items()),
        "loaded": len(common),
        "tensors": len(state),
    }
report["heads"] = heads
model = AutoModelForMaskedImageModeling.from_pretrained(checkpoint, **options)
report["error"] = run(model)
second = AutoModelForMaskedImageModeling.from_pretrained(other, **options)
report["other_size"] = second.config.hidden_size
report["error_with_two_models"] = run(model)
model.save_pretrained(again)
report["files"] = sorted(os.listdir(again))
report["auto_map"] = json.load(open(f"{again}/config.json"))["auto_map"]
report["error_again"] = run(AutoModelForMaskedImageModeling.from_pretrained(again, **options))
base = AutoModel.from_pretrained(again, **options)
base.save_pretrained(again + "-base")
report["base_files"] = sorted(os.listdir(again + "-base"))
report["base_auto_map"] = json.load(open(f"{again}-base/config.json"))["auto_map"]
print(json.dumps(report))
'''

RECONSTRUCT = """
import sys
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedImageModeling

image = load_file(f"{sys.argv[1]}/in.safetensors")
model = AutoModelForMaskedImageModeling.from_pretrained("alice/paper", trust_remote_code=True)
with torch.no_grad():
    outputs = model(image["pixels"], bool_masked_pos=image["mask"].bool())
save_file({"reconstruction": outputs.reconstruction}, f"{sys.argv[1]}/out.safetensors")
"""


@pytest.fixture(
    scope="module", params=[sys.executable, pytest.param(OLDEST, marks=NEEDS_OLDEST)], ids=["installed", "oldest"]
)
def minimal_python(request, tmp_path_factory):
    return build_minimal_environment(request.param, tmp_path_factory.mktemp("minimal") / "env")


@pytest.fixture
def example(small_model, tmp_path):
    """The model's tensors, and what it makes of an image, in a folder."""
    with torch.no_grad():
        for parameter in small_model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))  # unlike what any initialization gives
    pixels, mask = torch.rand(1, 3, 16, 24), torch.rand(1, 24) < 0.5
    with torch.no_grad():
        outputs = small_model(pixels, bool_masked_pos=mask, output_energies=True)
    folder = tmp_path / "example"
    folder.mkdir()
    save_file(dict(small_model.state_dict()), folder / "saved.safetensors")
    results = {"reconstruction": outputs.reconstruction, "energies": outputs.energies}
    save_file({"pixel_values": pixels, "mask": mask.to(torch.uint8), **results}, folder / "example.safetensors")
    return folder


@pytest.fixture
def other_model():
    return EnergyTransformerForMaskedImageModeling(
        EnergyTransformerConfig(image_size=8, patch_size=4, hidden_size=16, num_attention_heads=2, head_dim=4)
    )


def run_isolated(python, code, *arguments, environment):
    """A process in an empty folder that sees nothing of this checkout."""
    environment = {name: value for name, value in environment.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    folder = Path(environment["HF_HOME"])
    folder.mkdir(exist_ok=True)
    command = [str(python), "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300)


def check(report):
    assert report["config"] == "EnergyTransformerConfig"
    heads = report["heads"]
    assert {name: head["class"] for name, head in heads.items()} == {
        name: reference.split(".")[1] for name, reference in AUTO_MAP.items() if name != "AutoConfig"
    }
    for name, head in heads.items():
        classifier = name == "AutoModelForImageClassification"
        assert head["module"] == "transformers_modules" and head["equal"], (name, head)
        assert all(key.startswith("classifier.") for key in head["new"]) and bool(head["new"]) == classifier
        assert head["loaded"] == head["tensors"] - len(head["new"])
    assert report["error"] == report["error_with_two_models"] == report["error_again"]
    assert report["error"] <= 1e-6
    assert report["other_size"] == 16
    files = sorted(CODE | {"config.json", "model.safetensors"})
    assert report["files"] == files and report["base_files"] == files
    assert report["auto_map"] == AUTO_MAP and report["base_auto_map"] == AUTO_MAP


def test_a_folder_opens_without_the_package(minimal_python, hub, small_model, other_model, example, tmp_path):
    small_model.save_pretrained(tmp_path / "model")
    other_model.save_pretrained(tmp_path / "other")
    arguments = (tmp_path / "model", tmp_path / "other", example, tmp_path / "again")
    environment = hub.environment(tmp_path / "home")
    done = run_isolated(minimal_python, OPEN_AND_SAVE, *arguments, environment=environment)
    assert done.returncode == 0, done.stderr
    check(json.loads(done.stdout.splitlines()[-1]))
    assert hub.requests == []


def test_a_repository_opens_without_the_package(minimal_python, hub, small_model, other_model, example, tmp_path):
    """And what is saved of it stands on its own: its `auto_map` names no repository."""
    small_model.push_to_hub("alice/model", token=hub.token)
    other_model.push_to_hub("alice/other", token=hub.token)
    arguments = ("alice/model", "alice/other", example, tmp_path / "again")
    done = run_isolated(minimal_python, OPEN_AND_SAVE, *arguments, environment=hub.environment(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    check(json.loads(done.stdout.splitlines()[-1]))


OPEN_GRAPHS = """
import importlib.util, sys, torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification,
)

assert importlib.util.find_spec("energy_transformer") is None
folder, options = sys.argv[1], {"trust_remote_code": True}
example = load_file(f"{folder}/example.safetensors")
graphs = {name: example[name] for name in ("x", "edge_index", "edge_attr", "batch")}
print(type(AutoConfig.from_pretrained(folder, **options)).__name__)
for auto in (AutoModel, AutoModelForTokenClassification, AutoModelForSequenceClassification):
    model = auto.from_pretrained(folder, **options).eval()
    print(type(model).__name__)
model.save_pretrained(f"{folder}/again")
again = AutoModelForSequenceClassification.from_pretrained(f"{folder}/again", **options).eval()
for each in (model, again):
    print((each(**graphs).logits - example["logits"]).abs().max().item() <= 1e-6)
"""


def graph_model():
    torch.manual_seed(0)
    options = {"num_edge_features": 2, "hidden_size": 16, "initialization": "scaled", "num_labels": 3}
    config = energy_transformer.EnergyTransformerGraphConfig(num_node_features=4, **options)
    return energy_transformer.EnergyTransformerForGraphClassification(config).eval()


def test_graph_models_open_without_the_package(minimal_python, hub, tmp_path):
    """A label of a graph by the Auto class of sequences, a label of each node by that of tokens."""
    model = graph_model()
    graphs = {
        "x": torch.randn(5, 4),
        "edge_index": torch.tensor([[0, 1, 1, 2, 3, 4], [1, 0, 2, 1, 4, 3]]),
        "edge_attr": torch.randn(6, 2),
        "batch": torch.tensor([0, 0, 0, 1, 1]),
    }
    model.save_pretrained(tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").glob("*.py")} == _closure("modeling_energy_transformer_graph")
    save_file(graphs | {"logits": model(**graphs).logits.detach()}, tmp_path / "model" / "example.safetensors")
    environment = hub.environment(tmp_path / "home")
    done = run_isolated(minimal_python, OPEN_GRAPHS, tmp_path / "model", environment=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        "EnergyTransformerGraphConfig",
        "EnergyTransformerGraphModel",
        "EnergyTransformerForNodeClassification",
        "EnergyTransformerForGraphClassification",
        "True",
        "True",
    ]


def test_no_code_is_run_unasked(minimal_python, hub, small_model, tmp_path):
    small_model.push_to_hub("alice/model", token=hub.token)
    code = "from transformers import AutoModel; AutoModel.from_pretrained('alice/model', trust_remote_code=False)"
    done = run_isolated(minimal_python, code, environment=hub.environment(tmp_path / "home"))
    assert done.returncode == 1 and "trust_remote_code=True" in done.stderr.splitlines()[-1]
    assert hub.asked(r"/resolve/.*\.py$", "GET") == []


@pytest.mark.parametrize("trust_remote_code", [None, False, True])
def test_with_the_package_no_code_is_fetched(hub, small_model, trust_remote_code):
    small_model.push_to_hub("alice/model", token=hub.token)
    options = {"trust_remote_code": trust_remote_code}
    assert type(AutoConfig.from_pretrained("alice/model", **options)) is EnergyTransformerConfig
    model = AutoModelForMaskedImageModeling.from_pretrained("alice/model", **options)
    assert type(model) is EnergyTransformerForMaskedImageModeling
    assert type(AutoModel.from_pretrained("alice/model", **options)) is energy_transformer.EnergyTransformerModel
    assert hub.asked(r"/resolve/.*\.py$") == [] and "transformers_modules" not in sys.modules


def test_the_saved_code_is_what_the_models_import(small_model, tmp_path):
    """By the syntax tree, where transformers looks for words in the text, docstrings included."""
    found = get_relative_import_files(str(PACKAGE / "modeling_energy_transformer.py"))
    assert {Path(path).name for path in found} == CODE - {"modeling_energy_transformer.py"}
    small_model.save_pretrained(tmp_path)
    saved = {path.name: path for path in tmp_path.iterdir()}
    assert set(saved) == CODE | {"config.json", "model.safetensors"}
    assert all(saved[name].read_bytes() == (PACKAGE / name).read_bytes() for name in CODE)


@pytest.mark.parametrize("name", sorted(CODE | _closure("modeling_energy_transformer_graph")))
def test_the_code_needs_torch_and_transformers_alone(name):
    """Outside of `try`; huggingface_hub and safetensors come with transformers."""
    imported = {module for module in get_imports(str(PACKAGE / name)) if module not in sys.stdlib_module_names}
    assert imported <= {"torch", "transformers", "huggingface_hub", "safetensors"}


def test_the_other_models_are_saved_as_before(tmp_path):
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8)
    ViTModel(config).save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))


def test_loaded_tensors_are_those_saved(small_model, tmp_path):
    """No weight is drawn again after loading."""
    with torch.no_grad():
        for parameter in small_model.parameters():
            parameter.normal_()
    small_model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    loaded = AutoModelForMaskedImageModeling.from_pretrained(tmp_path).state_dict()
    assert loaded.keys() == saved.keys() and all(torch.equal(loaded[name], saved[name]) for name in saved)


def test_initialization_leaves_loaded_tensors_alone(small_model):
    """transformers marks them; `transformers.initialization` heeds the mark, a write to `.data` would not."""
    before = {name: tensor.clone() for name, tensor in small_model.state_dict().items()}
    for parameter in small_model.parameters():
        parameter._is_hf_initialized = True
    for module in small_model.modules():
        small_model._init_weights(module)
    assert all(torch.equal(tensor, before[name]) for name, tensor in small_model.state_dict().items())


def test_a_photograph_is_reconstructed_alike_without_the_package(minimal_python, hub, tmp_path):
    """The paper's model of 4.9 million parameters, its weights uploaded in parts."""
    hub.part_size = 5_000_000
    torch.manual_seed(0)
    model = EnergyTransformerForMaskedImageModeling(EnergyTransformerConfig(initialization="scaled")).eval()
    model.push_to_hub("alice/paper", token=hub.token)
    assert len(hub.asked(r"^/\w+/\d$", "PUT")) == 4
    pixels = torch.from_numpy(photograph("chelsea.png")[:224, :224].copy()).permute(2, 0, 1)[None] / 127.5 - 1
    mask = torch.rand(1, 196) < 0.5
    with torch.no_grad():
        expected = model(pixels, bool_masked_pos=mask).reconstruction
    save_file({"pixels": pixels.contiguous(), "mask": mask.to(torch.uint8)}, tmp_path / "in.safetensors")
    done = run_isolated(minimal_python, RECONSTRUCT, tmp_path, environment=hub.environment(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    got = load_file(tmp_path / "out.safetensors")["reconstruction"]
    assert got.std() > 0.1 and (got - expected).abs().max() <= 1e-6


def test_the_files_at_the_top_of_the_package_are_those_that_travel(small_model, tmp_path):
    """With a model of images or of graphs, but for the four that the contributor's guide lists."""
    small_model.save_pretrained(tmp_path)
    graph_model().save_pretrained(tmp_path)
    stay = {"__init__.py", "__main__.py", "naive.py", "energy_transformers.py"}
    assert {file.name for file in tmp_path.glob("*.py")} == {file.name for file in PACKAGE.glob("*.py")} - stay
