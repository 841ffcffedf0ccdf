"""The command: which parts, on which device, and what the machine is."""

import datetime
import importlib.metadata
import importlib.util
import os
import sys
import zipfile
from pathlib import Path

import measure
import torch

from energy_transformer.utils.command_line import OneLineErrors
from energy_transformer.utils.errors import UserError

from . import blocks, kernels, models, operators, profile, recipes, reference, sweep
from .record import Run

PARTS = {
    "a": ("The kernels against the eager form in float64", kernels.run),
    "b": ("The numbers of the reference implementations", reference.run),
    "c": ("Training with every backend and precision", models.run),
    "d": ("Time and memory of the descent and of its attention", lambda run: (operators.run(run), blocks.run(run))),
    "e": ("The recipes with their data", recipes.run),
    "f": ("Where the time of a step goes", profile.run),
    "g": ("The attention of other packages", operators.run_packages),
    "h": ("Which tiles are the fastest", sweep.run),
}
PACKAGES = (
    "torch", "triton", "transformers", "accelerate", "datasets", "ebt_flash_attention", "jvp_flash_attention"
)  # fmt: skip


def build_parser() -> OneLineErrors:
    about = "Prove and measure the package on one CUDA device, without a network, with what is installed."
    parser = OneLineErrors(description=about, allow_abbrev=False)
    parser.add_argument("--parts", default="a,b,c,d,e,f,g,h", help="Which, in which order (default: a,b,c,d,e,f,g,h).")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"), help="cpu is to try the parts themselves.")
    parser.add_argument("--quick", action="store_true", help="Small sizes and few rounds: to see that all works.")
    parser.add_argument("--minutes", type=float, default=8.0, help="The longest that a part may last (default: 8).")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/gpu"), help="Where the results go.")
    parser.add_argument("--lumen_checkout", type=Path, help="Folder with LumenPallidium/energy_transformer.")
    parser.add_argument("--wheels", type=Path, help="Folder of `make gpu-wheels`, for the packages to compare with.")
    return parser


def check(args) -> list[str]:
    """The letters of the parts.

    Raises:
        UserError: without a CUDA device that is asked for, and for a part or a folder that does not exist.
    """
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no CUDA device: this check needs one (--device cpu --quick tries its parts)")
    letters = [letter for letter in args.parts.split(",") if letter]
    if unknown := [letter for letter in letters if letter not in PARTS]:
        raise UserError(f"parts must be among {','.join(PARTS)}, got {','.join(unknown)}")
    lumen = args.lumen_checkout
    if lumen is not None and not (lumen / "energy_transformer" / "energy_transformers.py").is_file():
        raise UserError(f"lumen_checkout: there is no energy_transformer/energy_transformers.py in {lumen}")
    if args.wheels is not None and not args.wheels.is_dir():
        raise UserError(f"wheels: there is no folder {args.wheels}")
    return letters


def unpack(wheels: Path | None, target: Path) -> Path | None:
    """Make the packages of a folder of wheels importable, here and in children; those that are installed stay."""
    if wheels is None:
        return None
    for wheel in sorted(wheels.glob("*.whl")):
        if importlib.util.find_spec(wheel.name.split("-")[0]) is None:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(target)
    sys.path.append(str(target))
    importlib.invalidate_caches()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(target))))
    return target


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def facts(device: torch.device) -> dict[str, object]:
    found: dict[str, object] = {
        "machine": measure.machine_name(device),
        "date": datetime.datetime.now().isoformat(timespec="minutes"),
        "python": sys.version.split()[0],
        **{package: version(package) for package in PACKAGES},
        "interpreted": os.environ.get("TRITON_INTERPRET") == "1",
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
            "multiprocessors": properties.multi_processor_count,
            "memory in GiB": properties.total_memory / 2**30,
        }
    return found


def main(argv: list[str]) -> None:
    args = build_parser().parse_args(argv)
    letters, device = check(args), torch.device(args.device)
    run = Run(device, args.quick, args.output_dir.resolve(), args.minutes, args.lumen_checkout)
    run.wheels = unpack(args.wheels, Path(os.environ.get("TMPDIR", "/tmp")) / "gpu_check_packages")
    run.facts = facts(device)
    for letter in letters:
        title, function = PARTS[letter]
        with run.running(letter, title):
            function(run)
    print(run.folder / "results.md")
    if any(part["state"] != "done" for part in run.parts.values()):
        sys.exit(1)
