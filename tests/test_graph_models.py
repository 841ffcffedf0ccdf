"""The models of graphs: what no order and no batch changes, their two layouts, their losses, and what they refuse."""

from dataclasses import dataclass

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification

from energy_transformer import (
    EnergyTransformerForGraphClassification,
    EnergyTransformerForNodeClassification,
    EnergyTransformerGraphConfig,
    EnergyTransformerGraphModel,
)

HEADS = [EnergyTransformerForGraphClassification, EnergyTransformerForNodeClassification]
SMALL = {
    "num_node_features": 3,
    "num_edge_features": 2,
    "num_position_features": 2,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "head_dim": 4,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_steps": 2,
    "num_labels": 3,
    "initialization": "scaled",
}
some = settings(max_examples=12, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 2**31 - 1)
sizes = st.lists(st.integers(1, 6), min_size=1, max_size=4)


def model_of(head, **options):
    """In float64 and evaluation mode, with weights unlike those at the start."""
    model = head(EnergyTransformerGraphConfig(**SMALL | options)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@dataclass
class Graphs:
    """Random directed graphs with parallel edges, self-loops and lonely nodes, as one batch."""

    x: torch.Tensor
    edge_index: torch.Tensor
    edge_attr: torch.Tensor
    batch: torch.Tensor
    positions: torch.Tensor

    @classmethod
    def draw(cls, seed, sizes):
        torch.manual_seed(seed)
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        edges = [start + torch.randint(size, (2, 2 * size - 2)) for start, size in zip(starts, sizes, strict=True)]
        index = torch.cat([*edges, torch.zeros(2, 1, dtype=torch.long)], 1)
        count = sum(sizes)
        numbers = [torch.randn(n, k, dtype=torch.float64) for n, k in ((count, 3), (index.shape[1], 2), (count, 2))]
        batch = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        return cls(numbers[0], index, numbers[1], batch, numbers[2])

    def alone(self, graph):
        nodes = (self.batch == graph).nonzero()[:, 0]
        within = self.batch[self.edge_index[0]] == graph
        index = self.edge_index[:, within] - nodes[0]
        return Graphs(self.x[nodes], index, self.edge_attr[within], self.batch[nodes] * 0, self.positions[nodes])

    def shuffled(self):
        """With nodes and edges in another order, and the new order of the nodes."""
        order, edges = torch.randperm(len(self.x)), torch.randperm(self.edge_index.shape[1])
        index = order.argsort()[self.edge_index][:, edges]
        return Graphs(self.x[order], index, self.edge_attr[edges], self.batch[order], self.positions[order]), order


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layout", ["sparse", "dense"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@given(seed=seeds, sizes=sizes)
@some
def test_no_order_and_no_batch_changes_a_graph(layout, pooling, seed, sizes):
    graphs = Graphs.draw(seed, sizes)
    options = {"attention_layout": layout, "pooling": pooling, "use_cls_token": pooling == "cls"}
    model = model_of(EnergyTransformerForGraphClassification, **options)
    outputs = model(**vars(graphs), output_energies=True, output_node_energies=True)
    other, order = graphs.shuffled()
    shuffled = model(**vars(other), output_energies=True, output_node_energies=True)
    close(shuffled.logits, outputs.logits)
    close(shuffled.energies, outputs.energies)
    close(shuffled.node_energies, outputs.node_energies[order])
    close(shuffled.last_hidden_state[: len(order)], outputs.last_hidden_state[: len(order)][order])
    for graph in range(len(sizes)):
        alone = model(**vars(graphs.alone(graph)), output_energies=True)
        close(alone.logits[0], outputs.logits[graph])
        close(alone.energies[0], outputs.energies[graph])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attend_to_self": False, "use_cls_token": False},
        {"add_self_loops": True, "num_edge_features": 0},
        {"attention_qk_norm": True, "hopfield_activation": "gelu", "descent_gradient": "state", "learnable_beta": True},
        {"residual": "normalized", "norm_type": "layer_norm", "classifier_norm": False, "classifier_reads_input": True},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
@given(seed=seeds, sizes=sizes)
@some
def test_both_layouts_give_the_same_numbers_and_gradients(options, seed, sizes):
    graphs, results = Graphs.draw(seed, sizes), []
    if "num_edge_features" in options:
        graphs.edge_attr = None
    model = model_of(EnergyTransformerForNodeClassification, **options)
    labels = torch.arange(len(graphs.x)) % 3
    for layout in ("sparse", "dense"):
        model.config.attention_layout = layout
        model.zero_grad()
        outputs = model(
            **vars(graphs), labels=labels, output_hidden_states=True, output_energies=True, output_node_energies=True
        )
        (outputs.loss + outputs.energies.sum()).backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        records = [outputs.logits, outputs.energies, outputs.node_energies, *outputs.hidden_states]
        results.append(records + gradients)
    for one, other in zip(*results, strict=True):
        close(one, other)


@pytest.mark.parametrize("layout", ["sparse", "dense"])
@given(seed=seeds, sizes=sizes)
@some
def test_the_energy_falls_along_the_state(layout, seed, sizes):
    """Whatever the sign of the gain of the norm."""
    options = {"attention_layout": layout, "descent_gradient": "state", "num_hidden_layers": 1, "num_steps": 5}
    model = model_of(EnergyTransformerGraphModel, step_size=1e-4, **options)
    energies = model(**vars(Graphs.draw(seed, sizes)), output_energies=True).energies
    assert (energies.diff(dim=1) <= 1e-9).all() and (energies[:, -1] < energies[:, 0]).all()


def test_the_energies_of_nodes_and_cls_tokens_sum_to_those_of_graphs():
    graphs = Graphs.draw(0, [4, 2])
    model = model_of(EnergyTransformerGraphModel, use_cls_token=False)
    outputs = model(**vars(graphs), output_energies=True, output_node_energies=True)
    sums = torch.zeros(2, dtype=torch.float64).index_add(0, graphs.batch, outputs.node_energies)
    close(sums, outputs.energies[:, -1])
    close(model.energy(**vars(graphs)), outputs.energies[:, -1])
    close(model.energy(**vars(graphs), num_steps=0), outputs.energies[:, 0])


def test_a_descent_is_what_the_record_says():
    graphs = Graphs.draw(1, [3, 5])
    model = model_of(EnergyTransformerGraphModel)
    outputs = model(**vars(graphs), output_hidden_states=[0, -1])
    assert len(outputs.hidden_states) == 5 and outputs.hidden_states[2] is None
    close(outputs.hidden_states[0], outputs.embeddings)
    close(model.layers[-1].norm(outputs.hidden_states[-1]), outputs.last_hidden_state)
    close(outputs.pooler_output, outputs.last_hidden_state[8:])
    assert isinstance(model(**vars(graphs), return_dict=False), tuple)


def test_noise_is_for_training():
    graphs, options = Graphs.draw(2, [4]), {"temperature": 0.1}
    model = model_of(EnergyTransformerForGraphClassification, **options)
    close(model(**vars(graphs)).logits, model(**vars(graphs)).logits)
    model.train()
    one, other, third = (
        model(**vars(graphs), generator=torch.Generator().manual_seed(seed)).logits for seed in (0, 0, 1)
    )
    close(one, other)
    assert (one - third).abs().max() > 1e-3


@pytest.mark.parametrize("layout", ["sparse", "dense"])
def test_gradient_checkpointing_and_autocast(layout):
    graphs, results = Graphs.draw(3, [5, 4]), []
    model = model_of(EnergyTransformerForGraphClassification, attention_layout=layout).train()
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(**vars(graphs), labels=torch.tensor([0, 2])).loss.backward()
        results.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*results, strict=True):
        close(one, other)
    model.float()
    single = {name: value.float() if value.is_floating_point() else value for name, value in vars(graphs).items()}
    with torch.autocast("cpu", torch.bfloat16):
        half = model(**single).logits
    torch.testing.assert_close(half.float(), model(**single).logits, rtol=0.1, atol=0.1)


def test_losses():
    graphs, two = Graphs.draw(4, [3, 4]), torch.tensor([0, 2])

    def loss(labels, head=EnergyTransformerForGraphClassification, **options):
        outputs = model_of(head, **options)(**vars(graphs), labels=labels)
        return outputs.loss, outputs.logits

    found, logits = loss(two, class_weight=[1.0, 2.0, 5.0], label_smoothing=0.1)
    close(found, F.cross_entropy(logits, two, torch.tensor([1.0, 2, 5]).double(), label_smoothing=0.1))
    found, logits = loss(torch.tensor([0.5, 2.0]), num_labels=1)
    close(found, F.mse_loss(logits[:, 0], torch.tensor([0.5, 2.0]).double()))
    numbers = torch.rand(2, 3)
    found, logits = loss(numbers, regression_loss="l1")
    close(found, F.l1_loss(logits, numbers.double()))
    found, logits = loss(numbers.round(), problem_type="multi_label_classification")
    close(found, F.binary_cross_entropy_with_logits(logits, numbers.round().double()))

    labels = torch.tensor([0, -100, 2, -100, -100, 1, 1])
    found, logits = loss(labels, EnergyTransformerForNodeClassification, class_weight=[1.0, 2.0, 5.0])
    known = labels >= 0
    close(found, F.cross_entropy(logits[known], labels[known], torch.tensor([1.0, 2, 5]).double()))
    for head, count in zip(HEADS, (2, 7), strict=True):
        model = model_of(head)
        found = model(**vars(graphs), labels=torch.full((count,), -100)).loss
        found.backward()
        assert found == 0 and not any(parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("head", HEADS)
def test_a_saved_model_is_loaded_by_its_own_class_and_by_the_auto_classes(head, tmp_path):
    graphs = Graphs.draw(5, [3, 4])
    model = model_of(head)
    expected = model(**vars(graphs)).logits
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is EnergyTransformerGraphConfig
    auto = dict(zip(HEADS, (AutoModelForSequenceClassification, AutoModelForTokenClassification), strict=True))[head]
    for loader in (head, auto):
        loaded = loader.from_pretrained(tmp_path, dtype="auto")
        assert type(loaded) is head
        torch.testing.assert_close(loaded(**vars(graphs)).logits, expected, rtol=0, atol=0)
    base, info = AutoModel.from_pretrained(tmp_path, dtype="auto", output_loading_info=True)
    assert type(base) is EnergyTransformerGraphModel and not info["missing_keys"]


def test_a_pushed_model_is_pulled(hub):
    graphs, model = Graphs.draw(5, [3, 4]), model_of(HEADS[1])
    model.push_to_hub("alice/graphs", token=hub.token)
    pulled = HEADS[1].from_pretrained("alice/graphs", dtype="auto")
    torch.testing.assert_close(pulled(**vars(graphs)).logits, model(**vars(graphs)).logits, rtol=0, atol=0)


@pytest.mark.parametrize("layout", ["sparse", "dense"])
def test_labels_are_learned(layout):
    graphs = Graphs.draw(0, [4, 6, 5, 3, 6, 5])
    model, labels = model_of(HEADS[0], attention_layout=layout).train(), torch.tensor([0, 1, 2, 0, 1, 2])
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(100):
        outputs = model(**vars(graphs), labels=labels)
        optimizer.zero_grad()
        outputs.loss.backward()
        optimizer.step()
    assert outputs.loss < 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.randn(7, 2)}, r"x must be floating-point numbers of shape \(nodes, 3\)"),
        ({"x": torch.ones(7, 3, dtype=torch.long)}, "x must be floating-point"),
        ({"edge_index": torch.zeros(3, 4, dtype=torch.long)}, "edge_index must be int64 of shape"),
        ({"edge_index": torch.zeros(2, 11)}, "edge_index must be int64 of shape"),
        ({"edge_index": torch.full((2, 11), 7)}, r"edge_index must lie in \[0, nodes\) = \[0, 7\), got 7"),
        ({"edge_index": torch.full((2, 11), -1)}, "edge_index must lie in .* got -1"),
        ({"edge_index": torch.tensor([[0], [6]]).expand(2, 11)}, "nodes of different graphs"),
        ({"edge_attr": None}, "edge_attr must be of shape"),
        ({"edge_attr": torch.randn(11, 3)}, "edge_attr must be of shape"),
        ({"edge_attr": torch.ones(11, 2, dtype=torch.long)}, "edge_attr must be floating-point numbers, got"),
        ({"batch": torch.arange(7) - 1}, "batch must not be negative, got -1"),
        (
            {"batch": torch.full((7,), -1), "edge_index": torch.zeros(2, 0).long(), "edge_attr": torch.zeros(0, 2)},
            "batch must not be negative, got -1",
        ),
        ({"batch": torch.zeros(6, dtype=torch.long)}, "batch must be int64 of shape"),
        ({"positions": None}, "positions must be of shape"),
        ({"positions": torch.randn(7, 3)}, "positions must be of shape"),
        ({"edge_type": torch.zeros(11, dtype=torch.long)}, "edge_type and num_relations"),
        ({"labels": torch.tensor([0, 3])}, r"labels must lie in \[0, num_labels\)"),
        ({"labels": torch.tensor([0, 1, 2])}, r"labels must be integers of shape \(2,\), got torch.int64 \(3,\)"),
        ({"labels": torch.tensor([0.5, 1.0])}, r"labels must be of shape \(2, 3\), got \(2,\)"),
        ({"num_steps": -1}, "num_steps must be"),
        ({"output_hidden_states": 9}, "output_hidden_states must be"),
    ],
)
def test_inputs_that_are_refused(change, message):
    graphs = Graphs.draw(6, [3, 4])
    assert graphs.edge_index.shape == (2, 11)
    model = model_of(EnergyTransformerForGraphClassification)
    with pytest.raises(ValueError, match=message):
        model(**vars(graphs) | change)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_node_features": 0}, "num_node_features must be greater than 0"),
        ({"num_edge_features": -1}, "num_edge_features must not be negative"),
        ({"pooling": "cls", "use_cls_token": False}, "pooling='cls' needs use_cls_token=True"),
        ({"class_weight": [1.0, 2.0]}, "class_weight must have one number for each of 3 labels"),
        ({"residual": "normalized", "momentum": 0.5}, "residual='normalized' cannot be combined"),
        ({"attention_clamp": 5.0, "attention_layout": "dense"}, "attention_clamp needs"),
        ({"num_relations": 2}, "num_relations needs"),
        ({"edge_modulation": "product"}, "need each other"),
        ({"energy_terms": ("modulated_attention",)}, "need each other"),
        ({"edge_modulation": "product", "energy_terms": ("modulated_attention",)}, "edge_modulation needs"),
        ({"adjacency_loss_weight": 1.0}, "adjacency_loss_weight needs"),
        ({"label_smoothing": 0.1, "problem_type": "regression"}, "label_smoothing needs"),
        ({"num_nodes": 3}, "EnergyTransformerGraphConfig has no option 'num_nodes'"),
    ],
)
def test_configurations_that_are_refused(options, message):
    with pytest.raises((StrictDataclassError, TypeError)) as error:
        EnergyTransformerGraphConfig(**SMALL | options)
    assert message.split("'")[0] in str(error.value.__cause__ or error.value)


def test_relations_have_no_record():
    options = {"num_relations": 2, "num_edge_features": 0, "num_position_features": 0}
    graphs = Graphs.draw(7, [4])
    model = model_of(EnergyTransformerForNodeClassification, **options)
    inputs = {"x": graphs.x, "edge_index": graphs.edge_index, "edge_type": torch.arange(7) % 2}
    assert model(**inputs).logits.shape == (4, 3)
    with pytest.raises(ValueError, match="need num_relations=0"):
        model(**inputs, output_energies=True)
    mistakes = {
        r"edge_type must be int64 of shape \(7,\), got torch.int64 \(3,\)": torch.zeros(3, dtype=torch.long),
        r"edge_type must be int64 of shape \(7,\), got torch.int32 \(7,\)": torch.zeros(7, dtype=torch.int32),
        r"edge_type must lie in \[0, num_relations\) = \[0, 2\), got 2": torch.arange(7) % 3,
        r"edge_type must lie in \[0, num_relations\) = \[0, 2\), got -1": torch.arange(7) % 2 - 1,
    }
    for message, edge_type in mistakes.items():
        with pytest.raises(ValueError, match=message):
            model(**inputs | {"edge_type": edge_type})
    with pytest.raises(ValueError, match=r"labels must be integers of shape \(4,\), got torch.int64 \(2,\)"):
        model(**inputs, labels=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="classifier_reads_input is for"):
        model_of(EnergyTransformerForGraphClassification, classifier_reads_input=True)
