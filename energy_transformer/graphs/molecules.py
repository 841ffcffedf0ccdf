"""Molecules as graphs, by RDKit and PyTorch Geometric: atoms and bonds with one-hot features."""

import csv
from importlib import metadata
from pathlib import Path

import torch
from torch.nn import functional as F
from torch_geometric.data import Data
from torch_geometric.utils import from_smiles

from ..utils.errors import UserError

ATOMS = (5, 6, 7, 8, 9, 11, 14, 15, 16, 17, 34, 35, 53)  # numbers of elements; any other is the last of the features
_ATOM_SIZES = (4, 7, 12, 6, 2, 8, 2, 2)  # chirality, degree, charge, hydrogens, radicals, hybridization, aromatic, ring
_BONDS = (1, 2, 3, 12)  # single, double, triple and aromatic, as PyTorch Geometric numbers them; any other is the last
_B3DB = "B3DB/B3DB_classification.tsv"


def molecule(smiles: str) -> Data:
    """The graph of a molecule: `x` (atoms, 57), `edge_attr` (bonds in both directions, 13) and its `smiles`.

    A category beyond the last one that is listed counts as the last.
    """
    graph = from_smiles(smiles)
    kind = _place(graph.x[:, 0], ATOMS)
    columns = [F.one_hot(kind, len(ATOMS) + 1)]
    columns += [F.one_hot(graph.x[:, 1 + place].clamp(max=size - 1), size) for place, size in enumerate(_ATOM_SIZES)]
    bonds = [
        F.one_hot(_place(graph.edge_attr[:, 0], _BONDS), len(_BONDS) + 1),
        F.one_hot(graph.edge_attr[:, 1].clamp(max=5), 6),
        F.one_hot(graph.edge_attr[:, 2], 2),
    ]
    features = (torch.cat(parts, 1).float() for parts in (columns, bonds))
    x, edge_attr = features
    return Data(x=x, edge_index=graph.edge_index, edge_attr=edge_attr, smiles=smiles)


def _place(values: torch.Tensor, known: tuple[int, ...]) -> torch.Tensor:
    """The place of each value in `known`, or the number of these."""
    places = torch.full((max(max(known), int(values.max()) if len(values) else 0) + 1,), len(known))
    places[list(known)] = torch.arange(len(known))
    return places[values]


def load_b3db() -> list[Data]:
    """The 7,807 molecules of B3DB (Meng et al. 2021, CC0), `y` 1 where one passes the blood-brain barrier.

    Raises:
        UserError: when the package that holds them is missing, or RDKit.
    """
    try:
        table = next(file for file in metadata.files("qc-B3DB") or [] if str(file) == _B3DB)
        import rdkit  # noqa: F401
    except (metadata.PackageNotFoundError, StopIteration, ImportError) as error:
        raise UserError("the data set b3db needs its package and RDKit: pip install qc-b3db rdkit") from error
    with Path(str(table.locate())).open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    graphs = [molecule(row["SMILES"]) for row in rows]
    for graph, row in zip(graphs, rows, strict=True):
        graph.y = torch.tensor([int(row["BBB+/BBB-"] == "BBB+")])
    return graphs
