"""A checkpoint of version 0.1, saved with its code, opens with this package and without it, with the same numbers."""

import subprocess
import sys
from pathlib import Path

import torch
from minimal_environment import build_minimal_environment
from safetensors.torch import load_file
from transformers import AutoModelForMaskedImageModeling

FOLDER = Path(__file__).parent / "checkpoints" / "version_0_1"
RUN = """
import importlib.util, sys
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedImageModeling
assert importlib.util.find_spec("energy_transformer") is None
numbers = load_file(sys.argv[1] + "/numbers.safetensors")
model = AutoModelForMaskedImageModeling.from_pretrained(sys.argv[1], trust_remote_code=True)
with torch.no_grad():
    outputs = model(numbers["pixel_values"], bool_masked_pos=numbers["mask"], output_energies=True)
print((outputs.reconstruction - numbers["reconstruction"]).abs().max().item())
print((outputs.energies / numbers["energies"] - 1).abs().max().item())
"""


def test_with_the_package():
    numbers = load_file(FOLDER / "numbers.safetensors")
    model, report = AutoModelForMaskedImageModeling.from_pretrained(FOLDER, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        outputs = model(
            numbers["pixel_values"], bool_masked_pos=numbers["mask"], output_energies=True, output_hidden_states=True
        )
    torch.testing.assert_close(outputs.reconstruction, numbers["reconstruction"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs.energies, numbers["energies"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(outputs.hidden_states[-1], numbers["last_state"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs.loss, numbers["loss"], rtol=1e-5, atol=1e-5)


def test_without_the_package(tmp_path):
    python = build_minimal_environment(sys.executable, tmp_path / "environment")
    environment = {"HF_HOME": str(tmp_path / "hf"), "PATH": "/usr/bin:/bin"}
    found = subprocess.run([python, "-c", RUN, FOLDER], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert found.returncode == 0, found.stderr
    assert max(map(float, found.stdout.split())) < 1e-4
