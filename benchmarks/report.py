"""Results of `run.py` as files: JSON and a plot for each machine, and one page of tables made of all of them."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

INTRODUCTION = """# Benchmarks

Made by `make bench`; do not edit. All variants run the same block with the same weights, one after the other in every
round; times are medians. *naive* is the definition, with its gradient from autograd (`naive.py`), *LumenPallidium*
the first PyTorch implementation itself. *of naive* compares with it in float32, *of products* is the
arithmetic of the matrix products that the step needs, over what this machine does in a large product of the same type,
measured in the same run. *memory* is the most that tensors held above what was held before, *error* the relative error
of the tokens after all steps against it in float32.
"""

STEPS = "quality_by_steps.json"

OWED = r"""## Owed

Every figure of a GPU: `make gpu` on a machine with one, see `docs/performance.md` for what it is expected to show, and
`make bench` with `ARGS="--lumen_checkout FOLDER --jax_checkout FOLDER"` for these tables. The fused kernels have been
compiled for sm_80, sm_90 and sm_100 and run in Triton's interpreter, never on a GPU. Images a second with the data
pipeline, to compare with the table of the CIFAR size, are what this prints:

```bash
accelerate launch --config_file configuration/accelerate/single_gpu.yaml scripts/train_masked_image_modeling.py \
    --config configuration/training/cifar10.yaml --mixed_precision bf16 --compile
```
"""


def write_results(results: dict, folder: Path) -> Path:
    """Write the JSON and the plot of this run in `folder/results`, then RESULTS.md from all that lies there."""
    target = folder / "results"
    target.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", results["machine"].lower()).strip("-")
    (target / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    _plot(results, target / f"{name}.png")
    return write_page(folder)


def write_page(folder: Path) -> Path:
    """RESULTS.md, from the JSON files in `folder/results`."""
    files = (path for path in sorted((folder / "results").glob("*.json")) if path.name != STEPS)
    measured = {path: json.loads(path.read_text()) for path in files}
    sections = [_section(results, path) for path, results in measured.items()]
    steps = folder / "results" / STEPS
    if steps.is_file():
        sections.append(_steps_section(json.loads(steps.read_text())))
    if all(results["device"] != "cuda" for results in measured.values()):
        sections.append(OWED)
    page = folder / "RESULTS.md"
    page.write_text("\n".join([INTRODUCTION, *sections]))
    return page


def _section(results: dict, path: Path) -> str:
    rates = ", ".join(f"{dtype} {rate / 1e9:.0f} Gflop/s" for dtype, rate in results["product_rate"].items())
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts = [
        f"## {results['machine']}\n",
        f"{results['date']}, `{results['command']}`, rounds: {results['rounds']}; {versions}; products: {rates}.\n",
        f"![{results['machine']}](results/{path.stem}.png)\n",
    ]
    for size, shape in results["sizes"].items():
        for task in ("training", "inference"):
            rows = [row for row in results["blocks"] if (row["size"], row["task"]) == (size, task)]
            described = "{dim} wide, {heads} heads, {memories} memories, {tokens} tokens, {steps} steps, batch {batch}"
            parts.append(f"### {size} size, {task} ({described.format(**shape)})\n\n{_block_table(rows)}")
    title = "### One step at the ImageNet widths against the number of tokens N, batch 1"
    parts.append(f"{title}\n\n{_grid(results['lengths'], 'tokens', _seconds_and_memory, by_task=True)}")
    title = "### Peak memory of training at the CIFAR size against the number of steps T"
    parts.append(f"{title}\n\n{_grid(results['steps'], 'steps', lambda row: _memory(row['peak_bytes']))}")
    return "\n".join(parts)


def steps_row(row: dict) -> list[str]:
    """The measures of one number of steps or one tolerance, for a table."""
    return [
        f"{row['steps']:.2f}".removesuffix(".00"),
        f"{row['masked_mse']:.5f}",
        f"{row['ratio_to_mean_color']:.3f}",
        f"{row['ratio_to_neighbor_average']:.3f}",
        f"{1000 * row['seconds_per_image']:.2f}",
    ]


STEPS_HEADER = ["steps", "masked MSE", "of the mean color's", "of the neighbor average's", "ms an image"]


def _steps_section(results: dict) -> str:
    """What `steps.py` left."""
    by_steps = _table(STEPS_HEADER, map(steps_row, results["by_steps"]))
    stopped = ([str(row["tolerance"]), *steps_row(row)] for row in results["by_tolerance"])
    return (
        f"## Error over hidden pixels against the number of steps\n\n{results['model']}, {results['images']} held-out "
        f"images, the same hidden patches in every row.\n\n![error against steps](results/{Path(STEPS).stem}.png)\n\n"
        f"{by_steps}\nStopped image by image when a step changes the normalized tokens by less than the tolerance, at "
        f"most {results['trained_steps']} steps:\n\n{_table(['tolerance', *STEPS_HEADER], stopped)}"
    )


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = list(header)
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _memory(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:.0f} MiB"


def _block_table(rows: list[dict]) -> str:
    if not rows:
        return ""
    first = rows[0]

    def ratio(row, key: str) -> str:
        return f"{row[key] / first[key]:.2f}" if row[key] and first[key] else ""

    header = ["", "time", "of naive", "images/s", "of products", "memory", "of naive", "error"]
    return _table(
        header,
        (
            [
                row["variant"],
                f"{row['seconds']:.3g} s",
                ratio(row, "seconds"),
                f"{row['images_per_second']:.3g}",
                f"{100 * row['share']:.0f} %",
                _memory(row["peak_bytes"]),
                ratio(row, "peak_bytes"),
                "" if row["error"] is None else f"{row['error']:.1e}",
            ]
            for row in rows
        ),
    )


def _seconds_and_memory(row: dict) -> str:
    return f"{row['seconds']:.3g} s, {_memory(row['peak_bytes'])}"


def _grid(rows: list[dict], key: str, cell: Callable[[dict], str], by_task: bool = False) -> str:
    """Variants down, values of `key` across; empty where a variant does not fit into the memory."""
    values = sorted({row[key] for row in rows})
    names = dict.fromkeys((row["task"], row["variant"]) if by_task else (row["variant"],) for row in rows)
    cells = {(((row["task"], row["variant"]) if by_task else (row["variant"],)), row[key]): cell(row) for row in rows}
    lines = ([", ".join(name), *(cells.get((name, value), "") for value in values)] for name in names)
    return _table(["", *(str(value) for value in values)], lines)


def _plot(results: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    figure.suptitle(results["machine"])
    training = [row for row in results["blocks"] if row["task"] == "training"]
    names = list(dict.fromkeys(row["variant"] for row in training))
    for index, size in enumerate(results["sizes"]):
        seconds = {row["variant"]: row["seconds"] for row in training if row["size"] == size}
        if not seconds:
            continue
        places = [place + 0.4 * index for place in range(len(names))]
        axes[0].barh(places, [seconds[name] / seconds["naive"] for name in names], 0.4, label=f"{size} size")
    axes[0].set_yticks([place + 0.2 for place in range(len(names))], names)
    axes[0].invert_yaxis()
    axes[0].set_xlabel("time of a training step, of naive's")
    axes[0].legend()
    rows = [row for row in results["lengths"] if row["task"] == "training"]
    for name in dict.fromkeys(row["variant"] for row in rows):
        mine = [row for row in rows if row["variant"] == name]
        lengths = [row["tokens"] for row in mine]
        axes[1].loglog(lengths, [row["seconds"] for row in mine], marker="o", label=name)
        if all(row["peak_bytes"] for row in mine):
            axes[2].loglog(lengths, [row["peak_bytes"] / 2**20 for row in mine], marker="o", label=name)
    axes[1].set_ylabel("seconds, training, one step")
    axes[2].set_ylabel("peak memory in MiB, training, one step")
    for axis in axes[1:]:
        axis.set_xlabel("tokens")
        if rows:
            axis.legend()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
