"""Graphs by PyTorch Geometric: the embedded molecules, folders of TU files, positions, and injected anomalies."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("torch_geometric")  # the extra `graphs`

from torch_geometric.data import Data
from torch_geometric.utils import get_laplacian, to_dense_adj

import energy_transformer.graphs
from energy_transformer import EnergyTransformerForGraphClassification, EnergyTransformerGraphConfig
from energy_transformer.graphs.anomalies import inject_anomalies
from energy_transformer.graphs.datasets import IGNORED, load_graphs, split_graphs, with_positions
from energy_transformer.graphs.pictures import descent_figure, edge_attention, node_energies
from energy_transformer.training.graph_evaluation import inputs_of

MUTAG = Path(energy_transformer.graphs.__file__).parent / "mutag"


def test_the_embedded_molecules_are_those_of_the_paper_and_stay_as_they_are():
    """Debnath et al.: 125 of 188 are mutagenic; 3,371 atoms and 3,721 bonds of 7 and 4 kinds."""
    before = {path.name: path.stat().st_mtime_ns for path in MUTAG.iterdir()}
    graphs = load_graphs("mutag")
    assert len(graphs) == 188 and sum(int(graph.y) for graph in graphs) == 125
    assert sum(graph.num_nodes for graph in graphs) == 3371 and sum(graph.num_edges for graph in graphs) == 2 * 3721
    assert (
        all(torch.equal(graph.x.sum(1), torch.ones(graph.num_nodes)) for graph in graphs) and graphs[0].x.shape[1] == 7
    )
    assert all(torch.equal(graph.edge_attr.sum(1), torch.ones(graph.num_edges)) for graph in graphs)
    assert {path.name: path.stat().st_mtime_ns for path in MUTAG.iterdir()} == before


def test_a_folder_of_tu_files_is_read_by_the_name_of_its_files(tmp_path):
    for file in MUTAG.glob("MUTAG_*.txt"):
        shutil.copy(file, tmp_path / file.name.replace("MUTAG", "MINE"))
    (tmp_path / "MINE_edge_labels.txt").unlink()
    found, known = load_graphs("MINE", tmp_path), load_graphs("mutag")
    assert found[0].edge_attr is None and torch.equal(found[5].x, known[5].x)
    assert torch.equal(found[5].edge_index, known[5].edge_index)


def test_a_share_of_each_label_is_held_out():
    splits = split_graphs("mutag", None, False, 0.25, 3, 2)
    assert (len(splits.train), len(splits.held_out)) == (141, 47)
    assert sum(int(graph.y) for graph in splits.held_out) == round(125 * 0.25)
    of_nodes = split_graphs("mutag_anomalies", None, True, 0.25, 3, 0)
    for own, other in zip(of_nodes.train, of_nodes.held_out, strict=True):
        assert torch.equal(own.x, other.x) and bool(((own.y == IGNORED) ^ (other.y == IGNORED)).all())
    assert sum(int((graph.y == 1).sum()) for graph in of_nodes.held_out) == 40  # of 160


def test_positions_are_eigenvectors_of_the_laplacian():
    graph = with_positions(load_graphs("mutag")[0], 20)
    size = graph.num_nodes
    assert graph.positions.shape == (size, 20) and not graph.positions[:, size - 1 :].any(), "a small graph has no more"
    vectors = graph.positions[:, : size - 1].double()
    edges, values = get_laplacian(graph.edge_index, normalization="sym", num_nodes=size)
    laplacian = to_dense_adj(edges, edge_attr=values.double())[0]
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(size - 1).double(), atol=1e-5, rtol=0)
    eigenvalues = torch.linalg.eigvalsh(laplacian)[1:]
    torch.testing.assert_close(laplacian @ vectors, vectors * eigenvalues, atol=1e-5, rtol=0)
    assert torch.equal(with_positions(graph, 20).positions, graph.positions)
    ring = torch.arange(101)
    edges = torch.stack([torch.cat([ring, (ring + 1) % 101]), torch.cat([(ring + 1) % 101, ring])])
    vectors = with_positions(Data(edge_index=edges, num_nodes=101), 100).positions
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(100), atol=1e-5, rtol=0)


def test_anomalies_are_cliques_and_exchanged_features():
    graph = max(load_graphs("mutag"), key=lambda graph: graph.num_nodes)
    found = inject_anomalies(graph, 2, 4, 3, np.random.default_rng(1))
    anomalous = found.y.nonzero().flatten()
    assert len(anomalous) == 11
    adjacency = to_dense_adj(found.edge_index, max_num_nodes=graph.num_nodes)[0]
    before = to_dense_adj(graph.edge_index, max_num_nodes=graph.num_nodes)[0]
    new = (adjacency - before).nonzero()
    assert torch.equal(adjacency, adjacency.T) and found.is_coalesced() and found.y[new].all() and len(new)
    joined = (adjacency[anomalous][:, anomalous].sum(1) >= 3).nonzero()
    assert len(joined) >= 8, "each of a clique of 4 has at least 3 neighbors among the anomalous nodes"
    changed = (found.x != graph.x).any(1)
    assert found.y[changed].all() and 1 <= changed.sum() <= 3
    kept = {
        tuple(edge): value for edge, value in zip(graph.edge_index.T.tolist(), graph.edge_attr.tolist(), strict=True)
    }
    for edge, value in zip(found.edge_index.T.tolist(), found.edge_attr.tolist(), strict=True):
        assert value == kept.get(tuple(edge), [0.0] * 4)
    negative = Data(  # the larger one of two features is not that of an edge, nor is one of two parallel edges
        x=torch.randn(3, 2),
        edge_index=torch.tensor([[0, 0, 1], [1, 1, 0]]),
        edge_attr=torch.tensor([[-1.0], [-3], [-2]]),
    )
    found = inject_anomalies(negative, 1, 3, 0, np.random.default_rng(0))
    edges = list(zip(*found.edge_index.tolist(), found.edge_attr[:, 0].tolist(), strict=True))
    assert edges == [(0, 1, -1), (0, 1, -3), (0, 2, 0), (1, 0, -2), (1, 2, 0), (2, 0, 0), (2, 1, 0)]
    for numbers, message in {
        (-1, 3, 0): "cliques must be at least 0, got -1",
        (1, 1, 0): "clique_size must be at least 2, got 1",
        (1, 3, -1): "attributes must be at least 0, got -1",
    }.items():
        with pytest.raises(ValueError, match=message):
            inject_anomalies(graph, *numbers, np.random.default_rng(1))
    with pytest.raises(ValueError, match="ask for 11 of 5 nodes"):
        inject_anomalies(graph.subgraph(torch.arange(5)), 2, 4, 3, np.random.default_rng(1))


@pytest.mark.parametrize("cls_token", [True, False])
def test_pictures_show_the_energies_and_the_attention_of_the_model(cls_token):
    torch.manual_seed(0)
    config = EnergyTransformerGraphConfig(
        num_node_features=7, num_edge_features=4, num_labels=2, hidden_size=16, num_attention_heads=2, head_dim=8,
        intermediate_size=32, num_hidden_layers=1, num_steps=3, initialization="scaled", use_cls_token=cls_token,
    )  # fmt: skip
    model = EnergyTransformerForGraphClassification(config).eval()
    graph = load_graphs("mutag")[3]
    picture = descent_figure(model, [graph])
    outputs = model(**inputs_of(graph), output_energies=True, output_node_energies=True)
    torch.testing.assert_close(torch.from_numpy(picture.values["energies"][-1]), outputs.node_energies.detach())
    if not cls_token:  # whose energy is not drawn
        totals = torch.from_numpy(picture.values["energies"]).sum(1)
        torch.testing.assert_close(totals, outputs.energies[0].detach())
    torch.testing.assert_close(node_energies(model, graph, 3), outputs.node_energies.detach())
    # the same weights from all pairs of tokens, with a mask
    found = edge_attention(model, graph)
    layer, index = model.base_model.layers[0], graph.edge_index
    g = layer.norm(outputs.last_hidden_state.detach())
    query, key = layer.attention.queries_and_keys(layer.attention.project(g))
    scores = (layer.attention.constants()["beta"] * query @ key.mT).detach()
    size = graph.num_nodes + cls_token
    allowed = torch.full((size, size), float("-inf"))
    allowed[index[1], index[0]] = 0.0
    if cls_token:
        allowed[-1], allowed[:, -1] = 0.0, 0.0
    bias = torch.zeros(2, size, size)
    bias[:, index[1], index[0]] = model.base_model.edge_bias(graph.edge_attr).detach().T
    dense = (scores + bias + allowed).softmax(-1).mean(0)
    torch.testing.assert_close(found, dense[index[1], index[0]])


def test_a_molecule_has_one_hot_atoms_and_bonds():
    """Aspirin: 13 heavy atoms, 13 bonds; each of 9 categories of an atom and 3 of a bond is told once."""
    pytest.importorskip("rdkit")
    from energy_transformer.graphs.molecules import ATOMS, molecule

    graph = molecule("CC(=O)Oc1ccccc1C(=O)O")
    assert graph.x.shape == (13, 57) and graph.edge_attr.shape == (26, 13)
    assert (graph.x.sum(1) == 9).all() and (graph.edge_attr.sum(1) == 3).all()
    assert graph.x[:, ATOMS.index(6)].sum() == 9 and graph.x[:, ATOMS.index(8)].sum() == 4
    assert graph.edge_attr[:, 3].sum() == 12, "six aromatic bonds, in both directions"
    other = molecule("[Fe]C")
    assert other.x[0, len(ATOMS)] == 1, "iron is none of the elements that are told apart"
