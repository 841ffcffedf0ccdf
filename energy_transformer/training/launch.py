"""Whether a run can be launched as it is."""

import os

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import DistributedType

from ..utils.errors import UserError
from .arguments import CommonArguments
from .recipes import find_launch_file
from .sharding import is_sharded
from .state_files import layout_of

logger = get_logger(__name__)


def _several_processes_were_asked_for() -> bool:
    """Whether `accelerate launch --cpu --num_processes N` with N > 1 started this one process."""
    return os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in os.environ


def check_launch(accelerator: Accelerator, args: CommonArguments) -> None:
    """See that the options and the launch file fit together, and set what depends on both.

    Raises:
        UserError: when they do not.
    """
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "fp16":
        raise UserError("mixed_precision fp16 needs a GPU: on the CPU, use bf16 or no")
    if accelerator.num_processes == 1 and _several_processes_were_asked_for():
        logger.warning(
            "`accelerate launch --cpu` starts one process, however many are asked for: "
            f"for more, see {find_launch_file('multi_cpu')}"
        )

    if args.tf32 and accelerator.device.type != "cuda":
        raise UserError("tf32 needs an NVIDIA GPU")
    if is_sharded(accelerator) and (args.ema_decay or args.sample_steps):
        raise UserError("ema_decay and sample_steps need the whole model on each process: not with FSDP or DeepSpeed")
    if args.load_best_model_at_end and layout_of(accelerator) != "whole" and not args.trust_state:
        raise UserError(
            "load_best_model_at_end reads a saved state, which this launch file lets be written in a format that "
            "can run code: pass --trust_state, or take fsdp_state_dict_type: FULL_STATE_DICT"
        )
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.tf32
    if accelerator.distributed_type == DistributedType.DEEPSPEED:  # it does not see our loader
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        config["train_micro_batch_size_per_gpu"] = args.per_device_train_batch_size
        config["gradient_accumulation_steps"] = args.gradient_accumulation_steps
