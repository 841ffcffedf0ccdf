"""From the name of a data set to graphs of PyTorch Geometric with what a model takes.

`mutag` comes with the package: 188 nitroaromatic compounds, and whether they are mutagenic to Salmonella typhimurium
(Debnath et al. 1991), in the text files of the collection TUDataset (Morris et al. 2020). Others are read from a local
folder of such files, or downloaded by PyTorch Geometric.

Shapes: n nodes, E edges, F node features, K edge features, k positions.
"""

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
import torch_geometric
from torch_geometric.data import Batch, Data
from torch_geometric.datasets import GNNBenchmarkDataset, TUDataset
from torch_geometric.transforms import AddLaplacianEigenvectorPE

from ..data.holding_out import stratified
from ..utils.errors import UserError, first_line
from ..utils.suggestions import did_you_mean
from .anomalies import inject_anomalies
from .molecules import load_b3db

EMBEDDED = {"mutag": "MUTAG", "mutag_anomalies": "MUTAG"}
LABEL_NAMES = {
    "mutag": ("not mutagenic", "mutagenic"),
    "mutag_anomalies": ("as it was", "anomalous"),
    "b3db": ("does not pass", "passes the blood-brain barrier"),
}
IGNORED = -100  # the label of a node that is outside of the loss and of the figures
_BENCHMARK = ("CIFAR10", "CLUSTER", "MNIST", "PATTERN")  # of Dwivedi et al. 2020; their others are pickles
_MOLECULES = 24  # in each of the graphs of `mutag_anomalies`


@dataclass(frozen=True)
class GraphSplits:
    """Graphs to train on and held-out ones, each with `x (n, F)`, `edge_index (2, E)`, `y`, and where the data have
    them `edge_attr (E, K)` and `positions (n, k)`.

    Of node tasks `y (n,)` is [`IGNORED`] where a node belongs to the other part, and both parts may be the same graphs.
    """

    train: list[Data]
    held_out: list[Data]
    label_names: tuple[str, ...]


def load_graphs(name: str, folder: str | Path | None = None) -> list[Data] | tuple[list[Data], list[Data]]:
    """All graphs of a data set, or its own training and validation part.

    Args:
        name: one of `EMBEDDED`, `b3db` (see [`molecules.load_b3db`]), one of the TU collection (`PROTEINS`, `NCI1`,
            ...), or CIFAR10, CLUSTER, MNIST or PATTERN (Dwivedi et al. 2020).
        folder: where the files NAME_A.txt, NAME_graph_indicator.txt, ... of a TU data set lie. It is only read.

    Raises:
        UserError: when there are no such files, or nothing can be downloaded.
    """
    if folder is None and name in EMBEDDED:
        graphs = _read_tu(EMBEDDED[name], Path(__file__).with_name("mutag"))
        return _with_anomalies(graphs) if name == "mutag_anomalies" else graphs
    if folder is None and name == "b3db":
        return load_b3db()
    if folder is not None:
        return _read_tu(name, Path(folder).expanduser())
    root = Path(datasets.config.HF_DATASETS_CACHE) / "energy_transformer_graphs"
    try:
        with _without_pickles():
            if name in _BENCHMARK:
                train, held_out = (GNNBenchmarkDataset(str(root), name, split=split) for split in ("train", "val"))
                return _plain(train), _plain(held_out)
            return _plain(TUDataset(str(root), name, use_node_attr=True, use_edge_attr=True))
    except Exception as error:  # fsspec, aiohttp, zipfile and PyTorch Geometric have one each
        near = did_you_mean(name, [*EMBEDDED, "b3db", *_BENCHMARK])
        raise UserError(
            f"dataset_name {name} could not be downloaded{near}: pass a local copy with --train_dir FOLDER, or "
            f"--dataset_name mutag for the embedded molecules ({first_line(error)})"
        ) from error


@contextlib.contextmanager
def _without_pickles() -> Iterator[None]:
    """PyTorch Geometric opens with pickle what torch refuses as unsafe, unless this variable is set."""
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        yield
    finally:
        del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        if before is not None:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before


def _read_tu(name: str, folder: Path) -> list[Data]:
    """TU files of a folder, which stays as it is: PyTorch Geometric writes its own file beside a copy of them."""
    if not folder.is_dir():
        raise UserError(f"train_dir: there is no folder {folder}")
    files = sorted(folder.glob(f"{name}_*.txt"))
    if f"{name}_A.txt" not in [file.name for file in files]:
        raise UserError(f"train_dir {folder} holds no {name}_A.txt: it must hold the TU files of dataset_name {name}")
    with tempfile.TemporaryDirectory() as root:
        raw = Path(root, name, "raw")
        raw.mkdir(parents=True)
        for file in files:
            shutil.copy(file, raw)
        try:
            with _without_pickles(), contextlib.redirect_stderr(io.StringIO()):  # it tells of its own file
                return _plain(TUDataset(root, name, use_node_attr=True, use_edge_attr=True))
        except (OSError, ValueError, RuntimeError, IndexError) as error:
            raise UserError(f"train_dir {folder}: the files of {name} cannot be read: {first_line(error)}") from error


def _plain(graphs: torch_geometric.data.Dataset) -> list[Data]:
    """Each graph with what a model takes alone: coordinates are features, and nodes without features have a 1."""
    return [_plain_graph(graph) for graph in graphs]


def _plain_graph(graph: Data) -> Data:
    features = [part for part in (graph.x, graph.pos) if part is not None] or [torch.ones(graph.num_nodes, 1)]
    plain = Data(x=torch.cat([part.float() for part in features], 1), edge_index=graph.edge_index, y=graph.y)
    if graph.edge_attr is not None:
        plain.edge_attr = graph.edge_attr.float().reshape(graph.num_edges, -1)
    return plain


def _with_anomalies(graphs: list[Data]) -> list[Data]:
    """Unions of molecules in which a 20th of the atoms are anomalous: two cliques of 5 and 10 exchanged atoms each."""
    generator = np.random.default_rng(0)
    order = generator.permutation(len(graphs))
    unions = [
        Batch.from_data_list([graphs[place] for place in order[first : first + _MOLECULES]])
        for first in range(0, len(graphs), _MOLECULES)
    ]
    parts = [Data(x=union.x, edge_index=union.edge_index) for union in unions]  # an edge of a clique is no bond
    return [inject_anomalies(part, cliques=2, clique_size=5, attributes=10, generator=generator) for part in parts]


def split_graphs(
    name: str, folder: str | Path | None, of_nodes: bool, share: float, seed: int, num_positions: int
) -> GraphSplits:
    """The two parts of a data set for a task on graphs or `of_nodes`; see [`load_graphs`].

    Args:
        share: of the graphs or nodes of each label that is held out, where the data set has no part for it.
        seed: decides which.
        num_positions: k, see [`with_positions`].

    Raises:
        UserError: also when the data have no such labels.
    """
    found = load_graphs(name, folder)
    graphs = found if isinstance(found, list) else found[0] + found[1]
    what = "node" if of_nodes else "graph"
    if any(graph.y is None or len(graph.y) != (graph.num_nodes if of_nodes else 1) for graph in graphs):
        raise UserError(f"dataset_name {name} has no label of each {what}: it is not for {what} classification")
    labels = torch.cat([graph.y for graph in graphs])
    if labels.is_floating_point() or len(labels.unique()) < 2:
        raise UserError(f"dataset_name {name} has no classes: {what} classification needs at least 2 whole numbers")
    names = LABEL_NAMES.get(name) or tuple(map(str, range(int(labels.max()) + 1)))
    graphs = [with_positions(graph, num_positions) for graph in graphs]
    if not isinstance(found, list):
        return GraphSplits(graphs[: len(found[0])], graphs[len(found[0]) :], names)
    count = int(np.ceil(share * len(labels)))
    if count >= len(labels):
        raise UserError(f"train_val_split {share} of {len(labels)} {what}s leaves none to train on")
    held_out = np.sort(stratified(labels.numpy(), count, seed))
    kept = np.setdiff1d(np.arange(len(labels)), held_out)
    if of_nodes:
        return GraphSplits(_labels_of(graphs, labels, kept), _labels_of(graphs, labels, held_out), names)
    return GraphSplits([graphs[place] for place in kept], [graphs[place] for place in held_out], names)


def _labels_of(graphs: list[Data], labels: torch.Tensor, places: np.ndarray) -> list[Data]:
    """The graphs with the labels at `places` of all their nodes alone."""
    own = torch.full_like(labels, IGNORED)
    own[torch.from_numpy(places)] = labels[torch.from_numpy(places)]
    parts = own.split([graph.num_nodes for graph in graphs])
    return [Data(**{**graph.to_dict(), "y": part}) for graph, part in zip(graphs, parts, strict=True)]


def with_positions(graph: Data, count: int) -> Data:
    """The graph with `positions` (n, count): the eigenvectors of its normalized Laplacian after the first, as
    [`AddLaplacianEigenvectorPE`] finds them, and zeros where a small graph has no more.

    The sign of an eigenvector is arbitrary, as is the basis of an eigenspace of several dimensions. Here it is that of
    a fixed seed; training flips the signs at random.
    """
    if not count:
        return graph
    found = min(count, graph.num_nodes - 1)
    positions = torch.zeros(graph.num_nodes, count)
    if found and graph.num_edges:
        start = {} if graph.num_nodes < 100 else {"v0": np.random.default_rng(0).random(graph.num_nodes)}
        transform = AddLaplacianEigenvectorPE(found, "positions", is_undirected=True, **start)
        if found == graph.num_nodes - 1:
            transform.SPARSE_THRESHOLD = graph.num_nodes + 1  # the sparse solver does not find all eigenvectors
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            positions[:, :found] = transform(Data(edge_index=graph.edge_index, num_nodes=graph.num_nodes)).positions
    return Data(**{**graph.to_dict(), "positions": positions})
