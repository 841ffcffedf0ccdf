"""The import registers the Auto classes and brings little; the modules import in no circle."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def python(code, executable=sys.executable, cwd=None):
    done = subprocess.run([executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_import_brings_no_more_than_torch_and_transformers_do():
    theirs = python("import torch, transformers, sys; from transformers import PreTrainedModel; print(*sys.modules)")
    ours = python("import energy_transformer, sys; print(*sys.modules)")
    more = {name.partition(".")[0] for name in set(ours.split()) - set(theirs.split())}
    assert more & {"datasets", "matplotlib", "skimage", "torchvision", "energy_transformer"} == {"energy_transformer"}
    assert "energy_transformer.kernels" not in ours.split()


def imports_of(path):
    """The modules of the package that a file imports, wherever it does so, by its syntax tree."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = [*package[: len(package) - node.level + 1]] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            while parts and parts[0] == "energy_transformer":
                file = ROOT.joinpath(*parts)
                if file.with_suffix(".py").is_file():
                    yield file.with_suffix(".py")
                elif (file / "__init__.py").is_file():
                    yield file / "__init__.py"
                else:
                    parts.pop()
                    continue
                break


def test_no_modules_import_one_another_in_a_circle():
    """Imports inside of functions count too."""
    files = [*(ROOT / "energy_transformer").rglob("*.py")]
    needs = {file: {other for other in imports_of(file) if other != file} for file in files}
    assert ROOT / "energy_transformer" / "context.py" in needs[ROOT / "energy_transformer" / "block.py"]
    while free := {file for file, others in needs.items() if not others}:
        needs = {file: others - free for file, others in needs.items() if file not in free}
    names = sorted(str(file.relative_to(ROOT)) for file in needs)
    assert not names, f"these import one another in a circle, or what does: {names}"


OURS = "import energy_transformer"
THE_MODEL = "from energy_transformer import EnergyTransformerModel"
THEIRS = "from transformers import AutoConfig, AutoModel, AutoModelForMaskedImageModeling"


@pytest.mark.parametrize("lines", [(OURS, THEIRS), (THEIRS, OURS), (THE_MODEL, THEIRS)], ids=str)
def test_auto_classes_know_the_model_in_any_order_of_import(lines):
    code = "\n".join(
        [
            *lines,
            "config = AutoConfig.for_model('energy_transformer', image_size=8, patch_size=4, hidden_size=8)",
            "print(type(AutoModel.from_config(config)).__name__,",
            "      type(AutoModelForMaskedImageModeling.from_config(config)).__name__)",
        ]
    )
    assert python(code) == "EnergyTransformerModel EnergyTransformerForMaskedImageModeling"


def test_every_public_name_is_there():
    names = "from energy_transformer import *; import energy_transformer as e; print(set(e.__all__) <= set(dir()))"
    assert python(names) == "True"
    with pytest.raises(AssertionError, match="has no attribute 'NoSuchName'"):
        python("import energy_transformer; energy_transformer.NoSuchName")
