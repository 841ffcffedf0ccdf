"""Evaluation of a finished masked-image model on any dataset, for several kinds and ratios of masks."""

from pathlib import Path

from accelerate import Accelerator
from torch.utils.data import DataLoader

from ..data import ImageTensors
from ..inspection import load_for_reconstruction
from ..metrics.ssim import WINDOW
from ..utils.errors import UserError
from ..utils.files import write_json
from .checkpoint_evaluation_arguments import EvaluationArguments
from .feature_evaluation import evaluate_features, feature_lines
from .loaders import build_eval_loader, load_splits
from .masked_image_modeling_evaluation import PREDICTORS, evaluation_masks, score_predictions

_METRICS = ("masked_mse", "psnr", "ssim")
_NAMES = {"model": "model", "mean_color": "mean color", "neighbor_average": "neighbor average"}


def evaluate_checkpoint(checkpoint: str, args: EvaluationArguments, accelerator: Accelerator) -> dict:
    """What was evaluated, and `results`: an entry for each mask and predictor, the same on every process. With
    `args.features` also `features`, see [`evaluate_features`].

    Raises:
        UserError: when the checkpoint, the data or the size of the images do not serve.
    """
    model, processor = load_for_reconstruction(checkpoint, device="cpu")
    config = model.config
    height, width = config.image_height_width
    if min(height, width) < WINDOW:
        raise UserError(f"checkpoint {checkpoint} is of {height}x{width} pixels, but SSIM needs {WINDOW}x{WINDOW}")
    loader = _build_loader(args, accelerator, processor)
    if len(loader.dataset) < 2:
        raise UserError(f"a confidence interval needs at least 2 images, got {len(loader.dataset)}")
    model, loader = accelerator.prepare(model, loader)
    units = config.grid_size[0] * config.grid_size[1]
    results = []
    for kind in args.mask_types:
        for ratio in args.mask_ratios:
            masks = evaluation_masks(config, len(loader.dataset), units, args.seed, kind, ratio)
            scores = score_predictions(
                accelerator, model, loader, processor, masks, _METRICS, args.num_steps, args.confidence_level
            )
            mask = {"mask_type": kind, "mask_ratio": ratio, "hidden_patches": int(masks[0].sum())}
            results += [{**mask, "prediction": name, **scores[name]} for name in PREDICTORS]
    features = evaluate_features(accelerator.unwrap_model(model), processor, args) if args.features else None
    return {
        "checkpoint": checkpoint,
        "dataset": args.validation_dir or args.train_dir or args.dataset_name,
        "split": args.split,
        "samples": loader.dataset.num_readable,
        "broken_images": loader.dataset.broken_images()[0],
        "patches": units,
        "patch_statistics": "estimated" if config.norm_pix_loss else "predicted",
        "num_steps": config.num_steps if args.num_steps is None else args.num_steps,
        "seed": args.seed,
        "confidence_level": args.confidence_level,
        "results": results,
        **({} if features is None else {"features": features}),
    }


def _build_loader(args: EvaluationArguments, accelerator: Accelerator, processor) -> DataLoader:
    limit = {"max_train_samples" if args.split == "train" else "max_eval_samples": args.max_eval_samples}
    with accelerator.main_process_first():
        splits, column = load_splits(args, **limit)
        images = ImageTensors(
            splits[args.split],
            column,
            processor,
            num_workers=args.dataloader_num_workers,
            max_image_pixels=args.max_image_pixels,
        )
    return build_eval_loader(images, args)


def format_table(report: dict) -> str:
    """The results as lines of text, each mean with half the width of its interval."""
    level = f"{report['confidence_level']:.0%}"
    lines = [
        f"{report['samples']} images, {report['num_steps']} steps; mean over images ± half its {level} interval",
        f"{'mask':<16} {'hidden':>8}  {'prediction':<17} {'masked MSE':>17}  {'PSNR (dB)':>12}  {'SSIM':>15}",
    ]
    if report["broken_images"]:
        lines.insert(1, f"{report['broken_images']} broken images are left out")
    if report["patch_statistics"] == "estimated":
        lines.insert(1, "mean and contrast of the hidden patches: estimated from the visible ones (norm_pix_loss)")
    for row in report["results"]:
        half = {metric: row[f"{metric}_high"] - row[metric] for metric in _METRICS}
        hidden = f"{row['hidden_patches']}/{report['patches']}"
        lines.append(
            f"{row['mask_type']:<16} {hidden:>8}  {_NAMES[row['prediction']]:<17} "
            f"{row['masked_mse']:.5f} ± {half['masked_mse']:.5f}  {row['psnr']:5.2f} ± {half['psnr']:.2f}  "
            f"{row['ssim']:.4f} ± {half['ssim']:.4f}"
        )
    return "\n".join([*lines, *(feature_lines(report["features"]) if "features" in report else [])])


def write_report(report: dict, path: Path) -> None:
    """Write the JSON under a temporary name and move it into place.

    Raises:
        UserError: when it cannot be written.
    """
    try:
        write_json(path, report)
    except OSError as error:
        raise UserError(f"output {path} cannot be written: {error.strerror}") from error
