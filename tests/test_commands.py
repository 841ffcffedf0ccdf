"""The command `energy-transformer`: what it lists, what it imports and when, and a training through it."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from training_runs import ENVIRONMENT, OPTIONS

import energy_transformer_command
from energy_transformer.attention_backends import ATTENTION_BACKENDS
from energy_transformer.commands import env, train
from energy_transformer.commands.train import TASKS
from energy_transformer.training.graph_arguments import GraphClassificationArguments, NodeClassificationArguments
from energy_transformer.training.image_classification_arguments import ImageClassificationArguments
from energy_transformer.training.masked_image_modeling_arguments import MaskedImageModelingArguments
from energy_transformer.training.recipes import configuration_folder, recipes
from energy_transformer.training.resumption import command_of, resuming
from energy_transformer.utils.errors import UserError

ROOT = Path(__file__).parents[1]
NAMES = sorted(energy_transformer_command.commands())
HELP_WITHOUT_TORCH = """
import sys
import energy_transformer_command
sys.argv = ["energy-transformer", "--help"]
try:
    energy_transformer_command.main()
except SystemExit as leaving:
    assert leaving.code == 0
assert not {"torch", "transformers", "numpy", "energy_transformer"} & set(sys.modules)
"""


def command(*words, module=("-m", "energy_transformer"), cwd=None):
    line = [sys.executable, *module, *words]
    return subprocess.run(line, capture_output=True, text=True, timeout=300, env=ENVIRONMENT, cwd=cwd)


def test_help_lists_each_command_with_a_sentence_and_imports_none():
    done = command(module=("-c", HELP_WITHOUT_TORCH))
    assert done.returncode == 0, done.stderr
    listed = dict(re.findall(r"^  (\w+) +(\S.*)$", done.stdout, re.MULTILINE))
    assert sorted(listed) == NAMES and {"convert", "env", "evaluate", "inspect", "push", "reconstruct", "train"} <= set(
        NAMES
    )
    for sentence in listed.values():
        assert re.fullmatch(r"[A-Z].*[^.]\.", sentence) and len(sentence) < 120


@pytest.mark.parametrize("name", NAMES)
def test_each_command_tells_its_options(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"energy-transformer {name}"])
    try:
        importlib.import_module(f"energy_transformer.commands.{name}").main(["--help"])
    except SystemExit as leaving:
        assert leaving.code == 0
    assert capsys.readouterr().out.startswith(f"usage: energy-transformer {name}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "error: there is no command 'trian', did you mean 'train'? (app, convert, "),
        ([], "error: name a command (app, convert, "),
        (["--version"], "error: there is no command '--version' (app, convert, "),
    ],
)
def test_a_command_that_is_none_is_one_line(words, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["energy-transformer", *words])
    with pytest.raises(SystemExit) as leaving:
        energy_transformer_command.main()
    printed = capsys.readouterr().err
    assert leaving.value.code == 2 and printed.startswith(message) and printed.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "masked-image-modelling"], "did you mean 'masked-image-modeling'?"),
        (["train", "masked_image_modeling", "--lerning_rate=1"], "did you mean '--learning_rate'?"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(words, message):
    done = command(*words)
    assert done.returncode == 2 and not done.stdout
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_each_task_has_a_name_as_it_is_typed_and_recipes(monkeypatch, capsys):
    graphs = GraphClassificationArguments, NodeClassificationArguments
    for arguments_class in (MaskedImageModelingArguments, ImageClassificationArguments, *graphs):
        name = arguments_class.task.replace("_", "-")
        assert TASKS[name].__name__ == arguments_class.task and recipes(arguments_class.task)
    monkeypatch.setattr(sys, "argv", ["energy-transformer train"])
    train.main(["--help"])
    text = capsys.readouterr().out
    assert all(name in text and function.__doc__ in text for name, function in TASKS.items())
    with pytest.raises(UserError, match=r"^name a task \(masked-image-modeling, "):
        train.main([])


def test_a_launcher_trains_by_the_name_of_a_recipe_from_any_folder(tmp_path):
    """With the launch file that `env` finds; the words after the task are the script's."""
    launch_file = command("env", "--launch_file", "cpu", cwd=tmp_path).stdout.strip()
    assert Path(launch_file) == configuration_folder() / "accelerate" / "cpu.yaml"
    launch = ("-m", "accelerate.commands.launch", "--config_file", launch_file, "-m", "energy_transformer")
    done = command("train", "masked-image-modeling", *OPTIONS, "--output_dir=run", module=launch, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "training: 12 steps" in done.stdout and (tmp_path / "run" / "model.safetensors").is_file()


def test_the_command_that_a_run_tells_is_one_that_can_be_typed(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["energy-transformer train masked-image-modeling", "--config=demo"])
    args = MaskedImageModelingArguments(output_dir="my runs/a")
    start = "energy-transformer train masked-image-modeling --output_dir"
    assert resuming(args) == f"{start} 'my runs/a' --resume_from_checkpoint latest"
    assert command_of(args) == "energy-transformer train masked-image-modeling '--output_dir=my runs/a'"


def test_scripts_are_doors_to_the_same_functions():
    doors = {
        "convert_checkpoint": "convert",
        "evaluate_masked_image_modeling": "evaluate",
        "inspect_model": "inspect",
        "push_to_hub": "push",
        "reconstruct": "reconstruct",
        "train_image_classification": "train",
        "train_masked_image_modeling": "train",
    }
    for script, name in doors.items():
        text = (ROOT / "scripts" / f"{script}.py").read_text()
        function = script.removeprefix("train_") if name == "train" else "main"
        assert f"from energy_transformer.commands.{name} import {function}\n" in text
        assert f"run_script({function})" in text and text.count("\n") < 12


def test_a_launch_file_that_is_none_is_told():
    with pytest.raises(UserError, match=r"^launch_file multi_gpo is none of cpu, .* did you mean 'multi_gpu'\?"):
        env.main(["--launch_file=multi_gpo"])


def test_env_tells_what_a_report_of_a_bug_needs(capsys):
    env.main([])
    told = dict(re.split(r"  +", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    import torch
    import transformers

    assert told["torch"] == torch.__version__ and told["transformers"] == transformers.__version__
    assert told["cpu"].endswith(f"{torch.get_num_threads()} of {os.cpu_count()} threads")
    assert told["auto on cpu"] == "chunked for 65 to 4097 tokens"
    assert told["why"].startswith('"auto" is eager where')
    assert told["configuration"] == str(configuration_folder())
    if not torch.cuda.is_available():
        assert "triton" in ATTENTION_BACKENDS and told["triton"].startswith("not here: ")
