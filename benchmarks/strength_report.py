"""The page and the plot of `strength.py`, made of the files of its runs."""

import json
import statistics
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure

INTRODUCTION = """# How strong is an Energy Transformer?

Made by `make strength`; do not edit. Mean ± standard deviation over the seeds, on test images that the choice of the
rate has not seen. Step sizes and initial scales are those of earlier trials with the energy models; the transformers
have torch's defaults.
The score is the accuracy, or for masked modeling the error over the hidden patches, of that of the mean color (lower is
better). *rises* is the share of pairs of test image and step at which the energy rises, *longer* the score with two,
three and four times the steps of the training. Seconds are those of one thread for a training step, memory is the most
that it holds.
"""
INSIDE = """
What happens inside, on 250 test images, means over the seeds. *Size* is the root mean square of a token's channels, and
*gradient* that of the loss's gradient at x_1 over that at x_T (what comes back through the steps). The
*rank* is the effective rank of an image's normalized tokens. *Falls up to* is the largest multiple of the trained step
size, of those tried, at which the energy still rises nowhere.

| model | size of x_0, x_1, x_T | gradient | rank at x_0, x_T | falls up to |
| --- | --- | ---: | --- | ---: |"""


def write_report(folder: Path) -> None:
    """Write `strength.md` and `strength.png` beside the folder of the runs."""
    runs = defaultdict(list)
    for file in sorted(folder.glob("*/*.json")):
        run = json.loads(file.read_text())
        if run["part"] == "test":
            runs[run["task"], run["model"]].append(run)
    lines = [INTRODUCTION]
    for task in sorted({task for task, _ in runs}):
        lines += [
            f"\n## {task}\n",
            "| model | parameters | rate | seeds | score | rises | longer | training loss | s a step | MiB |",
            "| --- | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: |",
        ]
        of_task = {model: of_model for (name, model), of_model in runs.items() if name == task}
        lines += [_row(model, of_model) for model, of_model in of_task.items()]
        lines += [INSIDE, *(_inside(model, of_model) for model, of_model in of_task.items())]
    folder.with_suffix(".md").write_text("\n".join(lines) + "\n")
    if runs:
        _plot(runs, folder.with_suffix(".png"))


def _mean_and_deviation(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{deviation}"


def _row(model: str, runs: list[dict]) -> str:
    rises = [run["rises"] for run in runs if run["rises"] is not None]
    pairs = sum(run["pairs"] for run in runs)
    counts = sorted(runs[0].get("longer", {}), key=int)
    longer = [_mean_and_deviation([run["longer"][count]["score"] for run in runs]) for count in counts]
    cells = [
        model,
        f"{runs[0]['parameters']:,}",
        f"{runs[0]['rate']:g}",
        str(len(runs)),
        _mean_and_deviation([run["score"] for run in runs]),
        f"{100 * statistics.fmean(rises):.2f} % of {pairs:,}" if rises else "–",
        ", ".join(longer) or "–",
        _mean_and_deviation([run["train_loss"] for run in runs]),
        f"{statistics.median(run['seconds'] for run in runs):.3f}",
        f"{runs[0]['bytes'] / 2**20:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _inside(model: str, runs: list[dict]) -> str:
    def mean(name: str, place: int) -> float:
        return statistics.fmean(run["along_the_steps"][name][place] for run in runs)

    shares = [run["rises_by_step_size"] for run in runs if "rises_by_step_size" in run]
    factors = sorted(shares[0], key=float) if shares else []
    rising = [factor for factor in factors if any(share[factor] > 0 for share in shares)]
    falling = factors[: factors.index(rising[0])] if rising else factors
    cells = [
        model,
        ", ".join(f"{mean('size', place):.1f}" for place in (0, 1, -1)),
        f"{mean('gradient', 1) / mean('gradient', -1):.2g}",
        f"{mean('effective_rank', 0):.1f}, {mean('effective_rank', -1):.1f}",
        (f"{falling[-1]}" if falling else f"below {factors[0]}") if factors else "–",
    ]
    return f"| {' | '.join(cells)} |"


def _plot(runs: dict, file: Path) -> None:
    tasks = sorted({task for task, _ in runs})
    figure = Figure(figsize=(8, 1 + 2.6 * len(tasks)), layout="constrained")
    for axes, task in zip(figure.subplots(len(tasks), squeeze=False)[:, 0], tasks, strict=True):
        models = [model for name, model in runs if name == task]
        scores = [[run["score"] for run in runs[task, model]] for model in models]
        for place, values in enumerate(scores):
            axes.plot(values, [place] * len(values), "o", color="C0", alpha=0.5)
            axes.plot(statistics.fmean(values), place, "|", color="black", markersize=16)
        axes.set_yticks(range(len(models)), models)
        axes.invert_yaxis()
        axes.set(title=task, xlabel="accuracy" if "masked" not in task else "error, of the mean color's")
        axes.grid(axis="x", alpha=0.3)
    figure.savefig(file, dpi=110)
