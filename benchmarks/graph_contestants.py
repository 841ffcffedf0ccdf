"""What `graphs.py` compares: Energy Transformers and message passing of PyTorch Geometric, of the same size."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch
from torch_geometric.nn import GCNConv, GINEConv, global_add_pool

from energy_transformer.configuration_energy_transformer_graph import EnergyTransformerGraphConfig
from energy_transformer.modeling_energy_transformer_graph import (
    EnergyTransformerForGraphClassification,
    EnergyTransformerForNodeClassification,
)
from energy_transformer.training.graph_evaluation import inputs_of


class GIN(nn.Module):
    """A graph isomorphism network (Xu et al. 2019) whose messages know the edges (Hu et al. 2020, "GINE"): batch norm
    after each layer, the sum over the nodes, a linear classifier."""

    def __init__(self, features: int, edge_features: int, labels: int, width: int, layers: int, dropout: float):
        super().__init__()
        self.embedding = nn.Linear(features, width)
        self.layers, self.norms = nn.ModuleList(), nn.ModuleList()
        for _ in range(layers):
            network = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width))
            self.layers.append(GINEConv(network, train_eps=True, edge_dim=edge_features))
            self.norms.append(nn.BatchNorm1d(width))
        self.dropout, self.classifier = nn.Dropout(dropout), nn.Linear(width, labels)

    def forward(self, batch: Batch) -> Tensor:
        x = self.embedding(batch.x)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(layer(x, batch.edge_index, batch.edge_attr)).relu()
        return self.classifier(self.dropout(global_add_pool(x, batch.batch)))


class GCN(nn.Module):
    """A graph convolutional network (Kipf and Welling 2017) that classifies nodes."""

    def __init__(self, features: int, labels: int, width: int, layers: int, dropout: float):
        super().__init__()
        widths = [features, *[width] * layers]
        self.layers = nn.ModuleList(GCNConv(one, two) for one, two in pairwise(widths))
        self.dropout, self.classifier = nn.Dropout(dropout), nn.Linear(width, labels)

    def forward(self, batch: Batch) -> Tensor:
        x = batch.x
        for layer in self.layers:
            x = self.dropout(layer(x, batch.edge_index).relu())
        return self.classifier(x)


class OfEnergy(nn.Module):
    """An Energy Transformer that takes a batch; the signs of its positions are drawn anew in each training step."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        given = inputs_of(batch)
        if given["positions"] is not None and self.training:
            signs = 2.0 * torch.randint(0, 2, (batch.num_graphs, given["positions"].shape[1])) - 1
            given["positions"] = given["positions"] * signs[batch.batch]
        return self.model(**given).logits


def build(name: str, options: dict, features: int, edge_features: int, labels: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    if name == "GIN":
        return GIN(features, edge_features, labels, **options)
    if name == "GCN":
        return GCN(features, labels, **options)
    config = EnergyTransformerGraphConfig(
        num_node_features=features, num_edge_features=edge_features, num_labels=labels, **options
    )
    of_nodes = name == "energy transformer of nodes"
    kind = EnergyTransformerForNodeClassification if of_nodes else EnergyTransformerForGraphClassification
    return OfEnergy(kind(config))
