"""Which recipe a run takes, what beats it, and what `--help` tells of it."""

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from energy_transformer import EnergyTransformerConfig, EnergyTransformerForMaskedImageModeling
from energy_transformer.training.arguments import SYNONYMS
from energy_transformer.training.checkpoint_evaluation_arguments import EvaluationArguments
from energy_transformer.training.image_classification_arguments import ImageClassificationArguments
from energy_transformer.training.masked_image_modeling_arguments import MaskedImageModelingArguments
from energy_transformer.training.model_configuration import configure
from energy_transformer.training.parsing import parse_arguments
from energy_transformer.training.recipes import configuration_folder
from energy_transformer.utils.errors import UserError

ROOT = Path(__file__).parents[1]
CLASSES = [MaskedImageModelingArguments, ImageClassificationArguments, EvaluationArguments]


def parse(*words, arguments_class=MaskedImageModelingArguments):
    return parse_arguments(words, None, arguments_class)


@pytest.mark.parametrize("words", [["--num_train_epochs=3"], ["--config=demo", "--num-train-epochs", "3"]])
def test_epochs_on_the_command_line_beat_steps_of_the_recipe(words):
    assert parse().max_train_steps == 8000
    args = parse(*words)
    assert (args.num_train_epochs, args.max_train_steps) == (3, None)
    assert parse(*words, "--max_train_steps=7").max_train_steps == 7


def test_epochs_of_a_recipe_do_not_beat_its_steps(tmp_path):
    (tmp_path / "recipe.yaml").write_text("num_train_epochs: 3\nmax_train_steps: 5\n")
    assert parse(f"--config={tmp_path / 'recipe.yaml'}").max_train_steps == 5


@pytest.mark.parametrize(
    ("words", "output_dir"),
    [
        ([], "outputs/demo"),
        (["--dataset_name=demo"], "outputs/demo"),
        (["--dataset_name=uoft-cs/cifar10"], "outputs/cifar10"),
        (["--dataset-name", "uoft-cs/cifar100"], "outputs/cifar100"),
        (["--dataset_name=ILSVRC/imagenet-1k"], "outputs/imagenet"),
        (["--dataset_name=other/set", "--config=cifar10"], "outputs/cifar10"),
        (["--train_dir=images", "--config=configuration/training/cifar100.yaml"], "outputs/cifar100"),
    ],
)
def test_a_dataset_gets_its_recipe(words, output_dir, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert parse(*words).output_dir == output_dir


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--dataset_name=food101"],
            "dataset_name food101 has no recipe of its own: choose one with --config, of cifar10, cifar100, demo, imag",
        ),
        (["--dataset_name=cifar10"], r"of cifar10, cifar100, demo, imagenet, did you mean 'uoft-cs/cifar10'\?"),
        (["--train_dir=images"], "train_dir images has no recipe of its own: choose one with --config, of cifar10"),
        (["--config=imagnet"], r"--config imagnet is neither a file nor a recipe .*did you mean 'imagenet'\?"),
    ],
)
def test_what_has_no_recipe_is_told_which_there_are(words, message):
    with pytest.raises(UserError, match=message) as error:
        parse(*words)
    assert "\n" not in str(error.value)


def test_each_task_has_its_own_recipes():
    assert parse(arguments_class=ImageClassificationArguments).output_dir == "outputs/demo_classification"
    with pytest.raises(UserError, match=r"choose one with --config, of demo_classification, mnist5k_classification$"):
        parse("--dataset_name=uoft-cs/cifar10", arguments_class=ImageClassificationArguments)


@pytest.mark.parametrize("text", ["mixed_precision: no", "mixed_precision: 'no'", "mixed_precision: off"])
def test_no_is_a_precision_in_yaml_too(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(text)
    assert parse(f"--config={tmp_path / 'recipe.yaml'}").mixed_precision == "no"


def test_numbers_may_be_written_with_an_exponent(tmp_path):
    (tmp_path / "recipe.yaml").write_text("max_train_steps: 1e3\neval_steps: 1.0e+2\n")
    args = parse(f"--config={tmp_path / 'recipe.yaml'}", "--logging_steps=2e1", "--checkpointing_steps=1e2")
    assert (args.max_train_steps, args.logging_steps) == (1000, 20)
    assert (args.eval_steps, args.checkpointing_steps) == ("100", "100")


@pytest.mark.parametrize("value", ["1.5", "1e-1", "inf", "nan", "x"])
def test_what_is_no_whole_number_is_refused(value, capsys):
    with pytest.raises(SystemExit):
        parse(f"--max_train_steps={value}")
    assert f"argument --max_train_steps/--max-train-steps: invalid int value: '{value}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning_rate: 1", r"unknown option in .*recipe.yaml: lerning_rate, did you mean 'learning_rate'\?"),
        ("hub_token: 'api_secret", "is not valid YAML: .*, line 1"),
        ("seed: " + "9" * 5000, "is not valid YAML: "),
        ("seed: " + "[" * 5000, "is not valid YAML: "),
        ("\0", "is not valid YAML: "),
        (b"\xff\xfe\xfa", "is not valid YAML: "),
    ],
    ids=["key", "token", "digits", "depth", "control", "bytes"],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as error:
        parse(f"--config={path}")
    assert "\n" not in str(error.value) and "api_secret" not in str(error.value)


def test_a_value_that_a_recipe_may_not_have_is_told_with_its_file(tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text("seed: many")
    with pytest.raises(SystemExit):
        parse(f"--config={tmp_path / 'recipe.yaml'}")
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'recipe.yaml'}: argument --seed: invalid int value")


def test_a_mistyped_field_of_the_model_is_told_what_was_meant():
    with pytest.raises(UserError, match=r"'hiden_size=3' is not 'field=value'.*, did you mean 'hidden_size'\?"):
        configure(MaskedImageModelingArguments(config_overrides="hiden_size=3"))


@pytest.mark.parametrize("given", sorted(SYNONYMS))
def test_names_of_other_programs_are_known(given, capsys):
    with pytest.raises(SystemExit):
        parse(f"--{given}=1")
    assert f"did you mean '{SYNONYMS[given]}'?" in capsys.readouterr().err
    option = SYNONYMS[given].split()[0].lstrip("-")
    assert option in {each.name for each in fields(MaskedImageModelingArguments)}, "it is an option of ours"
    assert given not in {each.name for each in fields(MaskedImageModelingArguments)}


@pytest.mark.parametrize("arguments_class", CLASSES)
def test_each_option_has_a_sentence_and_a_group(arguments_class):
    for each in fields(arguments_class):
        assert each.metadata["group"], each.name
        text = each.metadata["help"]
        assert re.fullmatch(r"['A-Z].*\.", text) and len(text.split()) >= 4, each.name


def help_of(script, *words):
    command = [sys.executable, ROOT / "scripts" / script, "--help", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and not done.stderr
    return " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "learning_rate", "recipe"),
    [
        ([], "0.006", "demo.yaml"),
        (["--dataset_name=uoft-cs/cifar10"], "0.001", "cifar10.yaml"),
        (["--config", "imagenet"], "0.0005", "imagenet.yaml"),
        (["--config", "imagenet", "--learning_rate=0.25"], "0.25", "imagenet.yaml"),
    ],
)
def test_help_tells_the_defaults_of_the_recipe_in_force(words, learning_rate, recipe):
    text = help_of("train_masked_image_modeling.py", *words)
    assert f"after the warm-up. (default: {learning_rate})" in text
    assert re.search(rf"Defaults are those of \S*{recipe}\.", text)
    for heading in ("run:", "data:", "model:", "optimizer and schedule:", "masks:", "the Hub:"):
        assert f" {heading} --" in text


def test_help_is_told_where_there_is_no_recipe():
    assert "after the warm-up. (default: 0.0005)" in help_of("train_masked_image_modeling.py", "--train_dir=x")
    assert " labels: --label_column_name" in help_of("train_image_classification.py")
    assert "--no_horizontal_flip Turn horizontal_flip off." in help_of("train_image_classification.py")


MODELS = sorted((configuration_folder() / "models").glob("*.json"))


@pytest.mark.parametrize("file", MODELS, ids=lambda file: file.stem)
def test_every_named_model_can_be_built(file):
    options = json.loads(file.read_text())
    with torch.device("meta"):
        config = configure(MaskedImageModelingArguments(config_name=file.stem))
        model = EnergyTransformerForMaskedImageModeling(config)
    assert {name: getattr(config, name) for name in options} == options
    attention = model.energy_transformer.layers[0].attention
    assert bool(attention.norm_groups) == file.stem.startswith("normalized") == (config.descent_gradient == "state")


def test_the_papers_model_is_the_default():
    named, default = (configure(MaskedImageModelingArguments(config_name=name)) for name in ("paper_imagenet", None))
    assert named.to_dict() == default.to_dict()


@pytest.mark.parametrize("recipe", ["demo", "cifar10"])
def test_a_model_of_the_command_line_beats_the_recipes(recipe):
    """All of it: the recipe's changes are of another model."""
    config = configure(parse(f"--config={recipe}", "--config_name=paper_mnist5k", "--config_overrides=num_steps=5"))
    named = configure(MaskedImageModelingArguments(config_name="paper_mnist5k"))
    assert config.to_dict() == named.to_dict() | {"num_steps": 5}


def test_a_checkpoint_of_the_command_line_beats_the_recipes_model():
    words = "--dataset_name=mnist5k", "--model_name_or_path=outputs/digits"
    args = parse(*words, arguments_class=ImageClassificationArguments)
    assert args.config_name is None and args.model_name_or_path == "outputs/digits" and not args.horizontal_flip


def test_a_model_by_file_and_what_is_none(tmp_path):
    EnergyTransformerConfig(hidden_size=12).save_pretrained(tmp_path)
    for name in (tmp_path, tmp_path / "config.json"):
        assert configure(MaskedImageModelingArguments(config_name=str(name))).hidden_size == 12
    (tmp_path / "broken.json").write_text("{")
    for options, told in [
        ({"config_name": "normalised_cifar10"}, "did you mean 'normalized_cifar10'"),
        ({"config_name": str(tmp_path / "broken.json")}, "broken.json holds no configuration"),
        ({"config_name": "paper_cifar10", "model_name_or_path": str(tmp_path)}, "give one of them"),
    ]:
        with pytest.raises(UserError, match=told):
            configure(MaskedImageModelingArguments(**options))
