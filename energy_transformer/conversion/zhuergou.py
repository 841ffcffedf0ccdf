"""`zhuergou/Energy-Transformer-for-Graph-Anomaly-Detection`: state dicts of its net, saved by `torch.save`."""

import re

from ..modeling_energy_transformer_graph import EnergyTransformerForNodeClassification
from .layout import Slot, bind, strip_prefix
from .options import ConversionOptions, choose, widths
from .plan import EMBEDDINGS, Plan, layer
from .readers import ForeignFile

_FRAME = {
    "embedding_h.weight": Slot(EMBEDDINGS + "node_embeddings.weight", "D F"),
    "embedding_h.bias": Slot(EMBEDDINGS + "node_embeddings.bias", "D"),
    "MLP_layer.weight": Slot("classifier.0.weight", "C R"),
    "MLP_layer.bias": Slot("classifier.0.bias", "C"),
}
# what the original allocates and never reads
_UNUSED = re.compile(r"^pos_embedding\.|^layers(_out)?\.(beta_2$|O\.|layer_norm2\.)")


def recognizes(file: ForeignFile) -> bool:
    return file.format == "torch" and any(name.endswith("layers_out.attention.Q") for name in file.tensors)


def layout_of(blocks: list[str], heads: int) -> dict[str, Slot]:
    """Where each tensor goes, given the names of the blocks: `layers` and `layers_out`, or the latter alone."""
    layout = dict(_FRAME)
    for index, block in enumerate(blocks):
        slots = {
            "attention.Q": Slot("attention.Wq", "D H Y", lambda weight: weight.permute(1, 2, 0).contiguous()),
            "attention.K": Slot("attention.Wk", "D H Y", lambda weight: weight.permute(1, 2, 0).contiguous()),
            # one temperature for all heads
            "attention.beta": Slot("attention.beta", "1", lambda tau: (1 / tau).repeat(heads)),
            "W": Slot("hopfield.W", "D M"),
            "layer_norm1.weight": Slot("norm.weight", "D"),
            "layer_norm1.bias": Slot("norm.bias", "D"),
        }
        layout |= {f"{block}.{name}": slot._replace(target=layer(index) + slot.target) for name, slot in slots.items()}
    return layout


def convert(file: ForeignFile, options: ConversionOptions) -> Plan:
    """The net for one kind of edges; a file does not tell whether it was trained on several, see the note."""
    options.refuse(("image_size", "patch_size", "num_channels"), "the source is a model of graphs")
    options.refuse(("attention_beta",), "the source has a learned temperature")
    options.refuse(("hopfield_activation",), "zhuergou's net has a ReLU")
    tensors = strip_prefix(file.tensors, "embedding_h.")
    settings, defaults = choose(options, {"num_steps": 1, "step_size": 1.0})
    steps = settings.pop("num_steps")
    blocks = ["layers", "layers_out"] if steps > 1 else ["layers_out"]
    unused = [name for name in tensors if _UNUSED.search(name) or (steps == 1 and name.startswith("layers."))]
    heads = tensors["layers_out.attention.Q"].shape[1]
    used = {name: tensor for name, tensor in tensors.items() if name not in unused}
    state, sizes = bind(used, layout_of(blocks, heads))
    return Plan(
        origin="zhuergou/Energy-Transformer-for-Graph-Anomaly-Detection",
        model_class=EnergyTransformerForNodeClassification,
        arguments={
            "num_node_features": sizes["F"],
            "num_labels": sizes["C"],
            **widths(sizes, options),
            **settings,
            "num_hidden_layers": len(blocks),
            "num_steps": [steps - 1, 1][-len(blocks) :],
            "energy_terms": [{"name": "attention", "learnable_beta": True}, "hopfield"],
            "norm_type": "layer_norm",
            "residual": "normalized",
            "attention_clamp": 5.0,
            "use_cls_token": False,
            "classifier_norm": False,
            "classifier_reads_input": sizes["R"] == 2 * sizes["D"],
        },
        state=state,
        defaults=defaults,
        left_out=unused,
        notes=[
            "Edges are taken in both directions, with a self-loop for each node where the original's data have one.",
            "For a net that was trained on several kinds of edges, set `config.num_relations` to their number.",
        ],
    )
