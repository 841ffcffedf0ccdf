"""Print versions, devices, and which attention `auto` chooses here and why, for a bug report."""

import inspect
import os
import platform
from collections.abc import Iterator
from importlib import metadata
from itertools import groupby
from pathlib import Path

import torch

from .. import __version__
from ..attention_backends import ATTENTION_BACKENDS, attention_backend, check_attention_backend
from ..training.hardware import device_name
from ..training.recipes import configuration_folder, find_launch_file
from ..utils.command_line import OneLineErrors
from ..utils.extras import extras, requirements
from ..weights import demo_checkpoint

_HEADS, _HEAD_DIM = 12, 64  # of the paper's model
_TOKENS = (65, 197, 577, 1025, 4097)


def main(argv: list[str]) -> None:
    parser = OneLineErrors(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--launch_file",
        "--launch-file",
        metavar="NAME",
        help="Print the path of this launch file alone, for `accelerate launch --config_file`: cpu, multi_gpu, ...",
    )
    args = parser.parse_args(argv)
    if args.launch_file:
        print(find_launch_file(args.launch_file))
        return
    lines = [("energy-transformer", f"{__version__} in {Path(__file__).parents[1]}"), *_versions(), *_devices()]
    lines += [*_attention(), ("configuration", str(configuration_folder())), ("demo weights", str(demo_checkpoint()))]
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        print(f"{name:<{width}}  {text}")


def _versions() -> Iterator[tuple[str, str]]:
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    absent = []
    for name in dict.fromkeys(each.name for extra in ("", *extras()) if extra != "dev" for each in requirements(extra)):
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            absent.append(name)
    if absent:
        yield "not installed", ", ".join(absent)


def _devices() -> Iterator[tuple[str, str]]:
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} threads"
    yield "cpu", f"{device_name(torch.device('cpu'))}, {threads}"
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        yield f"cuda:{index}", f"{properties.name}, {memory}, capability {properties.major}.{properties.minor}"
    if torch.cuda.is_available():
        yield "cuda", f"{torch.version.cuda or f'ROCm {torch.version.hip}'}"
    elif torch.backends.mps.is_available():
        yield "mps", "an Apple GPU"
    else:
        yield "accelerator", "none that torch can use"


def _attention() -> Iterator[tuple[str, str]]:
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        yield f"auto on {device}", ", ".join(_chosen(device))
    yield "why", _reason()
    for name in ATTENTION_BACKENDS:
        try:
            check_attention_backend(name)
        except ValueError as error:
            yield name, f"not here: {error}"


def _chosen(device: str) -> Iterator[str]:
    """What `auto` takes for one image of the paper's heads, by the number of its tokens."""
    names = {attention_backend(name, torch.empty(1)): name for name in ATTENTION_BACKENDS if _runs(name)}
    queries = {tokens: torch.empty(1, _HEADS, tokens, _HEAD_DIM, device=device) for tokens in _TOKENS}
    chosen = {tokens: names[attention_backend("auto", query)] for tokens, query in queries.items()}
    for name, run in groupby(chosen, key=chosen.__getitem__):
        tokens = list(run)
        yield f"{name} for {tokens[0]} to {tokens[-1]} tokens"


def _runs(name: str) -> bool:
    if name == "auto":
        return False
    try:
        check_attention_backend(name)
    except ValueError:
        return False
    return True


def _reason() -> str:
    """The rule, from the documentation of the function that follows it."""
    paragraphs = (inspect.getdoc(attention_backend) or "").split("\n\n")
    rule = next((each for each in paragraphs if each.startswith('`"auto"`')), "see attention_backends.py")
    return " ".join(rule.replace("`", "").split())
