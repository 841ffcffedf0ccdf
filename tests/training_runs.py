"""Tiny training runs for the tests, in this process, in one of their own and under a launcher."""

import json
import os
import subprocess
import sys
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file

from energy_transformer.training.masked_image_modeling import MaskedImageModelingTraining
from energy_transformer.training.masked_image_modeling_arguments import MaskedImageModelingArguments
from energy_transformer.training.monitoring import LOG
from energy_transformer.training.parsing import parse_arguments

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "train_masked_image_modeling.py"
DEMO = ROOT / "configuration" / "training" / "demo.yaml"
TINY = [
    "--max_train_samples=64", "--max_eval_samples=16", "--per_device_train_batch_size=8", "--eval_steps=1000",
    "--max_train_steps=12", "--num_visual_samples=1", "--logging_steps=1", "--warmup_ratio=0",
    "--config_overrides=hidden_size=16,head_dim=8,intermediate_size=32,num_steps=2",
]  # fmt: skip
OPTIONS = ["--config=demo", "--cpu", *TINY]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
}


def build(output_dir, *words, kind=MaskedImageModelingTraining):
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    args = parse_arguments([*TINY, f"--output_dir={output_dir}", *words], DEMO, MaskedImageModelingArguments)
    return kind(args)


def train(output_dir, *words, **options):
    return build(output_dir, *words, **options).run()


def launcher(config, output_dir, *words, script=SCRIPT):
    """The command of a run with a launch file of configuration/accelerate."""
    accelerate = Path(sys.executable).with_name("accelerate")
    file = ROOT / "configuration" / "accelerate" / f"{config}.yaml"
    return [accelerate, "launch", "--config_file", file, script, *OPTIONS, f"--output_dir={output_dir}", *words]


def script(output_dir, *words):
    return [sys.executable, SCRIPT, *OPTIONS, f"--output_dir={output_dir}", *words]


def finish(command, timeout=300, environment=ENVIRONMENT):
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)


def start(command, output):
    return subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=output, stderr=output, text=True, start_new_session=True
    )


def log(folder):
    return [json.loads(line) for line in (Path(folder) / LOG).read_text().splitlines()]


def losses(folder):
    return {line["step"]: line["loss"] for line in log(folder) if "loss" in line}


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")
