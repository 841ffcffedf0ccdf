"""A mistake on the command line is one line, suggests what was meant, and repeats no token."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from energy_transformer.training.image_arguments import ImageArguments
from energy_transformer.utils.command_line import OneLineErrors
from energy_transformer.utils.suggestions import did_you_mean
from energy_transformer.utils.tokens import hide_tokens

ROOT = Path(__file__).parents[1]
TOKEN = "api_org_0123456789"
NEAR = (
    "hub_token",
    "hub_tokn",
    "hub-token",
    "hubtoken",
    "HUB_TOKEN",
    "hub_tkn",
    "hub_key",
    "hf_token",
    "token",
    "tokne",
)


@pytest.mark.parametrize("name", NEAR)
@pytest.mark.parametrize("form", ["--{}={}", "--{} {}", "-{}={}", "{}={}", "{} {}", "--{}:{}", "--{} {} --seed=x"])
def test_no_value_of_an_option_near_hub_token_is_told(name, form):
    words = form.format(name, TOKEN).split(" ")
    told = hide_tokens(f"unrecognized arguments: {' '.join(words)}", words)
    assert TOKEN not in told and name in told


def test_a_token_without_a_space_is_not_told():
    words = [f"--hub_token{TOKEN}"]
    assert TOKEN not in hide_tokens(words[0], words)


def test_a_short_value_hides_no_part_of_other_words():
    words = ["--hub_tokn", "1", "--seed", "a1"]
    assert hide_tokens("--hub_tokn 1 --seed a1", words) == "--hub_tokn … --seed a1"


@pytest.mark.parametrize("name", sorted({option.name for option in fields(ImageArguments)} - {"hub_token"}))
def test_the_values_of_all_other_options_are_told(name):
    words = [f"--{name}=value", "--config_overrides", "use_cls_token=false"]
    assert hide_tokens(" ".join(words), words) == " ".join(words)


@pytest.mark.parametrize(
    "script", ["train_masked_image_modeling.py", "push_to_hub.py", "train_image_classification.py"]
)
@pytest.mark.parametrize("form", ["--hub_tokn={}", "--tokn {}", "--hub-tokne {} --seed=1"])
def test_scripts_keep_a_mistyped_token_to_themselves(script, form, capsys):
    words = form.format(TOKEN).split(" ")
    done = subprocess.run([sys.executable, ROOT / "scripts" / script, *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert TOKEN not in done.stdout + done.stderr and done.stderr.count("\n") == 1


def parser():
    made = OneLineErrors(allow_abbrev=False)
    made.add_argument("--learning_rate", "--learning-rate", type=float)
    made.add_argument("--schedule", choices=["cosine", "linear"])
    made.synonyms = {"lr": "--learning_rate"}
    return made


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lerning_rate=1"], "unrecognized arguments: --lerning_rate=1, did you mean '--learning_rate'?"),
        (["--lerning-rate", "1"], "unrecognized arguments: --lerning-rate 1, did you mean '--learning_rate'?"),
        (["--lr", "1"], "unrecognized arguments: --lr 1, did you mean '--learning_rate'?"),
        (["--nothing_like_it"], "unrecognized arguments: --nothing_like_it (--help"),
        (["--schedule=cosin"], "did you mean 'cosine'?"),
    ],
)
def test_what_was_perhaps_meant_is_told(words, message, capsys):
    with pytest.raises(SystemExit) as leaving:
        parser().parse_args(words)
    printed = capsys.readouterr().err
    assert leaving.value.code == 2 and message in printed and printed.count("\n") == 1


def test_only_a_near_name_is_suggested():
    assert did_you_mean("hiden_size", ["hidden_size", "head_dim"]) == ", did you mean 'hidden_size'?"
    assert did_you_mean("width", ["hidden_size", "head_dim"]) == ""
