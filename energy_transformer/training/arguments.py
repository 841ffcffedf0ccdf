"""The options that all training scripts share, declared once; those of images and of a task have their own files."""

from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

from ..utils.errors import UserError
from ..utils.option_parser import JoinedByCommas, whole_number
from .option_rules import COMMON_RULES, check


def option(default: Any, help: str, group: str | None = None, **more: Any) -> Any:
    """A field of a dataclass of options; `group` is the heading in `--help` that it stands under."""
    return field(default=default, metadata={"help": help, "group": group, **more})


_run = partial(option, group="run")
_data = partial(option, group="data")
_model = partial(option, group="model")
_steps = partial(option, group="batches and steps")
_optimizer = partial(option, group="optimizer and schedule")
_device = partial(option, group="device and speed")
_saving = partial(option, group="evaluation, saving and resuming")
_report = partial(option, group="reports and pictures")
_hub = partial(option, group="the Hub")

# What other programs call an option; the words for it here.
SYNONYMS = {
    "torch_compile": "--compile",
    "save_total_limit": "--checkpoints_total_limit",
    "save_steps": "--checkpointing_steps",
    "save_strategy": "--checkpointing_steps",
    "eval_strategy": "--eval_steps",
    "bf16": "--mixed_precision bf16",
    "fp16": "--mixed_precision fp16",
    "use_cpu": "--cpu",
    "no_cuda": "--cpu",
    "warmup_steps": "--num_warmup_steps",
    "lr": "--learning_rate",
    "epochs": "--num_train_epochs",
    "batch_size": "--per_device_train_batch_size",
    "train_batch_size": "--per_device_train_batch_size",
    "eval_batch_size": "--per_device_eval_batch_size",
    "num_workers": "--dataloader_num_workers",
    "max_steps": "--max_train_steps",
    "lr_scheduler": "--lr_scheduler_type",
    "project_dir": "--output_dir",
    "resume": "--resume_from_checkpoint latest",
    "token": "--hub_token",
}


@dataclass
class CommonArguments:
    """The options that all training scripts share; names are those of transformers' `run_mim_no_trainer.py`.

    Raises:
        UserError: when an option's value is not allowed.
    """

    task: ClassVar[str]

    output_dir: str = _run("outputs/training", "The folder for the model, the pictures and the results.")
    overwrite_output_dir: bool = _run(False, "Delete what an earlier run left in output_dir.")
    seed: int = _run(0, "The seed of the weights, of the order of the data and of the masks.")

    dataset_name: str = _data(
        "demo", "'demo' (embedded photographs), 'mnist5k' (5,000 digits), a dataset of the Hub, or a local folder."
    )
    train_dir: str | None = _data(None, "A local folder of images or parquet files to train on.")
    train_val_split: float = _data(0.15, "The share of the training data to hold out where no other split exists.")
    max_train_samples: int | None = _data(None, "Train on at most this many images or graphs.")
    max_eval_samples: int | None = _data(None, "Evaluate on at most this many images or graphs.")

    model_name_or_path: str | None = _model(None, "The checkpoint to start from. The model is new when not given.")
    config_name: str | None = _model(
        None,
        "The configuration of a new model: a name of configuration/models, a JSON file or a repository of the Hub.",
    )
    config_overrides: str | None = _model(
        None,
        "Fields of the model's configuration to change, such as 'hidden_size=64,num_steps=4'.",
        action=JoinedByCommas,
    )

    per_device_train_batch_size: int = _steps(32, "The images or graphs that each process takes at once in training.")
    per_device_eval_batch_size: int = _steps(128, "The images or graphs that each process takes at once in evaluation.")
    gradient_accumulation_steps: int = _steps(1, "The batches that each process takes for one optimizer step.")
    global_batch_size: int | None = _steps(
        None,
        "The images or graphs of a step of all processes, however many there are, so that another number of them can "
        "resume. Batches are then as large as per_device_train_batch_size allows.",
    )
    num_train_epochs: float = _steps(
        10.0, "Pass this often over the training data. On the command line it beats the max_train_steps of a recipe."
    )
    max_train_steps: int | None = _steps(None, "Take this many optimizer steps, whatever num_train_epochs says.")

    learning_rate: float = _optimizer(5e-4, "The peak of AdamW's learning rate, after the warm-up.")
    lr_scheduler_type: Literal["cosine", "linear", "constant_with_warmup"] = _optimizer(
        "cosine", "How the learning rate falls from its peak."
    )
    min_learning_rate: float = _optimizer(0.0, "The learning rate at which the cosine ends.")
    num_warmup_steps: int = _optimizer(0, "Raise the learning rate from 0 to its peak in this many steps.")
    warmup_ratio: float = _optimizer(0.0, "The warm-up as a share of all steps, used where num_warmup_steps is 0.")
    weight_decay: float = _optimizer(
        0.05, "The decay of weight matrices. Biases, norms, betas, tokens and positions have none."
    )
    adam_beta1: float = _optimizer(0.9, "The first beta of AdamW.")
    adam_beta2: float = _optimizer(0.99, "The second beta of AdamW.")
    max_grad_norm: float = _optimizer(1.0, "Scale a gradient down to this norm where it is longer. inf never does.")
    layer_decay: float = _optimizer(1.0, "Scale the learning rate by this for each layer below the head.")
    ema_decay: float | None = _optimizer(None, "Evaluate and save a moving average of the weights with this decay.")

    mixed_precision: Literal["no", "fp16", "bf16"] | None = _device(
        None, "The precision of the products. It is that of the launch file when not given."
    )
    cpu: bool = _device(False, "Train on the CPU even where there is a GPU, also with several processes.")
    ddp_timeout: int = _device(
        1800, "The seconds for which a process waits for the others, such as for a first download."
    )
    compile: bool = _device(False, "Compile the model with torch.compile.")
    tf32: bool = _device(False, "Let float32 products use TF32 on a GPU that has it.")
    gradient_checkpointing: bool = _device(
        False, "Compute each descent step again in the backward pass, which takes less memory."
    )

    eval_steps: str | None = _saving(None, "Evaluate every N steps, or each 'epoch', besides at the end.")
    checkpointing_steps: str | None = _saving(None, "Save the whole state every N steps, or each 'epoch'.")
    checkpoints_total_limit: int | None = _saving(
        None, "Keep at most this many saved states, always with the newest and the best."
    )
    load_best_model_at_end: bool = _saving(False, "End with the saved state that has the best held-out figure.")
    resume_from_checkpoint: str | None = _saving(
        None, "Go on from a saved state: 'latest', its folder, or USER/REPO[@REVISION] of the Hub."
    )
    trust_state: bool = _saving(
        False, "Also read a saved state in FSDP's sharded or DeepSpeed's format, which can run code of its author."
    )
    override_saved_options: bool = _saving(
        False, "Go on with the options that are given now, where those of the saved state are others."
    )

    logging_steps: int = _report(20, "Report the loss, the rate, the energies and the speed every N steps.")
    sample_steps: int | None = _report(None, "Write the pictures into samples/step-STEP every N steps.")
    report_to: Literal["none", "tensorboard", "trackio", "wandb"] | None = _report(
        None, "Send the reports to this tracker too."
    )
    with_tracking: bool = _report(False, "The same as report_to tensorboard, where that is not given.")
    num_visual_samples: int = _report(8, "The number of held-out images or graphs in the pictures.")

    push_to_hub: bool = _hub(False, "Push the run to the Hub, in the background.")
    hub_model_id: str | None = _hub(
        None, "The repository to push to, USER/REPO. It has the name of output_dir when not given."
    )
    hub_private_repo: bool = _hub(False, "Make a new repository private.")
    hub_token: str | None = field(
        default=None,
        repr=False,
        metadata={
            "help": "Better not: others can see it in the list of processes. Use `hf auth login` or HF_TOKEN.",
            "group": "the Hub",
        },
    )
    hub_strategy: Literal["end", "every_save", "checkpoint"] = _hub(
        "every_save", "Push at the end only, at each saved state too, or with the states, to be resumed elsewhere."
    )
    license: str = _hub("apache-2.0", "The license of the weights in the model card, as the Hub writes it.")

    def __post_init__(self) -> None:
        for name in ("eval_steps", "checkpointing_steps"):
            with suppress(TypeError, ValueError):  # None, "epoch" and what is refused below
                setattr(self, name, str(whole_number(getattr(self, name))))
        check(self, COMMON_RULES)
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
