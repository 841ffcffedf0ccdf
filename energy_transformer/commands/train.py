"""Train or fine-tune a model of a task: masked-image-modeling, image-, graph- or node-classification.

`accelerate launch -m energy_transformer train TASK` runs it on several devices.
"""

import sys
from pathlib import Path

from ..utils.errors import UserError
from ..utils.suggestions import did_you_mean


def masked_image_modeling(argv: list[str]) -> None:
    """Train a masked-image model, which fills in the hidden patches of images."""
    from ..training.masked_image_modeling_arguments import MaskedImageModelingArguments
    from ..training.parsing import parse_arguments

    # a mistake is reported before the slow import
    args = parse_arguments(argv, None, MaskedImageModelingArguments, masked_image_modeling.__doc__)
    from ..training.masked_image_modeling import MaskedImageModelingTraining

    training = MaskedImageModelingTraining(args)
    results = training.run()
    if training.accelerator.is_main_process:
        _tell_places(args.output_dir)
        print(
            f"training: {results['train_steps']} steps, {results['train_samples_per_second']:.0f} images/s, "
            f"{results['train_data_wait_share']:.1%} of the time waiting for data"
        )
        print("held-out mean squared error over the hidden pixels, in units of [0, 1]:")
        print(f"  model             {results['eval_masked_mse']:.5f}")
        print(f"  mean color        {results['eval_mean_color_mse']:.5f}")
        print(f"  neighbor average  {results['eval_neighbor_average_mse']:.5f}")
        print(f"  model / mean color: {results['eval_ratio_to_mean_color']:.3f}")


def image_classification(argv: list[str]) -> None:
    """Train an image classifier, from scratch or from a checkpoint."""
    from ..training.image_classification_arguments import ImageClassificationArguments
    from ..training.parsing import parse_arguments

    # a mistake is reported before the slow import
    args = parse_arguments(argv, None, ImageClassificationArguments, image_classification.__doc__)
    from ..training.image_classification import ImageClassificationTraining

    training = ImageClassificationTraining(args)
    results = training.run()
    if training.accelerator.is_main_process:
        _tell_places(args.output_dir)
        print(f"held-out accuracy over {results['eval_samples']} images:")
        print(f"  model                        {results['eval_accuracy']:.4f}")
        print(f"  majority label               {results['eval_majority_accuracy']:.4f}")
        if "eval_pixel_probe_accuracy" in results:
            print(f"  linear classifier of pixels  {results['eval_pixel_probe_accuracy']:.4f}")


def graph_classification(argv: list[str]) -> None:
    """Train a classifier of graphs."""
    from ..training.graph_arguments import GraphClassificationArguments
    from ..training.parsing import parse_arguments

    args = parse_arguments(argv, None, GraphClassificationArguments, graph_classification.__doc__)
    from ..training.graph_training import GraphClassificationTraining

    training = GraphClassificationTraining(args)
    results = training.run()
    if training.accelerator.is_main_process:
        _tell_places(args.output_dir)
        print(f"held-out accuracy over {results['eval_samples']} graphs:")
        print(f"  model                       {results['eval_accuracy']:.4f}")
        print(f"  majority label              {results['eval_majority_accuracy']:.4f}")
        print(f"  linear classifier of sums   {results['eval_linear_accuracy']:.4f}")


def node_classification(argv: list[str]) -> None:
    """Train a classifier of the nodes of graphs; with two labels, an anomaly detector."""
    from ..training.graph_arguments import NodeClassificationArguments
    from ..training.parsing import parse_arguments

    args = parse_arguments(argv, None, NodeClassificationArguments, node_classification.__doc__)
    from ..training.graph_training import NodeClassificationTraining

    training = NodeClassificationTraining(args)
    results = training.run()
    if training.accelerator.is_main_process:
        _tell_places(args.output_dir)
        print(f"held-out mean F1 of the labels over {results['eval_samples']} nodes:")
        print(f"  model           {results['eval_macro_f1']:.4f}")
        print(f"  majority label  {results['eval_majority_macro_f1']:.4f}")
        if "eval_roc_auc" in results:
            print(f"area under the ROC curve {results['eval_roc_auc']:.4f}")


def _tell_places(output_dir: str) -> None:
    print(f"model:    {output_dir}")
    print(f"pictures: {Path(output_dir) / 'samples'}")


TASKS = {
    "masked-image-modeling": masked_image_modeling,
    "image-classification": image_classification,
    "graph-classification": graph_classification,
    "node-classification": node_classification,
}


def main(argv: list[str]) -> None:
    """Train the task that the first word names, with the options after it.

    Raises:
        UserError: when there is no such task.
    """
    name, *words = argv or [""]
    task = name.replace("_", "-")
    if task in ("-h", "--help"):
        print(f"usage: {sys.argv[0]} TASK [--option value ...]\n\n{__doc__}\ntasks:")
        for known, function in TASKS.items():
            print(f"  {known:<22} {function.__doc__}")
        print(f"\n`{sys.argv[0]} TASK --help` lists the options of a task.")
        return
    if task not in TASKS:
        what = f"there is no task {name!r}{did_you_mean(task, TASKS)}" if name else "name a task"
        raise UserError(f"{what} ({', '.join(TASKS)})")
    sys.argv = [f"{sys.argv[0]} {task}", *words]
    TASKS[task](words)
