"""The page of `graphs.py`, made of the files of its runs."""

import json
import statistics
from collections import defaultdict
from pathlib import Path

INTRODUCTION = """# Graphs

Made by `make graphs`; do not edit. Accuracy on the test folds of stratified 10-fold cross-validation: the mean over all
folds, its standard deviation over the folds, and that of the means of the seeds, each of which has folds and initial
weights of its own. GIN is a graph isomorphism network of PyTorch Geometric whose messages know the edges, trained by
the same loop; *linear* a logistic regression of the numbers of nodes and edges and the sums of their features, and
*training* the accuracy on the training folds. A row of fewer than 3 × 10 folds is not complete, and
not to be compared with the others. Seconds are those of one thread for the training of a fold.
"""


def write_report(folder: Path) -> None:
    """Write `GRAPHS.md` into the folder of the benchmarks, from `results/graphs` in it."""
    runs = defaultdict(list)
    for file in sorted(folder.glob("*/*.json")):
        run = json.loads(file.read_text())
        if run["part"] == "test":
            runs[run["task"], run["model"]].append(run)
    lines = [INTRODUCTION]
    for task in sorted({task for task, _ in runs}):
        lines += [
            f"\n## {task}\n",
            "| model | parameters | seeds × folds | accuracy | over folds | over seeds | training | s a fold |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        lines += [_row(model, of_model) for (name, model), of_model in runs.items() if name == task]
    (folder.parents[1] / "GRAPHS.md").write_text("\n".join(lines) + "\n")


def _row(model: str, runs: list[dict]) -> str:
    folds = [fold for run in runs for fold in run["folds"]]
    means = [statistics.fmean(fold["accuracy"] for fold in run["folds"]) for run in runs]
    numbers = {len(run["folds"]) for run in runs}
    cells = [
        model,
        f"{folds[0]['parameters']:,}",
        f"{len(runs)} × {min(numbers)}" if len(numbers) == 1 else " + ".join(str(len(run["folds"])) for run in runs),
        f"{statistics.fmean(fold['accuracy'] for fold in folds):.3f}",
        _deviation([fold["accuracy"] for fold in folds]),
        _deviation(means),
        _mean(folds, "train_accuracy", ".3f"),
        _mean(folds, "seconds", ".1f"),
    ]
    return f"| {' | '.join(cells)} |"


def _deviation(values: list[float]) -> str:
    return f"± {statistics.stdev(values):.3f}" if len(values) > 1 else "–"


def _mean(folds: list[dict], name: str, form: str) -> str:
    return f"{statistics.fmean(fold[name] for fold in folds):{form}}" if name in folds[0] else "–"
