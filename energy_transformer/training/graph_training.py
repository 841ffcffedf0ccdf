"""Classification of graphs and of their nodes, on batches of PyTorch Geometric."""

import copy
import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch.utils.data import DataLoader, Dataset
from torch_geometric.data import Batch, Data
from transformers.utils import ModelOutput

from ..configuration_energy_transformer_graph import EnergyTransformerGraphConfig
from ..graphs.datasets import IGNORED, split_graphs
from ..graphs.pictures import descent_figure
from ..hub import load_pretrained
from ..inspection.pictures import even_sample
from ..modeling_energy_transformer_graph import (
    EnergyTransformerForGraphClassification,
    EnergyTransformerForNodeClassification,
    summed_cross_entropy,
)
from ..utils.errors import UserError
from .finish import Training
from .graph_arguments import GraphArguments, NodeClassificationArguments
from .graph_evaluation import collect_logits, graph_figures, inputs_of, linear_accuracy, node_figures
from .loaders import Batch as Draws
from .loaders import MapTrainLoader, build_sampler
from .model_configuration import configure


class GraphSamples(Dataset):
    """Graphs by their numbers, which count on from epoch to epoch; each tells its own as `number`."""

    def __init__(self, graphs: list[Data]):
        self.graphs = [Data(**graph.to_dict(), number=number) for number, graph in enumerate(graphs)]

    def __len__(self) -> int:
        return len(self.graphs)

    def __getitem__(self, number: int) -> Data:
        return self.graphs[number % len(self.graphs)]

    @staticmethod
    def collate(graphs: list[Data]) -> Batch:
        return Batch.from_data_list(graphs)


def _some(graphs: list[Data], count: int | None, seed: int) -> list[Data]:
    """So many of them, drawn with the seed as images are; all when None."""
    if count is None or count >= len(graphs):
        return graphs
    return [graphs[place] for place in np.random.default_rng(seed).permutation(len(graphs))[:count]]


class GraphTraining(Training):
    """One run of a task on graphs: what both have in common."""

    args: GraphArguments
    unit: ClassVar[str] = "graphs"
    pictures: ClassVar[tuple[str, ...]] = ("graph_descent.png",)
    minimize: ClassVar[bool] = False
    of_nodes: ClassVar[bool]
    task_model: Any

    def build_config(self) -> EnergyTransformerGraphConfig:
        return configure(self.args, EnergyTransformerGraphConfig, label_smoothing=self.args.label_smoothing)

    def load_data(self) -> tuple[GraphSamples, GraphSamples]:
        args, config = self.args, self.config
        splits = split_graphs(
            args.dataset_name,
            args.train_dir,
            self.of_nodes,
            args.train_val_split,
            args.seed,
            config.num_position_features,
        )
        self.names = splits.label_names
        train = _some(splits.train, args.max_train_samples, args.seed)
        held_out = _some(splits.held_out, args.max_eval_samples, args.seed)
        config.num_node_features = train[0].num_node_features
        config.num_edge_features = train[0].num_edge_features
        config.id2label = dict(enumerate(self.names))
        config.label2id = {name: label for label, name in enumerate(self.names)}
        config.problem_type = "single_label_classification"
        self.train_samples = len(train)
        self.train_graphs, self.held_out_graphs = GraphSamples(train), GraphSamples(held_out)
        labels = torch.cat([graph.y for graph in train])
        self.label_counts = labels[labels != IGNORED].bincount(minlength=len(self.names))
        if (self.label_counts > 0).sum() < 2:
            raise UserError(f"the {len(train)} graphs to train on have one class alone: raise max_train_samples")
        return self.train_graphs, self.held_out_graphs

    def build_loaders(self, train: GraphSamples, held_out: GraphSamples) -> tuple[MapTrainLoader, DataLoader]:
        sampler = build_sampler(len(train), self.unit, self.args, self.accelerator)
        batches = DataLoader(held_out, self.args.per_device_eval_batch_size, collate_fn=GraphSamples.collate)
        return MapTrainLoader(train, sampler, 0, self.accelerator.device), batches

    def fingerprint(self, samples: GraphSamples) -> str:
        checksum = hashlib.sha256()
        for graph in samples.graphs:
            for name, values in sorted(graph.to_dict().items()):
                if torch.is_tensor(values) and name != "positions":  # of which a library decides the basis
                    checksum.update(values.numpy().tobytes())
        return f"{len(samples)} graphs ({checksum.hexdigest()[:12]})"

    def build_model(self) -> Any:
        source = self.args.model_name_or_path
        return load_pretrained(self.task_model, source, config=self.config) if source else self.task_model(self.config)

    def draw(self, num_samples: int, generator: torch.Generator) -> Draws:
        """A sign for each eigenvector of each graph: an eigenvector is one up to its sign."""
        size = num_samples, self.config.num_position_features
        signs = torch.randint(0, 2, size, generator=generator, device=generator.device)
        return {"signs": 2.0 * signs - 1}

    def augmented(self, batch: Batch, draws: Draws) -> Batch:
        if self.config.num_position_features:
            batch = copy.copy(batch)
            batch.positions = batch.positions * draws["signs"][batch.batch]
        return batch

    @cached_property
    def linear_baseline(self) -> float:
        """Of the main process, while the others wait for it."""
        found: list[float | None] = [None]
        if self.accelerator.is_main_process:
            found = [linear_accuracy(self.train_graphs.graphs, self.held_out_graphs.graphs, self.of_nodes)]
        return broadcast_object_list(found)[0]

    def describe(self, results: dict[str, float]) -> str:
        return f"held-out accuracy {results['eval_accuracy']:.3f}"

    def save_pictures(self, model: Any, folder: Path) -> None:
        rows = even_sample(len(self.held_out_graphs), self.args.num_visual_samples, self.args.seed)
        graphs = [self.held_out_graphs[row] for row in rows]
        descent_figure(model, graphs).save(folder / "graph_descent.png")


class GraphClassificationTraining(GraphTraining):
    """One run of `scripts/train_graph_classification.py`."""

    metric: ClassVar[str] = "eval_accuracy"
    of_nodes: ClassVar[bool] = False
    task_model = EnergyTransformerForGraphClassification

    def forward(self, batch: Batch, draws: Draws, **options) -> ModelOutput:
        return self.model(**inputs_of(batch), labels=batch.y, **options)

    def evaluate(self) -> dict[str, float]:
        logits, labels = collect_logits(self.model, self.eval_loader, self.of_nodes)
        results = graph_figures(logits, labels, self.names, int(self.label_counts.argmax()))
        return {**results, "eval_linear_accuracy": self.linear_baseline, "eval_samples": len(labels)}


class NodeClassificationTraining(GraphTraining):
    """One run of `scripts/train_node_classification.py`.

    The loss of a step is the sum over its nodes with a label, divided by what such a sum has on average in so many
    graphs: so it does not depend on how the graphs of a step are divided.
    """

    args: NodeClassificationArguments
    metric: ClassVar[str] = "eval_macro_f1"
    of_nodes: ClassVar[bool] = True
    task_model = EnergyTransformerForNodeClassification

    def load_data(self) -> tuple[GraphSamples, GraphSamples]:
        samples = super().load_data()
        if self.args.balance_labels:
            shares = self.label_counts.clamp(min=1) * len(self.names) / self.label_counts.sum()
            self.config.class_weight = (1 / shares).tolist()
        weights = torch.tensor(self.config.class_weight or [1.0] * len(self.names))
        self.weight_of_a_graph = float((weights * self.label_counts).sum() / len(self.train_graphs))
        return samples

    def forward(self, batch: Batch, draws: Draws, **options) -> ModelOutput:
        outputs = self.model(**inputs_of(batch), **options)
        total, _ = summed_cross_entropy(outputs.logits.float(), batch.y, self.config)
        outputs.loss = total / (batch.num_graphs * self.weight_of_a_graph)
        return outputs

    def evaluate(self) -> dict[str, float]:
        logits, labels = collect_logits(self.model, self.eval_loader, self.of_nodes)
        results = node_figures(logits, labels, int(self.label_counts.argmax()))
        return {**results, "eval_linear_accuracy": self.linear_baseline, "eval_samples": len(labels)}

    def describe(self, results: dict[str, float]) -> str:
        return f"held-out macro-F1 {results['eval_macro_f1']:.3f}"
