"""The options of the tasks on graphs."""

from dataclasses import dataclass
from typing import ClassVar

from .arguments import CommonArguments, option
from .option_rules import check


@dataclass
class GraphArguments(CommonArguments):
    """What both tasks on graphs have beside the common options.

    Raises:
        UserError: when an option's value is not allowed.
    """

    dataset_name: str = option(
        "mutag",
        "'mutag' (188 embedded molecules), 'mutag_anomalies' (for nodes), 'b3db' (7,807 molecules of a "
        "package of its own), a data set of the TU collection such as "
        "PROTEINS, or CIFAR10, CLUSTER, MNIST or PATTERN.",
        "data",
    )
    train_dir: str | None = option(None, "A local folder of TU files NAME_A.txt, ... of dataset_name.", "data")
    label_smoothing: float | None = option(
        None, "Smooth the labels by this share. It is that of the model when not given.", "labels"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, [(("label_smoothing",), lambda value: 0 <= value < 1, "lie in [0, 1)")])


@dataclass
class GraphClassificationArguments(GraphArguments):
    """Options of `scripts/train_graph_classification.py`."""

    task: ClassVar[str] = "graph_classification"

    output_dir: str = option(
        "outputs/graph_classification", "The folder for the model, the pictures and the results.", "run"
    )


@dataclass
class NodeClassificationArguments(GraphArguments):
    """Options of `scripts/train_node_classification.py`."""

    task: ClassVar[str] = "node_classification"

    output_dir: str = option(
        "outputs/node_classification", "The folder for the model, the pictures and the results.", "run"
    )
    dataset_name: str = option("mutag_anomalies", GraphArguments.__dataclass_fields__["dataset_name"].metadata["help"])
    balance_labels: bool = option(
        False, "Let each label count as much as any other in the loss, however many nodes have it.", "labels"
    )
