"""Measure every way to compute the descent, interleaved in one run: python benchmarks/run.py [--quick]

Writes results/MACHINE.json and MACHINE.png beside this file, and RESULTS.md anew from all such files, after each part,
so that a run cut short leaves what it has.
"""

import datetime
import gc
import platform
import shlex
from dataclasses import asdict, replace
from pathlib import Path

import measure
import torch
import variants
from report import write_results

import energy_transformer
from energy_transformer.utils.command_line import OneLineErrors, run_script
from energy_transformer.utils.errors import UserError

LENGTHS = [64, 256, 1024, 4096, 16384]
STEPS = [1, 3, 6, 12, 24]


def build_parser() -> OneLineErrors:
    parser = OneLineErrors(description=__doc__, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="One round, one image, two steps: to see that all works.")
    parser.add_argument("--rounds", type=int, default=7, help="Rounds that the medians are taken of (default: 7).")
    parser.add_argument("--max_length", type=int, default=16384, help="Longest sequence (default: 16384).")
    parser.add_argument("--threads", type=int, help="Threads of a CPU run; as torch finds when not given.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda.")
    parser.add_argument("--variants", nargs="+", help="Measure only these, such as 'eager bf16' (default: all).")
    parser.add_argument("--lumen_checkout", type=Path, help="Folder with LumenPallidium/energy_transformer.")
    parser.add_argument("--jax_checkout", type=Path, help="Folder with bhoov/energy-transformer-jax; needs equinox.")
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parent, help="Where the results go.")
    return parser


def check(args) -> None:
    if args.rounds < 1:
        raise UserError(f"rounds must be at least 1, got {args.rounds}")
    if args.device not in ("cpu", "cuda") or (args.device == "cuda" and not torch.cuda.is_available()):
        raise UserError(f"device must be cpu, or cuda where there is one, got {args.device}")
    needed = {
        "lumen_checkout": "energy_transformer/energy_transformers.py",
        "jax_checkout": "architecture.py",
    }
    for option, file in needed.items():
        folder = getattr(args, option)
        if folder is not None and not (folder / file).is_file():
            raise UserError(f"{option}: there is no {file} in {folder}")


def chosen_variants(args) -> list[str]:
    """The names in the order of the table, naive first."""
    names = variants.variant_names(variants.available_backends())
    if args.quick:
        names = [name for name in names if "compiled" not in name]
    if args.lumen_checkout is not None:
        names.insert(1, "LumenPallidium")
    if args.jax_checkout is not None:
        names.insert(1, "jax")
    unknown = set(args.variants or []) - set(names)
    if unknown:
        raise UserError(f"variants must be among {', '.join(names)}; got {', '.join(sorted(unknown))}")
    return [name for name in names if name == "naive" or not args.variants or name in args.variants]


def size_for(name: str, args, device: torch.device) -> variants.Size:
    size = variants.SIZES[name]
    if args.quick:
        return replace(size, batch=1, steps=2)
    return replace(size, batch=variants.GPU_BATCH[name]) if device.type == "cuda" else size


def errors(names: list[str], size: variants.Size, device: torch.device, args) -> dict[str, float]:
    """|x_T − x_T of naive| / |x_T of naive|, over all tokens."""
    size = replace(size, batch=1)
    x = variants.tokens(size, device)
    with torch.no_grad():
        results = {name: variants.build(name, size, device, args.lumen_checkout)(x) for name in names}
    torch.compiler.reset()
    exact = results["naive"]
    return {name: ((found.float() - exact).norm() / exact.norm()).item() for name, found in results.items()}


def measure_block(size_name: str, names: list[str], rates: dict[str, float], device: torch.device, args) -> list[dict]:
    """Training and inference of every variant at one of the two sizes."""
    size = size_for(size_name, args, device)
    found = errors([name for name in names if name != "jax"], size, device, args)
    rows = []
    for training in (False, True):
        functions = {name: variants.steps_of(name, size, training, device, args) for name in names}
        times = measure.interleaved(functions, args.rounds, device)
        for name, seconds in times.items():
            rate = rates["bfloat16" if "bf16" in name else "float32"]
            rows.append(
                {
                    "size": size_name,
                    "task": "training" if training else "inference",
                    "variant": name,
                    "seconds": seconds,
                    "images_per_second": size.batch / seconds,
                    "share": size.operations(training) / seconds / rate,
                    "peak_bytes": None if name == "jax" else measure.peak_bytes(functions[name], device),
                    "error": found.get(name),
                }
            )
            print(f"{size_name:9}{rows[-1]['task']:10}{name:26}{seconds:9.3f} s", flush=True)
        functions.clear()
        gc.collect()
        torch.compiler.reset()  # or the graphs of all variants and sizes together would be too many
    return rows


def fits(name: str, length: int, device: torch.device) -> bool:
    """Whether about ten N×N matrices of float32 for each head do, for what makes them."""
    linear = not name.startswith(("naive", "LumenPallidium", "eager"))
    return linear or 10 * 4 * variants.LENGTHS.heads * length**2 < measure.available_bytes(device)


def measure_lengths(names: list[str], device: torch.device, args) -> list[dict]:
    """One step at the ImageNet widths on ever longer sequences."""
    rows = []
    for length in (n for n in LENGTHS if n <= args.max_length):
        size = replace(variants.LENGTHS, tokens=length)
        fitting = [name for name in names if fits(name, length, device)]
        for training in (False, True):
            functions = {name: variants.steps_of(name, size, training, device, args) for name in fitting}
            rounds = args.rounds if length <= 1024 else 1
            peaks = {name: measure.peak_bytes(function, device) for name, function in functions.items()}
            times = measure.interleaved(functions, rounds, device) if length <= 4096 else {}
            for name, function in functions.items():
                seconds = times.get(name) or measure.seconds(function, device)
                task = "training" if training else "inference"
                rows.append(
                    {"tokens": length, "task": task, "variant": name, "seconds": seconds, "peak_bytes": peaks[name]}
                )
                print(f"N = {length:<6}{task:10}{name:26}{seconds:9.3f} s", flush=True)
    return rows


def measure_steps(backends: list[str], device: torch.device, args) -> list[dict]:
    """Peak memory of a training step at the CIFAR size against the number of descent steps."""
    names = ["naive", *(f"{way}{suffix}" for way in backends for suffix in ("", " checkpointed"))]
    rows = []
    for steps in STEPS[: 2 if args.quick else None]:
        size = replace(size_for("CIFAR", args, device), steps=steps)
        for name in names:
            step = variants.steps_of(name, size, True, device, args)
            step()
            rows.append({"steps": steps, "variant": name, "peak_bytes": measure.peak_bytes(step, device)})
            del step
    return rows


def main(argv: list[str]) -> None:
    args = build_parser().parse_args(argv)
    check(args)
    if args.quick:
        args.rounds, args.max_length = 1, min(256, args.max_length)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    names = chosen_variants(args)
    plain = [name for name in names if " " not in name and name != "jax"]
    backends = [name for name in plain if name not in ("naive", "LumenPallidium")]
    dtypes = (torch.float32, torch.bfloat16)
    rates = {str(dtype).removeprefix("torch."): measure.product_rate(dtype, device, args.rounds) for dtype in dtypes}
    results = {
        "machine": measure.machine_name(device),
        "device": device.type,
        "date": datetime.date.today().isoformat(),
        "command": "python benchmarks/run.py " + shlex.join(Path(item).name for item in argv),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "energy_transformer": energy_transformer.__version__,
        },
        "rounds": args.rounds,
        "sizes": {name: asdict(size_for(name, args, device)) for name in variants.SIZES},
        "product_rate": rates,
        "blocks": [],
        "lengths": [],
        "steps": [],
    }
    for size in variants.SIZES:
        results["blocks"] += measure_block(size, names, rates, device, args)
        write_results(results, args.output_dir)
    results["lengths"] = measure_lengths(plain, device, args)
    write_results(results, args.output_dir)
    results["steps"] = measure_steps(backends, device, args)
    print(write_results(results, args.output_dir))


if __name__ == "__main__":
    run_script(main)
