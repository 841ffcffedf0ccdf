"""The options that all training scripts share, and how a task's are filled from a YAML file and the command line."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from transformers.hf_argparser import HfArgumentParser

from ..utils.command_line import OneLineErrors
from ..utils.errors import UserError


def option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


# names of options, the test that a value must pass (None is never tested), and what is allowed in words
_Rule = tuple[tuple[str, ...], Callable[[Any], bool], str]


def check(options: Any, rules: list[_Rule]) -> None:
    for names, is_allowed, allowed in rules:
        for name in names:
            value = getattr(options, name)
            if value is not None and not is_allowed(value):
                raise UserError(f"{name} must {allowed}, got {value!r}")


IS_SHARE = (lambda value: 0 < value < 1, "lie between 0 and 1, both excluded")
_COMMON_RULES: list[_Rule] = [
    (("train_val_split",), *IS_SHARE),
    (
        (
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "global_batch_size",
            "max_train_steps",
            "checkpoints_total_limit",
            "num_visual_samples",
            "logging_steps",
            "sample_steps",
            "shuffle_buffer_size",
            "ddp_timeout",
        ),
        lambda value: value >= 1,
        "be at least 1",
    ),
    (("adam_beta1", "adam_beta2"), lambda value: 0 <= value < 1, "lie in [0, 1)"),
    (("ema_decay",), *IS_SHARE),
    (("warmup_ratio",), lambda value: value <= 1, "be at most 1"),
    (("layer_decay",), lambda value: 0 < value <= 1, "lie in (0, 1]"),
    (("seed",), lambda value: value < 2**32, "be below 2**32"),
    (("learning_rate", "num_train_epochs", "max_grad_norm"), lambda value: value > 0, "be greater than 0"),
    (
        (
            "dataloader_num_workers",
            "max_cached_bytes",
            "min_learning_rate",
            "num_warmup_steps",
            "warmup_ratio",
            "weight_decay",
            "seed",
        ),
        lambda value: value >= 0,
        "not be negative",
    ),
    (
        ("eval_steps", "checkpointing_steps"),
        lambda value: value == "epoch" or (value.isdigit() and int(value) > 0),
        "be 'epoch' or a number above 0",
    ),
    (
        ("image_size", "patch_size"),
        lambda value: 1 <= len(value) <= 2 and min(value) >= 1,
        "be one number or height and width, at least 1",
    ),
]


@dataclass
class CommonArguments:
    """The options that all training scripts share; names are those of transformers' `run_mim_no_trainer.py`.

    Raises:
        UserError: when an option's value is not allowed.
    """

    output_dir: str = option("outputs/training", "Folder for the model, the pictures and the results.")
    overwrite_output_dir: bool = option(False, "Delete what an earlier run left in output_dir.")
    seed: int = option(0, "Seed of the weights, the order of the data and the masks.")

    dataset_name: str = option("demo", "'demo' (embedded photographs), a dataset of the Hub, or a local folder.")
    dataset_config_name: str | None = option(None, "Configuration of the dataset.")
    image_column_name: str | None = option(None, "Column with the images; found by its type when not given.")
    train_dir: str | None = option(None, "Local folder of images or parquet files to train on.")
    validation_dir: str | None = option(None, "Local folder of images or parquet files to evaluate on.")
    train_val_split: float = option(0.15, "Share of the training images held out where no other split exists.")
    max_train_samples: int | None = option(None, "Use only so many training images.")
    max_eval_samples: int | None = option(None, "Use only so many images for evaluation.")
    dataloader_num_workers: int = option(0, "Processes that decode images where they are not decoded once.")
    max_cached_bytes: int = option(2**32, "Decode images once to a file in the datasets cache if it is no larger.")
    on_broken_image: Literal["skip", "error"] = option("skip", "Pass over broken images and count them, or stop.")
    streaming: bool = option(False, "Read training images front to back: for what does not fit. Give max_train_steps.")
    shuffle_buffer_size: int = option(1000, "Images that each worker shuffles at a time when streaming.")

    model_name_or_path: str | None = option(None, "Checkpoint to start from; a new model when not given.")
    config_overrides: str | None = option(None, "Fields of the model's configuration: 'hidden_size=64,num_steps=4'.")
    image_size: list[int] | None = option(None, "Size of the images in pixels: one number, or height and width.")
    patch_size: list[int] | None = option(None, "Size of the patches in pixels: one number, or height and width.")

    per_device_train_batch_size: int = option(32, "Images for each process and step.")
    per_device_eval_batch_size: int = option(128, "Images for each process and step in evaluation.")
    gradient_accumulation_steps: int = option(1, "Batches for each optimizer step.")
    global_batch_size: int | None = option(
        None, "Images for each step of all processes, however many: batches are as large as per_device_... allows."
    )
    num_train_epochs: float = option(10.0, "Passes over the training images, unless max_train_steps is given.")
    max_train_steps: int | None = option(None, "Optimizer steps; overrides num_train_epochs.")
    learning_rate: float = option(5e-4, "Peak learning rate of AdamW.")
    lr_scheduler_type: Literal["cosine", "linear", "constant_with_warmup"] = option("cosine", "After the warm-up.")
    min_learning_rate: float = option(0.0, "Where the cosine ends.")
    num_warmup_steps: int = option(0, "Steps of linear warm-up.")
    warmup_ratio: float = option(0.0, "The same as a share of all steps; used when num_warmup_steps is 0.")
    weight_decay: float = option(0.05, "Of weight matrices; biases, norms, betas, tokens and positions have none.")
    adam_beta1: float = option(0.9, "First beta of AdamW.")
    adam_beta2: float = option(0.99, "Second beta of AdamW.")
    max_grad_norm: float = option(1.0, "Clip the norm of the gradient.")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = option(None, "That of the launch file when not given.")
    cpu: bool = option(False, "Train on the CPU, also where there is a GPU and with several processes (gloo).")
    ddp_timeout: int = option(1800, "Seconds for which a process waits for others, such as for a first download.")
    compile: bool = option(False, "Compile the model with torch.compile.")
    tf32: bool = option(False, "Let matrix products of float32 use TF32 on a GPU that has it.")
    gradient_checkpointing: bool = option(False, "Compute each descent step again in the backward pass: less memory.")
    layer_decay: float = option(1.0, "Scale the learning rate by this for each layer below the head.")
    ema_decay: float | None = option(None, "Evaluate and save an exponential moving average of the weights.")
    horizontal_flip: bool = option(True, "Flip half of the training images.")
    random_resized_crop: list[float] | None = option(None, "Train on crops with this least and greatest share.")
    color_jitter: float = option(0.0, "Change brightness, contrast and saturation by up to this share.")

    eval_steps: str | None = option(None, "Evaluate every N steps or each 'epoch'; at the end in any case.")
    checkpointing_steps: str | None = option(None, "Save the whole state every N steps or each 'epoch'.")
    checkpoints_total_limit: int | None = option(None, "Keep so many saved states, and always the newest and the best.")
    load_best_model_at_end: bool = option(False, "Evaluate and save the saved state with the best held-out figure.")
    resume_from_checkpoint: str | None = option(
        None, "A saved state to go on from: 'latest', its folder, or USER/REPO[@REVISION]."
    )
    trust_state: bool = option(
        False, "Also read a saved state in FSDP's sharded or DeepSpeed's format, which can run code of its author."
    )
    logging_steps: int = option(20, "Report loss, rate, energies and speed every N steps.")
    sample_steps: int | None = option(None, "Write the pictures into samples/step-STEP every N steps.")
    report_to: Literal["none", "tensorboard", "trackio", "wandb"] | None = option(None, "Tracker for the reports.")
    with_tracking: bool = option(False, "The same as report_to tensorboard, where that is not given.")
    num_visual_samples: int = option(8, "Held-out images in the pictures.")

    push_to_hub: bool = option(False, "Push the run to the Hub, in the background.")
    hub_model_id: str | None = option(None, "Repository to push to, USER/REPO; named as output_dir when not given.")
    hub_private_repo: bool = option(False, "Make a new repository private.")
    hub_token: str | None = field(
        default=None,
        repr=False,
        metadata={"help": "Better not: others can see it in the list of processes. `hf auth login` or HF_TOKEN."},
    )
    hub_strategy: Literal["end", "every_save", "checkpoint"] = option(
        "every_save", "Push at the end only, at each saved state too, or these with the state, to be resumed elsewhere."
    )
    license: str = option("apache-2.0", "License of the weights in the model card, as the Hub writes it.")

    def __post_init__(self) -> None:
        check(self, _COMMON_RULES)
        if self.min_learning_rate > self.learning_rate:
            raise UserError(
                f"min_learning_rate must be at most learning_rate {self.learning_rate}, got {self.min_learning_rate}"
            )
        if self.global_batch_size and self.gradient_accumulation_steps != 1:
            raise UserError(
                "gradient_accumulation_steps follows from global_batch_size and the number of processes: give one of "
                f"them, got {self.gradient_accumulation_steps} and {self.global_batch_size}"
            )
        if self.min_learning_rate and self.lr_scheduler_type != "cosine":
            raise UserError(f"min_learning_rate needs lr_scheduler_type cosine, got {self.lr_scheduler_type}")
        if self.hub_model_id and not self.push_to_hub:
            raise UserError("hub_model_id is where push_to_hub pushes: pass --push_to_hub too")
        if self.push_to_hub and self.hub_strategy == "checkpoint" and not self.checkpointing_steps:
            raise UserError("hub_strategy checkpoint pushes the saved states: pass --checkpointing_steps too")
        if self.load_best_model_at_end and not (self.eval_steps and self.checkpointing_steps):
            raise UserError(
                "load_best_model_at_end needs eval_steps and checkpointing_steps: it takes the best of both"
            )


Arguments = TypeVar("Arguments", bound=CommonArguments)


class OptionParser(OneLineErrors, HfArgumentParser):
    """One option for each field of a dataclass, with errors on one line."""


def _as_command_line(path: Path, known: set[str]) -> list[str]:
    """The options of a YAML file as they would stand on the command line, which also converts their types."""
    try:
        options = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(options, dict):
        raise UserError(f"--config {path} must hold options as 'name: value'")
    unknown = sorted(str(name) for name in options if name not in known)
    if unknown:
        raise UserError(f"unknown option in {path}: {', '.join(unknown)} (--help lists every option)")
    if options.get("hub_token") is not None:
        raise UserError(f"hub_token in {path}: a recipe is no place for a token; use `hf auth login` or HF_TOKEN")
    words = []
    for name, value in options.items():
        if isinstance(value, dict):
            value = ",".join(f"{key}={json.dumps(entry)}" for key, entry in value.items())
        if isinstance(value, list):
            words.extend([f"--{name}", *map(str, value)])
        elif value is not None:
            words.append(f"--{name}={value}")
    return words


def parse_arguments(
    argv: Sequence[str],
    default_config: Path,
    arguments_class: type[Arguments],
    description: str | None = None,
) -> Arguments:
    """A task's options: of a YAML file (`--config`, or `default_config`), overridden by the other words of `argv`.

    Raises:
        UserError: for an unreadable file, an unknown key in it, or a value that is not allowed.
        SystemExit: with code 2 and one line for an unknown option or a value of the wrong type.
    """
    config_parser = OneLineErrors(add_help=False, allow_abbrev=False)
    config_parser.add_argument("--config", type=Path, default=default_config)
    config, words = config_parser.parse_known_args(argv)
    parser = OptionParser(arguments_class, description=description, allow_abbrev=False)
    parser.add_argument("--config", help=f"YAML file with options, default: {default_config}")
    known = {each.name for each in fields(arguments_class)}
    overrides_parser = OneLineErrors(add_help=False, allow_abbrev=False)
    overrides_parser.add_argument("--config_overrides", action="append", default=[])
    overrides, words = overrides_parser.parse_known_args([*_as_command_line(config.config, known), *words])
    if overrides.config_overrides:  # those of the file and of the command line, which comes later and wins
        words.append(f"--config_overrides={','.join(overrides.config_overrides)}")
    values = vars(parser.parse_args(words))
    values.pop("config")
    return arguments_class(**values)
