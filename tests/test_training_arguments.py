"""Options: YAML first, the command line wins, and every mistake is one line and exit code 2."""

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from energy_transformer.training.masked_image_modeling import build_config
from energy_transformer.training.masked_image_modeling_arguments import MaskedImageModelingArguments
from energy_transformer.training.parsing import parse_arguments
from energy_transformer.utils.errors import UserError

RECIPES = sorted((Path(__file__).parents[1] / "configuration" / "training").glob("*.yaml"))
OTHER_TASKS = ("mutag", "mutag_anomalies")  # whose options are others, as are those of classifications
RECIPES = [path for path in RECIPES if "classification" not in path.stem and path.stem not in OTHER_TASKS]
DEMO = next(path for path in RECIPES if path.stem == "demo")


def parse(words, default_config):
    return parse_arguments(words, default_config, MaskedImageModelingArguments)


def write_yaml(folder, **options):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(options))
    return path


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_valid_and_all_their_options_arrive(recipe):
    args = parse([], recipe)
    for name, value in yaml.safe_load(recipe.read_text()).items():
        if name != "config_overrides":
            assert getattr(args, name) == value, name
    config = build_config(args)
    for name, value in yaml.safe_load(recipe.read_text()).get("config_overrides", {}).items():
        assert getattr(config, name) == value, name


def test_all_recipes_are_there():
    assert [path.stem for path in RECIPES] == ["cifar10", "cifar100", "demo", "imagenet"]


def test_imagenet_is_the_papers_recipe():
    args = parse([], next(path for path in RECIPES if path.stem == "imagenet"))
    config = build_config(args)
    paper = {
        "image_size": 224, "patch_size": 16, "hidden_size": 768, "num_attention_heads": 12, "head_dim": 64,
        "intermediate_size": 3072, "num_steps": 12, "step_size": 0.1, "initialization": "paper",
        "initializer_range": 0.002, "hopfield_initializer_range": 0.02, "mask_replace_probability": 0.9,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in paper} == paper
    assert round(config.mask_ratio * 196) == 100
    assert (args.learning_rate, args.min_learning_rate, args.weight_decay) == (5e-4, 5e-7, 0.05)
    assert (args.adam_beta1, args.adam_beta2, args.max_grad_norm) == (0.9, 0.99, 1.0)
    assert (args.num_train_epochs, args.warmup_ratio) == (100, 0.02)


def test_the_command_line_wins_over_the_file(tmp_path):
    recipe = write_yaml(tmp_path, learning_rate=1e-2, seed=3, image_size=[32, 48], config_overrides={"num_steps": 5})
    args = parse(["--config", str(recipe), "--learning_rate", "1e-3"], DEMO)
    assert (args.learning_rate, args.seed, args.image_size) == (1e-3, 3, [32, 48])
    assert args.max_train_steps is None, "the default file is not read as well"
    config = build_config(args)
    assert (config.num_steps, list(config.image_size)) == (5, [32, 48])
    assert build_config(parse(["--config", str(recipe), "--image_size", "64"], DEMO)).image_size == 64


def test_overrides_of_the_command_line_are_added_to_those_of_the_file():
    config = build_config(parse(["--config_overrides", "num_steps=5,head_dim=8"], DEMO))
    assert (config.num_steps, config.head_dim, config.hidden_size, config.image_size) == (5, 8, 64, 32)


def test_overrides_of_the_model(tmp_path):
    text = "image_size=[32,48],patch_size=4,hidden_size=64,attend_to_self=false,norm_type=layer_norm,step_size=1"
    config = build_config(MaskedImageModelingArguments(config_overrides=text))
    assert (list(config.image_size), config.hidden_size, config.step_size) == ([32, 48], 64, 1)
    assert config.attend_to_self is False and config.norm_type == "layer_norm"


def test_every_option_has_a_help_text():
    assert all(option.metadata["help"].endswith(".") for option in fields(MaskedImageModelingArguments))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--no_such_option", "1"], "unrecognized arguments: --no_such_option 1"),
        (["--learn", "1"], "unrecognized arguments: --learn 1"),
        (["--config"], "argument --config: expected one argument"),
        (["--seed", "many"], "argument --seed: invalid int value: 'many'"),
        (["--mixed_precision", "fp8"], "invalid choice: 'fp8'"),
    ],
)
def test_words_that_cannot_be_parsed(words, message, capsys):
    with pytest.raises(SystemExit) as leaving:
        parse(words, DEMO)
    printed = capsys.readouterr()
    assert leaving.value.code == 2
    assert message in printed.err and printed.err.count("\n") == 1 and not printed.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_ratio": 1.0}, "mask_ratio must lie between 0 and 1, both excluded, got 1.0"),
        ({"mask_ratio": 0.0}, "mask_ratio must lie between 0 and 1, both excluded, got 0.0"),
        ({"mask_replace_probability": 1.2}, "mask_replace_probability must lie in"),
        ({"train_val_split": 1.5}, "train_val_split must lie between"),
        ({"adam_beta1": 1.5}, r"adam_beta1 must lie in \[0, 1\), got 1.5"),
        ({"seed": 2**40}, r"seed must be below 2\*\*32"),
        ({"max_train_steps": 0}, "max_train_steps must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be greater than 0, got 0.0"),
        ({"dataloader_num_workers": -1}, "dataloader_num_workers must not be negative, got -1"),
        ({"warmup_ratio": 4.0}, "warmup_ratio must be at most 1, got 4.0"),
        (
            {"min_learning_rate": 1e-5, "lr_scheduler_type": "linear"},
            "min_learning_rate needs lr_scheduler_type cosine",
        ),
        ({"min_learning_rate": 1.0}, "min_learning_rate must be at most learning_rate 0.0005, got 1.0"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative, got -0.1"),
        ({"checkpointing_steps": "often"}, "checkpointing_steps must be 'epoch' or a number above 0, got 'often'"),
        ({"eval_steps": "0"}, "eval_steps must be 'epoch' or a number above 0, got '0'"),
        ({"image_size": [32, 32, 3]}, r"image_size must be one number or height and width, .* got \[32, 32, 3\]"),
        ({"image_size": [30], "patch_size": [4]}, "image_size must be a multiple of patch_size, got 30 and 4"),
        ({"config_overrides": "hidden_sizes=3"}, "'hidden_sizes=3' is not 'field=value'"),
        ({"config_overrides": "hidden_size"}, "'hidden_size' is not 'field=value'"),
        ({"config_overrides": "hidden_size=big"}, "'hidden_size' expected int, got str"),
        ({"model_name_or_path": "nowhere/at all"}, "cannot load 'nowhere/at all'"),
    ],
)
def test_values_that_are_not_allowed(options, message):
    with pytest.raises(UserError, match=message) as error:
        build_config(MaskedImageModelingArguments(**options))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nlerning_rate: 2\n", "unknown option in .*: lerning_rate"),
        ("- seed\n", "must hold options as 'name: value'"),
        ("seed: [1\n", "is not valid YAML"),
    ],
)
def test_files_that_are_not_allowed(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        parse(["--config", str(path)], DEMO)
    assert "\n" not in str(error.value)


def test_a_missing_file():
    with pytest.raises(UserError, match=r"--config nowhere\.yaml: No such file or directory"):
        parse(["--config", "nowhere.yaml"], DEMO)
