"""The benchmarks run and leave their files; what they measure is not tested."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from energy_transformer import EnergyTransformerForMaskedImageModeling
from energy_transformer.data.image_processing import build_image_processor

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
GPU_CHECK = BENCHMARKS.parent / "scripts" / "gpu_check.py"


def load(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*arguments, script="run.py"):
    return subprocess.run([sys.executable, BENCHMARKS / script, *map(str, arguments)], capture_output=True, text=True)


def test_peak_memory_of_known_allocations():
    def hold_two_of_three():
        first, _ = torch.ones(2**20), torch.ones(2**20)
        del first
        torch.ones(2**18)

    assert load("measure").peak_bytes(hold_two_of_three, torch.device("cpu")) == 2 * 4 * 2**20


@pytest.mark.slow
def test_a_quick_run_leaves_a_table_a_plot_and_the_numbers(tmp_path):
    result = run("--quick", "--device", "cpu", "--output_dir", tmp_path)
    assert result.returncode == 0, result.stderr
    (numbers,) = (tmp_path / "results").glob("*.json")
    results = json.loads(numbers.read_text())
    assert {row["variant"] for row in results["blocks"]} >= {"naive", "eager", "chunked", "eager bf16"}
    assert all(row["seconds"] > 0 for row in results["blocks"] + results["lengths"])
    assert all(row["error"] < 1e-4 for row in results["blocks"] if "bf16" not in row["variant"])
    page = (tmp_path / "RESULTS.md").read_text()
    assert results["machine"] in page and numbers.with_suffix(".png").is_file()


def test_a_mistake_is_one_line():
    result = run("--lumen_checkout", "nowhere")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].endswith(
        "lumen_checkout: there is no energy_transformer/energy_transformers.py in nowhere"
    )


def test_error_against_steps_of_a_saved_model(small_config, tmp_path):
    EnergyTransformerForMaskedImageModeling(small_config).save_pretrained(tmp_path / "model")
    build_image_processor(small_config.image_size).save_pretrained(tmp_path / "model")
    options = ["--max_eval_samples", 8, "--max_steps", 2, "--tolerances", 0.1, "--output_dir", tmp_path]
    result = run(tmp_path / "model", *options, script="steps.py")
    assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / "results" / "quality_by_steps.json").read_text())
    assert [row["steps"] for row in results["by_steps"]] == [0, 1, 2] and results["images"] == 8
    assert results["model"] in (tmp_path / "RESULTS.md").read_text()
    assert (tmp_path / "results" / "quality_by_steps.png").is_file()


def test_how_fast_images_are_decoded():
    done = run("--seconds", 0.01, "--turns", 1, "--side", 64, script="decoding.py")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["size", "500x375", "1024x768", "4000x3000"]


def test_what_a_large_graph_takes():
    done = run("--nodes", 2000, "--edges", 10_000, 20_000, script="large_graphs.py")
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines()[4:]] == ["10,000", "20,000"]


@pytest.mark.slow
def test_what_a_stream_reads():
    done = run(script="stream_division.py")
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines()[2:6]] == ["1.00"] * 4


@pytest.mark.slow
def test_a_trial_of_the_comparison_leaves_its_runs_and_a_table(tmp_path):
    """And a second sitting goes on where the first stopped."""
    models = ["looped transformer", "both, widened", "Hyper-SET"]
    wanted = ["--quick", "--task", "mnist5k", "--output_dir", tmp_path / "strength", "--models", *models]
    for seeds in (1, 2):
        result = run(*wanted, "--seeds", seeds, script="strength.py")
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("test") == 3  # of the new seed alone
    runs = [json.loads(file.read_text()) for file in (tmp_path / "strength" / "mnist5k").glob("*-test-*.json")]
    looped, energy, _ = ([one for one in runs if one["model"] == model] for model in models)
    assert len(looped) == len(energy) == 2 and looped[0]["rises"] is None and energy[0]["pairs"] == 128 * 12
    assert 0 <= looped[0]["parameters"] - energy[0]["parameters"] < 64
    assert all(len(each) == 13 for run in runs for each in run["along_the_steps"].values())
    assert energy[0]["rises_by_step_size"]["1"] == 0.0
    page = (tmp_path / "strength.md").read_text()
    assert all(f"| {model} |" in page for model in models) and (tmp_path / "strength.png").is_file()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it would begin")
def test_without_a_gpu_its_check_ends_with_one_line():
    done = subprocess.run([sys.executable, GPU_CHECK], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: there is no CUDA device")
    assert len(done.stderr.splitlines()) == 1 and done.stdout == ""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="triton is made for Linux alone")
def test_the_parts_for_a_gpu_run_on_a_cpu(tmp_path):
    """Kernels in Triton's interpreter, the reference numbers, and the eager losses."""
    options = ["--device", "cpu", "--quick", "--parts", "a,b,c", "--output_dir", tmp_path]
    own = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, GPU_CHECK, *options], env=own, capture_output=True, text=True)
    results = json.loads((tmp_path / "results.json").read_text())
    parts = results["parts"]
    assert {letter: part["state"] for letter, part in parts.items()} == dict.fromkeys("abc", "done"), results
    passed = {row["test"].rpartition(":")[2]: row["passed"] for row in parts["a"]["tables"]["tests"]}
    assert passed["test_every_length_width_and_number_of_axes"] >= 28
    assert all(row["result"] == "passed" for row in parts["c"]["tables"]["losses"])
    assert "## c: Training with every backend and precision" in (tmp_path / "results.md").read_text()


def test_a_part_that_fails_leaves_its_traceback_and_the_next_goes_on(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from gpu.record import Run

    def fail():
        raise ArithmeticError("of a row")

    run = Run(torch.device("cpu"), True, tmp_path)
    with run.running("x", "A part"):
        run.attempt("rows", {"name": "first"}, fail)
        run.add("rows", name="second", seconds=0.5)
        raise ArithmeticError("of the part")
    with run.running(
        "y",
        "Another",
    ):
        run.deadline = 0.0
        run.attempt("rows", {"name": "third"}, fail)
    found = json.loads((tmp_path / "results.json").read_text())["parts"]
    assert [part["state"] for part in found.values()] == ["failed", "done"] and "of the part" in found["x"]["traceback"]
    assert found["x"]["tables"]["rows"][0] == {
        "name": "first",
        "result": "failed",
        "error": "ArithmeticError: of a row",
    }
    assert found["y"]["tables"]["rows"] == [{"name": "third", "result": "out of time"}]
