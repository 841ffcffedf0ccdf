"""The error of a trained masked autoencoder against its descent steps: python benchmarks/steps.py outputs/demo

The mean squared error over the hidden pixels of held-out images, with the same masks at every number of steps and every
tolerance of stopping, beside the baselines that need no model. Prints tables, writes numbers and a plot into `results`
beside this file, and RESULTS.md anew.
"""

import json
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from report import STEPS, STEPS_HEADER, steps_row, write_page
from torch.utils.data import DataLoader

from energy_transformer.data import ImageTensors, denormalize, load_image_datasets, normalize
from energy_transformer.inspection import load_for_reconstruction
from energy_transformer.metrics import masked_squared_error, mean_visible_color, neighbor_average
from energy_transformer.training.masked_image_modeling_evaluation import evaluation_masks
from energy_transformer.utils.command_line import OneLineErrors, run_script
from energy_transformer.utils.errors import UserError


def build_parser() -> OneLineErrors:
    parser = OneLineErrors(description=__doc__, allow_abbrev=False)
    parser.add_argument("checkpoint", help="Folder or Hub repository of a masked-image model, such as outputs/demo.")
    parser.add_argument("--dataset_name", default="demo", help="Dataset of the Hub or folder (default: demo).")
    parser.add_argument("--max_eval_samples", type=int, help="Held-out images; all when not given.")
    parser.add_argument("--max_steps", type=int, help="Most steps; twice the model's when not given.")
    parser.add_argument(
        "--tolerances", type=float, nargs="*", default=[0.5, 0.2, 0.1, 0.05, 0.02, 0.01], help="Of stopping early."
    )
    parser.add_argument("--batch_size", type=int, default=64, help="Images at once (default: 64).")
    parser.add_argument("--seed", type=int, default=0, help="Decides which patches are hidden (default: 0).")
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parent, help="Where the results go.")
    return parser


@torch.no_grad()
def evaluate(model, processor, loader: DataLoader, masks: torch.Tensor, **options) -> dict[str, float]:
    """Error, and its ratio to that of the baselines, mean steps and time of an image."""
    patch_size = model.config.patch_height_width
    errors, steps, elapsed = [], [], 0.0
    for batch in loader:
        pixel_values = normalize(batch["image"].to(model.device), processor)
        mask = masks[batch["index"]].to(model.device)
        start = time.perf_counter()
        outputs = model(pixel_values, bool_masked_pos=mask, **options)
        elapsed += time.perf_counter() - start
        if "tolerance" in options:
            steps.append(outputs.num_steps_taken)
        images = denormalize(pixel_values, processor)
        predictions = [
            denormalize(outputs.reconstruction, processor),
            mean_visible_color(images, mask, patch_size),
            neighbor_average(images, mask, patch_size),
        ]
        errors.append(torch.stack([masked_squared_error(p, images, mask, patch_size) for p in predictions]))
    mean = torch.cat(errors, 1).double().mean(1).tolist()
    return {
        **options,
        "steps": torch.cat(steps).double().mean().item() if steps else options["num_steps"],
        "masked_mse": mean[0],
        "ratio_to_mean_color": mean[0] / mean[1],
        "ratio_to_neighbor_average": mean[0] / mean[2],
        "seconds_per_image": elapsed / len(loader.dataset),
    }


def table(name: str, rows: Iterable[dict]) -> list[dict]:
    """Print the rows as they come."""
    print(f"\n| {' | '.join([name, *STEPS_HEADER])} |")
    printed = []
    for row in rows:
        print(f"| {' | '.join([str(row[name]), *steps_row(row)])} |", flush=True)
        printed.append(row)
    return printed


def plot(rows: list[dict], stopped: list[dict], trained_steps: int, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 4), layout="constrained")
    steps = [row["steps"] for row in rows]
    axis.semilogy(steps, [row["ratio_to_mean_color"] for row in rows], marker="o", label="of the mean color's error")
    axis.semilogy(
        steps, [row["ratio_to_neighbor_average"] for row in rows], marker="o", label="of the neighbor average's error"
    )
    if stopped:
        places = [row["steps"] for row in stopped]
        axis.plot(places, [row["ratio_to_mean_color"] for row in stopped], "x", label="the same, stopped early")
    axis.axvline(trained_steps, color="gray", linestyle=":", label="steps in training")
    axis.axhline(1, color="gray", linewidth=0.5)
    axis.set_xlabel("descent steps")
    axis.set_ylabel("error over hidden pixels, as a multiple")
    axis.legend()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def main(argv: list[str]) -> None:
    args = build_parser().parse_args(argv)
    if args.max_steps is not None and args.max_steps < 0:
        raise UserError(f"max_steps must not be negative, got {args.max_steps}")
    if args.batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {args.batch_size}")
    model, processor = load_for_reconstruction(args.checkpoint)
    splits, column = load_image_datasets(args.dataset_name, max_eval_samples=args.max_eval_samples, seed=args.seed)
    images = ImageTensors(splits["validation"], column, processor)
    loader = DataLoader(images, args.batch_size, collate_fn=ImageTensors.collate)
    rows_of_grid, columns_of_grid = model.config.grid_size
    masks = evaluation_masks(model.config, len(images), rows_of_grid * columns_of_grid, args.seed)
    trained_steps = model.config.num_steps
    counts = range((2 * trained_steps if args.max_steps is None else args.max_steps) + 1)
    measured = (model, processor, loader, masks)
    rows = table("num_steps", (evaluate(*measured, num_steps=count) for count in counts))
    stopped = table("tolerance", (evaluate(*measured, tolerance=tolerance) for tolerance in args.tolerances))
    folder = args.output_dir / "results"
    folder.mkdir(parents=True, exist_ok=True)
    described = f"{model.num_parameters():,} parameters, trained with {trained_steps} steps on {args.dataset_name}"
    results = {"model": described, "trained_steps": trained_steps, "images": len(images)}
    results |= {"by_steps": rows, "by_tolerance": stopped}
    (folder / STEPS).write_text(json.dumps(results, indent=1) + "\n")
    plot(rows, stopped, trained_steps, (folder / STEPS).with_suffix(".png"))
    print(f"\n{write_page(args.output_dir)}")


if __name__ == "__main__":
    run_script(main)
