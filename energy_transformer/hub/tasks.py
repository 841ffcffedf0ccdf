"""What the Hub needs to know of each model class: Auto class, pipeline, metrics and baselines."""

from dataclasses import dataclass

# of pixels in [0, 1]: images of which a baseline has no greater error are too plain to compare with it
LEAST_ERROR = 1e-10


@dataclass(frozen=True)
class Task:
    """One head and how it is measured.

    Attributes:
        auto_class: the Auto class of transformers that opens its checkpoints.
        pipeline_tag: the Hub's name of the pipeline that such a checkpoint serves.
        purpose: what it was trained for, after "trained".
        task_type: the Hub's name of the task that the metric measures.
        task_name: the same in words.
        metric: name of the metric among those of `evaluate`.
        metric_name: the same in words.
        result: its key in `all_results.json`.
        baselines: keys of other predictions of the same images, with what they are.
        limits: what a user of any such model should know.
        unit: what it is applied to, in words.
    """

    auto_class: str
    pipeline_tag: str
    purpose: str
    task_type: str
    task_name: str
    metric: str
    metric_name: str
    result: str
    baselines: dict[str, str]
    limits: tuple[str, ...]
    unit: str = "images"


TASKS = {
    "EnergyTransformerForMaskedImageModeling": Task(
        auto_class="AutoModelForMaskedImageModeling",
        pipeline_tag="image-feature-extraction",
        purpose="to fill in the hidden patches of images",
        task_type="image-to-image",
        task_name="Masked image modeling",
        metric="mse",
        metric_name="Mean squared error over the hidden pixels, in units of [0, 1]",
        result="eval_masked_mse",
        baselines={
            "eval_mean_color_mse": "mean color of the visible pixels",
            "eval_neighbor_average_mse": "distance-weighted average of the visible patches",
        },
        limits=(
            "What it paints into a hidden patch is plausible at best, not what was there: do not read details, text, "
            "faces or findings out of it.",
        ),
    ),
    "EnergyTransformerForImageClassification": Task(
        auto_class="AutoModelForImageClassification",
        pipeline_tag="image-classification",
        purpose="to classify images",
        task_type="image-classification",
        task_name="Image classification",
        metric="accuracy",
        metric_name="Accuracy",
        result="eval_accuracy",
        baselines={"eval_majority_accuracy": "always the most frequent class"},
        limits=("Every image gets one of its classes, one that shows none of them too.",),
    ),
    "EnergyTransformerForGraphClassification": Task(
        auto_class="AutoModelForSequenceClassification",
        pipeline_tag="graph-ml",
        purpose="to classify graphs",
        task_type="graph-ml",
        task_name="Graph classification",
        metric="accuracy",
        metric_name="Accuracy",
        result="eval_accuracy",
        baselines={
            "eval_linear_accuracy": "logistic regression of the summed features of nodes and edges",
            "eval_majority_accuracy": "always the most frequent class",
        },
        limits=("Every graph gets one of its classes, one that is unlike all of its data too.",),
        unit="graphs",
    ),
    "EnergyTransformerForNodeClassification": Task(
        auto_class="AutoModelForTokenClassification",
        pipeline_tag="graph-ml",
        purpose="to classify the nodes of graphs",
        task_type="graph-ml",
        task_name="Node classification",
        metric="f1",
        metric_name="Mean F1 of the classes",
        result="eval_macro_f1",
        baselines={"eval_majority_macro_f1": "always the most frequent class"},
        limits=("Every node gets one of its classes, one that is unlike all of its data too.",),
        unit="nodes",
    ),
}
