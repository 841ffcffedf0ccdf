"""What a saved state holds, and how it is written and read: tensors as safetensors, everything else as JSON.

    model.safetensors       the weights
    optimizer.safetensors   its moments, NAME/exp_avg and so on; rates and decays are those of the options
    average.safetensors     the moving average of the weights, where there is one
    training.json           how far the schedule is, and the loss scale
    options.json            the options of the run, see `resumption`
    process_N.json          place of the loader and generators of each process

Weights and optimizer are whole, whatever the run is divided over, so that any other division takes them up. Where the
launch file asks for FSDP's sharded states (`fsdp_state_dict_type: SHARDED_STATE_DICT`), and under DeepSpeed, they are
in the format of these, which is read with pickles: [`saved_states.SavedState.require_trust`] stands before that.
"""

import base64
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from accelerate.utils.fsdp_utils import load_fsdp_model, load_fsdp_optimizer, save_fsdp_model, save_fsdp_optimizer
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from .loaders import TrainLoader
from .saved_states import OPTIONS_FILE, PROCESS_FILE, Layout, SavedState

_MODEL, _OPTIMIZER, _AVERAGE = "model.safetensors", "optimizer.safetensors", "average.safetensors"
_TRAINING = "training.json"
_SCHEDULE = ("last_epoch", "_step_count")  # the rates follow from these and the options
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
Tensors = dict[str, torch.Tensor]


def layout_of(accelerator: Accelerator) -> Layout:
    """In which layout the states of this launch are written."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return "deepspeed"
    if accelerator.distributed_type == DistributedType.FSDP:
        asked = getattr(accelerator.state.fsdp_plugin.state_dict_type, "name", "")
        return "sharded" if asked == "SHARDED_STATE_DICT" else "whole"
    return "whole"


class StateFiles:
    """The parts of a run that a state keeps; all processes call each method together.

    `read` and `take_up` raise what safetensors, JSON and torch raise for files that are not those of this run.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: LambdaLR,
        average: AveragedModel | None,
        loader: TrainLoader,
        options: dict[str, Any],
    ):
        self.accelerator, self.model, self.optimizer = accelerator, model, optimizer
        self.schedule, self.average, self.loader, self.options = schedule, average, loader, options

    def write(self, folder: Path) -> None:
        layout, parts = layout_of(self.accelerator), {}
        if layout == "whole":
            parts = {_MODEL: self._weights(), _OPTIMIZER: self._moments()}
        elif layout == "sharded":
            plugin = self.accelerator.state.fsdp_plugin
            save_fsdp_model(plugin, self.accelerator, self.model, str(folder))
            save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, str(folder))
        else:
            self.model.save_checkpoint(str(folder), "deepspeed")
        if self.accelerator.is_main_process:
            if self.average is not None:
                parts[_AVERAGE] = self.average.state_dict()
            for name, tensors in parts.items():
                save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name)
            scaler = self.accelerator.scaler
            schedule = {name: getattr(self.schedule, name) for name in _SCHEDULE}
            _write(folder / _TRAINING, {"schedule": schedule, "scaler": scaler.state_dict() if scaler else None})
            _write(folder / OPTIONS_FILE, self.options)
        own = {"loader": self.loader.state_dict(), "generators": _generators(self.accelerator.device)}
        _write(folder / PROCESS_FILE.format(self.accelerator.process_index), own)

    def read(self, state: SavedState) -> dict[str, Any]:
        """What the files hold, of which nothing is taken up yet, so that no process is left alone with it where
        another one cannot read."""
        folder = state.folder
        names = [_MODEL, _OPTIMIZER] if state.layout == "whole" else []
        if self.average is not None:
            names.append(_AVERAGE)
        return {
            "tensors": {name: load_file(folder / name) for name in names},
            "training": dict(json.loads((folder / _TRAINING).read_text())),
            "options": dict(json.loads((folder / OPTIONS_FILE).read_text())),
            "processes": [
                dict(json.loads((folder / PROCESS_FILE.format(process)).read_text()))
                for process in range(state.num_processes)
            ],
        }

    def take_up(self, state: SavedState, content: dict[str, Any]) -> None:
        """Let the run be as it was when `content` was written. Of more processes than then, the last ones go on with
        the generators of the last."""
        folder, layout = state.folder, state.layout
        tensors, training, processes = content["tensors"], content["training"], content["processes"]
        if self.accelerator.scaler and training["scaler"]:
            scaler = self.accelerator.scaler
            scaler.load_state_dict({name: float(training["scaler"][name]) for name in scaler.state_dict()})
        if layout == "whole":
            self._take_up_weights(tensors[_MODEL])
            self._take_up_moments(tensors[_OPTIMIZER])
        elif layout == "sharded":
            plugin = self.accelerator.state.fsdp_plugin
            load_fsdp_model(plugin, self.accelerator, self.model, str(folder))
            load_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, str(folder))
        else:
            self.model.load_checkpoint(str(folder), "deepspeed")
        if self.average is not None:
            self.average.load_state_dict(tensors[_AVERAGE])
        self._take_up_schedule({name: int(training["schedule"][name]) for name in _SCHEDULE})
        self.loader.load_state_dict([each["loader"] for each in processes])
        own = processes[min(self.accelerator.process_index, len(processes) - 1)]
        _set_generators(own["generators"], self.accelerator.device)

    @property
    def _own_optimizer(self) -> torch.optim.Optimizer:
        """Without the wrapper of Accelerate."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def _weights(self) -> Tensors:
        weights: Any = get_model_state_dict(self.model, options=_WHOLE)
        return weights

    def _moments(self) -> Tensors:
        state: Any = get_optimizer_state_dict(self.model, self._own_optimizer, options=_WHOLE).get("state", {})
        return {f"{name}/{entry}": value for name, values in state.items() for entry, value in values.items()}

    def _take_up_weights(self, weights: Tensors) -> None:
        shapes = self._shapes()
        set_model_state_dict(self.model, {n: _fitted(v, shapes.get(n)) for n, v in weights.items()}, options=_WHOLE)

    def _take_up_moments(self, moments: Tensors) -> None:
        shapes = self._shapes()
        state: dict[str, Tensors] = {}
        for key, value in moments.items():
            name, _, entry = key.rpartition("/")
            state.setdefault(name, {})[entry] = value if entry == "step" else _fitted(value, shapes.get(name))
        current: Any = get_optimizer_state_dict(self.model, self._own_optimizer)
        if state.keys() != current["state"].keys():
            name = min(state.keys() ^ current["state"].keys())
            raise ValueError(f"{name} is trained {'there' if name in state else 'here'} alone")
        whole = {"state": state, "param_groups": current["param_groups"]}
        set_optimizer_state_dict(self.model, self._own_optimizer, whole, options=_WHOLE)

    def _shapes(self) -> dict[str, torch.Size]:
        weights: dict[str, Any] = get_model_state_dict(self.model)
        return {name: value.shape for name, value in weights.items()}

    def _take_up_schedule(self, state: dict[str, int]) -> None:
        vars(self.schedule).update(state)
        rates = [
            base * factor(self.schedule.last_epoch)
            for base, factor in zip(self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True)
        ]
        for group, rate in zip(self._own_optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.schedule._last_lr = rates


def _fitted(value: torch.Tensor, shape: torch.Size | None) -> torch.Tensor:
    """A scalar as a vector of one number or the other way round: `fully_shard` takes no scalars."""
    return value.reshape(shape) if shape is not None and value.numel() == 1 == shape.numel() else value


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content))


def _generators(device: torch.device) -> dict[str, Any]:
    """The states of all generators that code of others may draw from; a step's own numbers come from its seed."""
    name, keys, *rest = np.random.get_state()
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state(device)
    return {
        "python": random.getstate(),
        "numpy": [name, keys.tolist(), *rest],
        "torch": {kind: base64.b64encode(state.numpy().tobytes()).decode() for kind, state in states.items()},
    }


def _set_generators(states: dict[str, Any], device: torch.device) -> None:
    version, keys, normal = states["python"]
    random.setstate((version, tuple(keys), normal))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    for kind, text in states["torch"].items():
        state = torch.tensor(list(base64.b64decode(text)), dtype=torch.uint8)
        if kind == "cpu":
            torch.set_rng_state(state)
        elif kind == device.type:
            torch.get_device_module(device).set_rng_state(state, device)
