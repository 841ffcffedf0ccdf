"""The two public graph codes of the paper, in float64: `Lemon-cmd/energy-transformer-graph` and
`zhuergou/Energy-Transformer-for-Graph-Anomaly-Detection`, whose checkpoints the converters read."""

import pytest
import torch
from foreign_checkpoints import flax_bytes, flax_tree
from reference_numbers import assert_close, load, under

from energy_transformer import EnergyAttention, EnergyContext, EnergyLayerNorm, EnergyTransformerGraphConfig
from energy_transformer.context import Edges
from energy_transformer.conversion import convert_checkpoint, lemon_graph, zhuergou
from energy_transformer.graph_reference import (
    EdgeModulation,
    ModulatedAttention,
    SquaredGELUModernHopfield,
    padded_adjacency,
)
from energy_transformer.graph_tokens import GraphTokens
from energy_transformer.utils.errors import UserError

GRAPHS = ["cls_plain", "cls_deep", "cls_edge_features", "reg_edge_type", "superpixel", "variant_gelu_biases"]
GRAPHS += ["variant_lse"]


def reference(name):
    return load(f"graphs/{name}.npz")


def lemon_model(ref, tmp_path):
    """The converted TrainState of a reference file."""
    tree = {"step": 3, "params": flax_tree(ref), "opt_state": {"0": {}}}
    (tmp_path / "state.msgpack").write_bytes(flax_bytes(tree))
    config = ref["config"]
    activation = {"relu": None, "lse": "softmax"}.get(config["chn_atype"], config["chn_atype"])
    options = {"num_steps": config["T"], "step_size": config["alpha"], "hopfield_activation": activation}
    return convert_checkpoint(tmp_path / "state.msgpack", **options)


def flat_graphs(ref):
    """x, edge_index and the rest, as PyTorch Geometric joins graphs."""
    sizes = ref["n_nodes"].tolist()
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    attributes = [ref[f"graph/{i}/edge_attr"] for i in range(len(sizes)) if f"graph/{i}/edge_attr" in ref]
    return {
        "x": torch.cat([ref["X"][i, :size] for i, size in enumerate(sizes)]),
        "edge_index": torch.cat([ref[f"graph/{i}/edge_index"] + start for i, start in enumerate(starts)], 1),
        "edge_attr": torch.cat([each.reshape(len(each), -1) for each in attributes]).double() if attributes else None,
        "batch": torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)),
        "positions": ref["P"],
    }


def cls_first(flat, batch, width):
    """Tokens (L, D), nodes and then CLS, to (B, N, D) with zeros for padding."""
    graphs = GraphTokens.of(batch, batch[:, None], True, True)
    assert graphs.width == width
    return graphs.lay(flat)


@pytest.mark.parametrize("name", GRAPHS)
def test_graph_classifier(name, tmp_path):
    ref = reference(name)
    model, inputs = lemon_model(ref, tmp_path), flat_graphs(ref)
    x, positions = (inputs[key].requires_grad_() for key in ("x", "positions"))
    outputs = model(**inputs, labels=ref["Y"], output_hidden_states=True, output_energies=True)
    base = model.energy_transformer(**inputs)
    assert_close(base.adjacency, ref["A"], "A")
    assert_close(base.modulation, ref["ahat"], "â")
    assert_close(outputs.logits, ref["CLS"][:, 0], "logits")
    states = torch.stack([cls_first(state, inputs["batch"], ref["A"].shape[1]) for state in outputs.hidden_states])
    real = cls_first(torch.ones(len(outputs.last_hidden_state), 1), inputs["batch"], ref["A"].shape[1])
    assert_close(states, ref["tokens"] * real, "tokens")
    assert_close(model.classifier(outputs.last_hidden_state[: len(x)]), ref["nodes"][real[:, 1:, 0] > 0], "nodes")
    assert_close(outputs.energies.mT, torch.cat([ref["energies"], ref["final_energy"][None]]), "energies")
    assert_close(outputs.loss, ref["loss"], "loss")
    if "A_hat" in ref:
        assert_close(model.energy_transformer.modulation.decoder(base.modulation), ref["A_hat"], "Â")

    outputs.loss.backward()
    parameters = dict(model.named_parameters())
    hopfield = model.energy_transformer.layers[0].term_names[1]
    layout = lemon_graph.layout_of([key.replace("/", ".") for key in under(ref, "param/")], hopfield)
    assert {slot.target for slot in layout.values()} == parameters.keys()
    for source, slot in layout.items():
        expected = slot.change(ref[f"dloss/{source.replace('.', '/')}"])
        assert_close(parameters[slot.target].grad.reshape(expected.shape), expected, source)
    assert_close(x.grad, ref["dinput/X"][real[:, 1:, 0] > 0], "dX")
    assert_close(positions.grad, ref["dinput/P"], "dP")


@pytest.mark.parametrize("name", ["cls_deep", "superpixel"])
def test_what_is_wrong_with_the_graph_classifier(name, tmp_path):
    """Its logits depend on the batch and on the order of the nodes, as the reference's do, and its mask dissolves."""
    ref = reference(name)
    model, inputs = lemon_model(ref, tmp_path), flat_graphs(ref)
    for graph, size in enumerate(ref["n_nodes"].tolist()):
        alone = {"x": ref["X"][graph, :size], "edge_index": ref[f"graph/{graph}/edge_index"]}
        alone["edge_attr"] = ref.get(f"graph/{graph}/edge_attr", torch.ones(alone["edge_index"].shape[1])).reshape(
            -1, 1
        )
        alone["positions"] = ref["P"][graph : graph + 1, : size + 1]
        assert_close(model(**alone).logits, ref["cropped/CLS"][graph])
        order = ref["permuted/order"][graph, :size]
        if size == ref["X"].shape[1]:
            place = order.argsort()
            permuted = alone | {"x": alone["x"][order], "edge_index": place[alone["edge_index"]]}
            permuted["positions"] = alone["positions"][:, torch.cat([torch.zeros(1, dtype=torch.long), order + 1])]
            assert_close(model(**permuted).logits, ref["permuted/CLS"][graph])
    if "zero_bias/CLS" in ref:
        model.energy_transformer.modulation.projection.bias.data.zero_()
        assert_close(model(**inputs).logits, ref["zero_bias/CLS"][:, 0])


def test_the_adjacency_of_the_graph_classifier():
    """Parallel edges add up, an edge whose features are 0 is none."""
    ref = reference("graph_inputs")
    sizes = [len(ref[f"graph/{i}/x"]) for i in range(3)]
    batch = torch.arange(3).repeat_interleave(torch.tensor(sizes))
    starts = [0, sizes[0], sizes[0] + sizes[1]]
    index = torch.cat([ref[f"graph/{i}/edge_index"] + start for i, start in enumerate(starts)], 1)
    features = torch.cat([ref[f"graph/{i}/edge_attr"] for i in range(3)])
    graphs = GraphTokens.of(batch, batch[:, None], True, True)
    assert_close(padded_adjacency(index, features, graphs, features), ref["features/A"])
    assert_close(padded_adjacency(index, None, graphs, features), ref["adjacency/A"])


@pytest.mark.parametrize("case", ["weights", "none", "weights_bias", "none_bias"])
def test_modulated_attention(case):
    ref = reference("parts_classification")
    heads, width, dim = ref["attn/param/Wq"].shape
    attention = ModulatedAttention(dim, heads, head_dim=width, beta=ref["attn/param/betas"], use_bias="bias" in case)
    attention.double()
    names = {"Wq": "Wq", "Wk": "Wk", "mixing": "Hw", "bq": "Bq", "bk": "Bk", "beta": "betas"}
    for name, parameter in attention.named_parameters():
        parameter.data.copy_(ref[f"attn/param/{names[name]}"])
    g, modulation = ref["g"].requires_grad_(), ref["attn/adj"].requires_grad_()
    context = EnergyContext(data={} if "none" in case else {"modulation": modulation})
    energy = attention.energy(g, context)
    assert_close(energy, ref[f"attn/{case}/energy"])
    assert_close(attention.grad(g, context), ref[f"attn/{case}/grad"])
    if "none" in case:
        return
    energy.backward()
    assert_close(modulation.grad, ref[f"attn/{case}/dadj"])
    for name, parameter in attention.named_parameters():
        assert_close(parameter.grad, ref[f"attn/{case}/dparam/{names[name]}"], name)


@pytest.mark.parametrize("case", ["gelu", "gelu_bias"])
def test_memories_with_a_squared_gelu(case):
    ref = reference("parts_classification")
    memories = SquaredGELUModernHopfield(*ref["memory/kernel"].shape, learnable_beta=False, bias="bias" in case)
    memories.double().W.data.copy_(ref["memory/kernel"])
    if "bias" in case:
        memories.bias.data.copy_(ref["memory/bias"])
    assert_close(memories.energy(ref["g"]), ref[f"memory/{case}/energy"])
    assert_close(memories.grad(ref["g"]), ref[f"memory/{case}/grad"])


@pytest.mark.parametrize("case", ["zero_bias", "bias"])
def test_edge_modulation(case):
    ref = reference("parts_classification")
    config = EnergyTransformerGraphConfig(
        num_edge_features=3,
        num_attention_heads=3,
        edge_modulation="convolution",
        energy_terms=("modulated_attention",),
        attention_layout="dense",
    )
    modulation = EdgeModulation(config).double()
    modulation.projection.weight.data.copy_(ref["edge/adj_pj/kernel"].T)
    modulation.projection.bias.data.copy_(ref["edge/bias/adj_pj/bias"] if case == "bias" else torch.zeros(3))
    modulation.convolution.weight.data.copy_(ref["edge/conv/kernel"].permute(3, 2, 0, 1))
    assert_close(modulation(ref["edge/x"][None], ref["edge/A"][None])[0], ref[f"edge/{case}/ahat"])


def test_the_norm_of_the_graph_classifier():
    ref = reference("parts_classification")
    norm = EnergyLayerNorm(8).double()
    norm.gamma.data.copy_(ref["norm/param/gamma"][0])
    norm.delta.data.copy_(ref["norm/param/bias"])
    assert_close(norm(ref["norm/x"]), ref["g"])


def anomaly_model(ref, tmp_path):
    torch.save(under(ref, "state_dict/"), tmp_path / "net.pth")
    model = convert_checkpoint(tmp_path / "net.pth", num_steps=ref["config"]["T"])
    model.config.class_weight = [1.0, ref["class_weight"].item()]
    return model


def assert_anomaly_gradients(model, loss, ref, prefix, left_out=()):
    """With the chain rule through τ = 1 / β, one for all heads."""
    loss.backward()
    parameters = dict(model.named_parameters())
    blocks = ["layers", "layers_out"][-len(model.energy_transformer.layers) :]
    for source, slot in zhuergou.layout_of(blocks, model.config.num_attention_heads).items():
        if source in left_out:
            continue
        found, expected = parameters[slot.target].grad, ref[f"{prefix}/{source}"]
        if source.endswith("attention.beta"):
            found = -(found * parameters[slot.target].square()).sum()
            assert_close(found, expected[0], source)
        else:
            assert_close(found, slot.change(expected), source)


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("anomaly_T1", "dloss"),
        ("anomaly_T3", "dloss"),
        ("anomaly_subsampled", "dloss"),
        ("anomaly_T2_parallel", "dloss_by_edge_id"),
    ],
)
def test_anomaly_detection(name, prefix, tmp_path):
    ref = reference(name)
    model = anomaly_model(ref, tmp_path)
    labels = ref["labels"].masked_fill(~ref["train_mask"].bool(), -100)
    outputs = model(ref["X"], ref["edge_index"], labels=labels, output_hidden_states=True)
    assert_close(torch.stack(outputs.hidden_states), ref["tokens"], "tokens")
    assert_close(outputs.logits, ref["logits"], "logits")
    assert_close(outputs.loss, ref["loss"], "loss")
    steps, layers = ref["config"]["T"], model.energy_transformer.layers
    for step in range(steps):
        layer = layers[0 if step < steps - 1 else -1]
        g = layer.norm(outputs.hidden_states[step])
        context = EnergyContext(edges=Edges(ref["edge_index"], clamp=5.0))
        assert_close(-layer.attention.grad(g, context), ref["attention_update"][step], "update")
        energies = -layer.attention.token_energies(g, context)
        expected = ref["node_energy"][step]  # with one head, the reference sums over the nodes
        assert_close(energies if expected.ndim else energies.sum(), expected, "node energies")
    assert_anomaly_gradients(model, outputs.loss, ref, prefix)


@pytest.mark.parametrize("name", ["anomaly_hetero", "anomaly_hetero_isolated_T1", "anomaly_hetero_isolated_T3"])
def test_anomaly_detection_with_several_relations(name, tmp_path):
    """Each relation alone: the reference lets a node without edges keep the sums of the relation before."""
    ref = reference(name)
    model = anomaly_model(ref, tmp_path)
    relations = ref["config"]["relations"]
    model.config.num_relations = len(relations)
    index = torch.cat([ref[f"edge_index/{relation}"] for relation in relations], 1)
    sizes = torch.tensor([ref[f"edge_index/{relation}"].shape[1] for relation in relations])
    kind = torch.arange(len(relations)).repeat_interleave(sizes)
    labels = ref["labels"].masked_fill(~ref["train_mask"].bool(), -100)
    outputs = model(ref["X"], index, edge_type=kind, labels=labels)
    assert_close(outputs.logits, ref["relation_alone/logits"])
    if name == "anomaly_hetero":  # elsewhere the reference has other values, or NaN
        assert_close(outputs.loss, ref["loss"])
        assert_anomaly_gradients(model, outputs.loss, ref, "dloss")


@pytest.mark.parametrize("case", ["symmetric", "parallel", "directed", "clamped"])
def test_attention_along_edges(case):
    """Where the reference's update is no gradient of its energy, ours is: on directed edges."""
    ref = reference("parts_anomaly")
    dim, heads, width = ref["Q"].shape
    attention = EnergyAttention(dim, heads, beta=1 / ref[f"{case}/beta"].item(), head_dim=width, learnable_beta=False)
    attention.double()
    attention.Wq.data.copy_(ref["Q"].permute(1, 2, 0))
    attention.Wk.data.copy_(ref["K"].permute(1, 2, 0))
    index = ref[f"edge_index/{'symmetric' if case == 'clamped' else case}"]
    context = EnergyContext(edges=Edges(index, clamp=5.0))
    assert_close(-attention.token_energies(ref["g"], context), ref[f"{case}/node_energy"])
    expected = ref[f"{case}/minus_energy_grad" if case == "directed" else f"{case}/update"]
    assert_close(-attention.grad(ref["g"], context), expected)
    g = ref["g"].requires_grad_()
    automatic = torch.autograd.grad(-attention.energy(g, context), g)[0]
    if case == "clamped":
        assert_close(automatic, ref["clamped/minus_energy_grad"])
    else:
        assert_close(automatic, expected)


def fill(shape, scale, start):
    """The numbers by which the specification of both codes was checked."""
    index = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (scale * torch.sin(0.37 * index + start)).reshape(shape)


LEMON_CHECK = {
    0.0: (
        [0.0387790863107, 0.0809261369842, 0.1121202146585],
        [-39.827868925671, -40.845824651414, -50.682759319101, -48.982719299465],
    ),
    0.1: (
        [0.0400541062181, 0.0818268454860, 0.1125247050844],
        [-54.364720075851, -55.379481354608, -65.315490068718, -63.614636541897],
    ),
}


@pytest.mark.parametrize("bias", LEMON_CHECK)
def test_check_values_of_the_graph_classifier(bias, tmp_path):
    param = {
        "encoder": {"kernel": fill((3, 8), 0.5, 1), "bias": fill((8,), 0.1, 2)},
        "cls_token": fill((1, 8), 0.5, 3),
        "pos_pj": {"kernel": fill((4, 8), 0.5, 4), "bias": fill((8,), 0.1, 5)},
        "adj_pj": {"kernel": fill((1, 2), 0.5, 6), "bias": fill((2,), bias, 7)},
        "conv": {"kernel": fill((3, 3, 1, 2), 0.5, 8)},
        "decoder": {"kernel": fill((8, 3), 0.5, 21), "bias": fill((3,), 0.1, 22)},
    }
    for i in range(2):
        names = {"Wk": ((2, 4, 8), 0.5, 13), "Wq": ((2, 4, 8), 0.5, 15), "Hw": ((2, 2), 1, 17)}
        attention = {name: fill(shape, scale, start + i) for name, (shape, scale, start) in names.items()}
        attention["betas"] = fill((2,), 0.5, 1.5 - 0.2 * i)
        memories = {"proj": {"kernel": fill((8, 32), 0.3, 19 + i)}}
        param[f"encode_norm_{i}"] = {"gamma": fill((1,), 1, 9 + i), "bias": fill((8,), 0.1, 11 + i)}
        param[f"encode_block_{i}"] = {"attn": attention, "chn": memories}

    (tmp_path / "state.msgpack").write_bytes(flax_bytes(numpy_tree(param)))
    model = convert_checkpoint(tmp_path / "state.msgpack", num_steps=2)
    one_way = torch.tensor([[0, 1, 2, 3, 0], [1, 2, 3, 4, 3]])
    index = torch.cat([one_way, one_way.flip(0)], 1)
    outputs = model(fill((5, 3), 1, 0.1), index, positions=fill((1, 6, 4), 0.5, 0.2), output_energies=True)
    logits, energies = LEMON_CHECK[bias]
    assert_close(outputs.logits[0], torch.tensor(logits, dtype=torch.float64))
    assert_close(outputs.energies[0, :4], torch.tensor(energies, dtype=torch.float64))


def numpy_tree(tree):
    return {name: numpy_tree(value) if isinstance(value, dict) else value.numpy() for name, value in tree.items()}


ANOMALY_CHECK = {
    12: [
        [0.154771263872, -0.350901322036],
        [0.982321521812, -1.108664983319],
        [0.708386286739, -0.583625937832],
        [0.176003303319, 0.714148329992],
        [-0.501849944582, 1.836168484104],
        [0.229017849612, 1.007869240741],
    ],
    6: [
        [-0.151797578997, 0.660401564349],
        [0.216373387500, 0.954599132875],
        [0.261202566061, 0.557011793214],
        [0.471683409382, -0.596817803660],
        [0.135711659710, -1.237424993390],
        [0.427758718260, -0.879049333978],
    ],
}


@pytest.mark.parametrize("width", ANOMALY_CHECK)
def test_check_values_of_the_anomaly_detection(width, tmp_path):
    state = {"embedding_h.weight": fill((6, 3), 0.5, 1), "embedding_h.bias": fill((6,), 0.1, 2)}
    for block, start, tau in (("layers", 3, 1.5), ("layers_out", 8, 1.2)):
        state[f"{block}.attention.Q"] = fill((6, 2, 6), 0.5, start)
        state[f"{block}.attention.K"] = fill((6, 2, 6), 0.5, start + 1)
        state[f"{block}.attention.beta"] = fill((1,), 2, tau)
        state[f"{block}.W"] = fill((6, 12), 0.3, start + 2)
        state[f"{block}.layer_norm1.weight"] = fill((6,), 1, start + 3)
        state[f"{block}.layer_norm1.bias"] = fill((6,), 0.1, start + 4)
    state |= {"MLP_layer.weight": fill((2, width), 0.5, 13), "MLP_layer.bias": fill((2,), 0.1, 14)}
    torch.save(state, tmp_path / "net.pth")
    model = convert_checkpoint(tmp_path / "net.pth", num_steps=3)
    one_way = torch.tensor([[0, 1, 2, 3, 4, 1], [1, 2, 3, 4, 5, 4]])
    index = torch.cat([one_way, one_way.flip(0), torch.arange(6).expand(2, -1)], 1)
    logits = model(fill((6, 3), 1, 0.1), index).logits
    assert_close(logits, torch.tensor(ANOMALY_CHECK[width], dtype=torch.float64))


def test_a_converted_folder_loads_and_says_what_it_is(tmp_path):
    """Its card names the class to open it with; what the original never reads is left out and listed."""
    ref = reference("anomaly_T3")
    torch.save(under(ref, "state_dict/"), tmp_path / "net.pth")
    model = convert_checkpoint(tmp_path / "net.pth", tmp_path / "folder", num_steps=3)
    loaded = type(model).from_pretrained(tmp_path / "folder", dtype="auto")
    assert torch.equal(loaded(ref["X"], ref["edge_index"]).logits, model(ref["X"], ref["edge_index"]).logits)
    card = (tmp_path / "folder" / "README.md").read_text()
    assert "AutoModelForTokenClassification.from_pretrained(" in card
    assert "`pos_embedding.weight`" in card and "images" not in card


def test_what_a_graph_checkpoint_contradicts(tmp_path):
    torch.save(under(reference("anomaly_T1"), "state_dict/"), tmp_path / "net.pth")
    tree = flax_tree(reference("cls_plain"))
    (tmp_path / "state.msgpack").write_bytes(flax_bytes(tree))
    for file in ("net.pth", "state.msgpack"):
        for options, message in [
            ({"image_size": 8}, "image_size does not apply"),
            ({"attention_beta": 0.5}, "attention_beta does not apply"),
            ({"num_attention_heads": 7}, "contradicts the source"),
        ]:
            with pytest.raises(UserError, match=message):
                convert_checkpoint(tmp_path / file, **options)
    tree["decoder"]["kernel"] = tree["decoder"]["kernel"][1:]
    (tmp_path / "short.msgpack").write_bytes(flax_bytes(tree))
    with pytest.raises(UserError, match=r"decoder\.kernel has shape"):
        convert_checkpoint(tmp_path / "short.msgpack")
