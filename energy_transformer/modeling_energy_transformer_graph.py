"""PyTorch Energy Transformer models of graphs (Hoover et al. 2023, arXiv 2302.07253, sections 4 and 5).

A batch of graphs is what PyTorch Geometric makes of it, in plain tensors: the nodes of all graphs one after the other,
the edges between them, and the graph of each node.

Shapes: B graphs, n nodes and L tokens of all graphs together (see `graph_tokens.py`), E edges, F, K and k features of a
node, an edge and a position, D token width, C labels, T steps.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.utils.generic import can_return_tuple

from .attention_backends import at_least_float32
from .block import Descent
from .configuration_energy_transformer_graph import EnergyTransformerGraphConfig
from .context import Edges, EnergyContext
from .graph_reference import EdgeModulation, ModulatedAttention, padded_adjacency, padded_tokens
from .graph_tokens import GraphTokens, check_graphs
from .outputs import (
    EnergyTransformerGraphClassifierOutput,
    EnergyTransformerGraphModelOutput,
    EnergyTransformerNodeClassifierOutput,
)
from .pretrained import (
    EnergyPreTrainedModel,
    EnergyTransformerLayer,
    check_labels,
    energies_along,
    kept_states,
    states_along,
)
from .updates import FlexibleUpdate, NormalizedUpdate, Update


class EnergyTransformerGraphLayer(EnergyTransformerLayer):
    """One block of a graph model: its noise is for training only, and a step may lead away from the norm."""

    @staticmethod
    def make_update(config: EnergyTransformerGraphConfig, num_steps: int) -> Update:
        if config.residual == "normalized":
            return NormalizedUpdate(config.step_size)
        update = EnergyTransformerLayer.make_update(config, num_steps)
        if isinstance(update, FlexibleUpdate):
            update.noise_in_evaluation = False
        return update


class EnergyTransformerGraphEmbeddings(nn.Module):
    """Nodes, and their positions, to tokens; a CLS token for each graph.

    Args:
        config ([`EnergyTransformerGraphConfig`]).
    """

    def __init__(self, config: EnergyTransformerGraphConfig):
        super().__init__()
        dim, positions = config.hidden_size, config.num_position_features
        self.node_embeddings = nn.Linear(config.num_node_features, dim)
        self.position_embeddings = nn.Linear(positions, dim) if positions else None
        self.cls_token = nn.Parameter(torch.zeros(1, dim)) if config.use_cls_token else None

    def check_positions(self, positions: Tensor | None, graphs: GraphTokens) -> None:
        """Raises ValueError unless the positions have one of the shapes that [`forward`] takes."""
        features = 0 if self.position_embeddings is None else self.position_embeddings.in_features
        given = None if positions is None else tuple(positions.shape)
        allowed = [(graphs.num_nodes, features), (graphs.num_graphs, graphs.width, features)] if features else [None]
        if given not in allowed:
            raise ValueError(f"positions must be of shape {' or '.join(map(str, allowed))}, got {given}")

    def forward(self, x: Tensor, positions: Tensor | None, graphs: GraphTokens) -> Tensor:
        """x_0 (L, D) of nodes (n, F) and positions (n, k), or (B, N, k) with that of the CLS token first."""
        tokens, missing = self.node_embeddings(x), 0
        if self.cls_token is not None:
            missing = graphs.num_graphs
            tokens = torch.cat([tokens, self.cls_token.expand(missing, -1)])
        if positions is None or self.position_embeddings is None:
            return tokens
        padded = positions.ndim == 3
        flat = positions.flatten(0, 1)[graphs.places] if padded else F.pad(positions, (0, 0, 0, missing))
        return tokens + self.position_embeddings(flat)


class EnergyTransformerGraphPreTrainedModel(EnergyPreTrainedModel):
    """Weight initialization, loading and saving."""

    config: EnergyTransformerGraphConfig
    config_class = EnergyTransformerGraphConfig
    main_input_name = "x"
    input_modalities = ()
    accepts_loss_kwargs = False  # each loss is a mean over its batch
    _input_embed_layer = "node_embeddings"
    _can_record_outputs: ClassVar = {"hidden_states": EnergyTransformerGraphLayer}
    _no_split_modules: ClassVar = ["EnergyTransformerGraphEmbeddings", "EnergyTransformerGraphLayer"]

    def energy(self, x: Tensor, edge_index: Tensor, **options) -> Tensor:
        """Energy of each graph, (B,), at the end x_T of its descent.

        Arguments as for [`EnergyTransformerGraphModel.forward`]; `num_steps=0` gives the energy at the start.
        """
        options |= {"output_energies": True, "return_dict": True}
        return self.base_model(x, edge_index, **options).energies[:, -1]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ModulatedAttention):
            init.normal_(module.mixing, std=module.options.get("scale", self.config.initializer_range))
        elif isinstance(module, nn.Conv2d):
            init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        elif isinstance(module, EnergyTransformerGraphEmbeddings) and module.cls_token is not None:
            init.normal_(module.cls_token, std=0.02)


class EnergyTransformerGraphModel(EnergyTransformerGraphPreTrainedModel):
    """The Energy Transformer of graphs without a head: nodes and edges to normalized tokens.

    Args:
        config ([`EnergyTransformerGraphConfig`]).
        final_norm (`bool`, *optional*, defaults to `True`):
            False lets `last_hidden_state` be x_T itself, for heads that have a norm of their own.
    """

    def __init__(self, config: EnergyTransformerGraphConfig, final_norm: bool = True):
        super().__init__(config)
        self.final_norm = final_norm
        self.pooling = config.pooling or ("cls" if config.use_cls_token else "mean")
        self.embeddings = EnergyTransformerGraphEmbeddings(config)
        self.modulation = EdgeModulation(config) if config.edge_modulation else None
        biased = config.num_edge_features and not config.edge_modulation
        heads = config.num_attention_heads
        self.edge_bias = nn.Linear(config.num_edge_features, heads, bias=False) if biased else None
        self.layers = nn.ModuleList(EnergyTransformerGraphLayer(config, steps) for steps in config.steps_of_blocks)
        self.post_init()

    def _edges(self, edge_index: Tensor, edge_attr: Tensor | None, graphs: GraphTokens) -> Edges:
        """The edges with those that the model adds, which have features of 0."""
        index = graphs.with_cls_edges(edge_index, self.config.add_self_loops)
        bias = None
        if self.edge_bias is not None:
            bias = F.pad(self.edge_bias(edge_attr), (0, 0, 0, index.shape[1] - edge_index.shape[1]))
        return Edges(index, bias, self.config.attention_clamp)

    def _start(self, x, edge_index, edge_attr, positions, graphs, generator) -> tuple[Tensor, EnergyContext, dict]:
        """x_0, what the descent is told, and what the reference mode returns beside the rest."""
        if self.modulation is None:
            state = graphs.lay(self.embeddings(x, positions, graphs))
            edges, backend = self._edges(edge_index, edge_attr, graphs), self.config._attn_implementation
            return state, graphs.context(edges, state.dtype, backend, generator), {}
        state = padded_tokens(self.embeddings, x, positions, graphs)
        adjacency = padded_adjacency(edge_index, edge_attr, graphs, state)
        modulation = self.modulation(state, adjacency)
        context = EnergyContext(generator=generator, data={"modulation": modulation})
        return state, context, {"modulation": modulation, "adjacency": adjacency}

    def _by_relation(self, state: Tensor, steps: list[int], context: EnergyContext, edge_type: Tensor) -> Tensor:
        """The maximum of x_0 and of where the descent over the edges of each type ends, which is 0 for a token that
        none of them leads to. The edges that the model adds are of every type."""
        index, best = context.edges.index, state
        for relation in range(self.config.num_relations):
            belongs = torch.ones_like(index[0], dtype=torch.bool)
            belongs[: len(edge_type)] = edge_type == relation
            edges = context.edges._replace(index=index[:, belongs])
            of_relation = EnergyContext(edges=edges, generator=context.generator)
            end = self._descend(state, steps, of_relation, set(), False, False, None)[-1].state
            reached = torch.zeros(len(state), 1, dtype=torch.bool, device=state.device)
            reached[edges.index[1]] = True
            best = torch.maximum(best, end.masked_fill(~reached, 0.0))
        return best

    def _check_relations(self, edge_type: Tensor | None, edge_index: Tensor, records: bool) -> None:
        if (edge_type is None) != (not self.config.num_relations):
            raise ValueError("edge_type and num_relations of the configuration need each other")
        if edge_type is None:
            return
        if edge_type.shape != edge_index.shape[1:] or edge_type.dtype != torch.long:
            given = f"{edge_type.dtype} {tuple(edge_type.shape)}"
            raise ValueError(f"edge_type must be int64 of shape {tuple(edge_index.shape[1:])}, got {given}")
        if edge_type.device.type == "cpu" and not torch.compiler.is_compiling() and len(edge_type):
            least, most, count = int(edge_type.min()), int(edge_type.max()), self.config.num_relations
            if least < 0 or most >= count:
                wrong = least if least < 0 else most
                raise ValueError(f"edge_type must lie in [0, num_relations) = [0, {count}), got {wrong}")
        if records:
            raise ValueError(
                "output_hidden_states, output_energies and output_node_energies need num_relations=0: each relation "
                "has a descent of its own"
            )

    @can_return_tuple
    def forward(
        self,
        x: torch.FloatTensor,
        edge_index: torch.LongTensor,
        edge_attr: torch.FloatTensor | None = None,
        batch: torch.LongTensor | None = None,
        positions: torch.FloatTensor | None = None,
        edge_type: torch.LongTensor | None = None,
        output_hidden_states: bool | int | list[int] | None = None,
        output_energies: bool = False,
        output_node_energies: bool = False,
        num_steps: int | None = None,
        generator: torch.Generator | None = None,
    ) -> EnergyTransformerGraphModelOutput:
        r"""
        Args:
            x (`torch.FloatTensor` of shape `(n, F)`): features of the nodes of all graphs.
            edge_index (`torch.LongTensor` of shape `(2, E)`):
                Source and target of each edge; the target attends to the source. An undirected edge stands twice.
            edge_attr (`torch.FloatTensor` of shape `(E, K)`, *optional*): features of the edges.
            batch (`torch.LongTensor` of shape `(n,)`, *optional*): the graph of each node; one graph when None.
            positions (`torch.FloatTensor` of shape `(n, k)` or `(B, N, k)`, *optional*):
                Positions of the nodes, or of all N tokens of padded graphs, the CLS token first.
            edge_type (`torch.LongTensor` of shape `(E,)`, *optional*): in [0, `num_relations`) of the config.
            output_hidden_states (`bool`, `int` or `list[int]`, *optional*):
                Record the states x_0 … x_T, or only those of the given indices, with None for the others.
            output_energies, output_node_energies (`bool`): Return energies of graphs and nodes.
            num_steps (`int`, *optional*): steps of each block, in place of `config.num_steps`.
            generator (`torch.Generator`, *optional*): of the noise that `config.temperature` asks for in training.
            return_dict (`bool`, *optional*): False for a plain tuple.

        Raises:
            ValueError: for inputs whose shapes, dtypes or values do not fit one another or the configuration.

        Example:

        ```python
        >>> import torch
        >>> from energy_transformer import EnergyTransformerGraphConfig, EnergyTransformerGraphModel

        >>> model = EnergyTransformerGraphModel(EnergyTransformerGraphConfig(num_node_features=3))
        >>> triangle = torch.tensor([[0, 1, 1, 2, 2, 0], [1, 0, 2, 1, 0, 2]])
        >>> outputs = model(torch.randn(3, 3), triangle, output_energies=True)
        >>> list(outputs.last_hidden_state.shape), list(outputs.energies.shape)
        ([4, 128], [1, 5])
        ```
        """
        config = self.config
        check_graphs(x, edge_index, edge_attr, batch, config)
        keep_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        keep_energies, steps = output_energies or output_node_energies, self.steps_of_layers(num_steps)
        kept = kept_states(keep_states, sum(steps) + 1)
        self._check_relations(edge_type, edge_index, bool(kept) or keep_energies)
        graphs = GraphTokens.of(batch, x, config.use_cls_token, config.attention_layout == "dense")
        self.embeddings.check_positions(positions, graphs)
        start, context, extra = self._start(x, edge_index, edge_attr, positions, graphs, generator)
        if edge_type is None:
            descents = self._descend(start, steps, context, kept, keep_energies, False, None)
            end, normalized = descents[-1].state, descents[-1].normalized
        else:
            descents, end = [], self._by_relation(at_least_float32(start), steps, context, edge_type)
            normalized = self.layers[-1].norm(end)
        last_hidden_state = graphs.flatten(normalized if self.final_norm else end).to(start.dtype)
        states = states_along(descents) if kept else None
        return EnergyTransformerGraphModelOutput(
            last_hidden_state=last_hidden_state,
            pooler_output=self._pool(last_hidden_state, graphs),
            embeddings=graphs.flatten(start),
            hidden_states=states and tuple(None if state is None else graphs.flatten(state) for state in states),
            **self._energies(descents, graphs, output_energies, output_node_energies),
            **extra,
        )

    @staticmethod
    def _energies(descents: list[Descent], graphs: GraphTokens, of_graphs: bool, of_nodes: bool) -> dict[str, Tensor]:
        """Those that are asked for, by their names in the outputs."""
        if not (of_graphs or of_nodes):
            return {}
        by_token = torch.stack([*energies_along(descents).values()]).sum(0)
        wanted = {"energies": graphs.totals(by_token)} if of_graphs else {}
        if of_nodes:
            last = graphs.flatten(by_token[..., -1, :].unsqueeze(-1))
            wanted["node_energies"] = last[: graphs.num_nodes, 0]
        return wanted

    def _pool(self, tokens: Tensor, graphs: GraphTokens) -> Tensor:
        """(L, D) to (B, D)."""
        return tokens[graphs.num_nodes :] if self.pooling == "cls" else graphs.mean_of_nodes(tokens)


def _classifier(config: EnergyTransformerGraphConfig) -> nn.Sequential:
    """A layer norm, where the configuration asks for one, and a linear map."""
    width = config.hidden_size * (2 if config.classifier_reads_input else 1)
    linear = nn.Linear(width, config.num_labels)
    return nn.Sequential(nn.LayerNorm(width, 1e-6), linear) if config.classifier_norm else nn.Sequential(linear)


class EnergyTransformerForGraphClassification(EnergyTransformerGraphPreTrainedModel):
    """The Energy Transformer with a classifier, or a regression, of whole graphs.

    It reads x_T of the CLS token of a graph, or the mean over its nodes.

    Args:
        config ([`EnergyTransformerGraphConfig`]): see `pooling`, `classifier_norm`, `num_labels` and `problem_type`.
    """

    def __init__(self, config: EnergyTransformerGraphConfig):
        if config.classifier_reads_input:
            raise ValueError("classifier_reads_input is for the classification of nodes, got True for that of graphs")
        super().__init__(config)
        self.energy_transformer = EnergyTransformerGraphModel(config, final_norm=False)
        self.classifier = _classifier(config)
        self.post_init()

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        config, logits, labels = self.config, at_least_float32(logits), labels.to(logits.device)
        kind = config.problem_type
        if kind is None:
            numbers = config.num_labels == 1 or labels.is_floating_point()
            kind = "regression" if numbers else "single_label_classification"
        if kind == "single_label_classification":
            return _cross_entropy(logits, labels, config)
        allowed = [tuple(logits.shape), *([(len(logits),)] if config.num_labels == 1 else [])]
        if tuple(labels.shape) not in allowed:
            shapes = " or ".join(map(str, allowed))
            raise ValueError(f"labels must be of shape {shapes}, got {tuple(labels.shape)}")
        targets = labels.to(logits.dtype).reshape(logits.shape)
        if kind == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits, targets)
        return (F.l1_loss if config.regression_loss == "l1" else F.mse_loss)(logits, targets)

    @can_return_tuple
    def forward(
        self, x: torch.FloatTensor, edge_index: torch.LongTensor, labels: Tensor | None = None, **kwargs
    ) -> EnergyTransformerGraphClassifierOutput:
        r"""
        Args:
            x, edge_index, and in **kwargs edge_attr, batch, positions, edge_type, output_hidden_states,
                output_energies, output_node_energies, num_steps, generator, return_dict: see
                [`EnergyTransformerGraphModel`].
            labels (`torch.Tensor` of shape `(B,)` or `(B, C)`, *optional*):
                Integers in [0, C) for a cross entropy, or -100 for a graph that is not in the loss (without any other,
                the loss is 0); floating-point numbers for a regression; (B, C) zeros and ones with
                `problem_type="multi_label_classification"`.

        Example:

        ```python
        >>> import torch
        >>> from energy_transformer import EnergyTransformerForGraphClassification, EnergyTransformerGraphConfig

        >>> model = EnergyTransformerForGraphClassification(EnergyTransformerGraphConfig(num_node_features=3))
        >>> edge_index = torch.tensor([[0, 1, 1, 2, 3, 4], [1, 0, 2, 1, 4, 3]])
        >>> batch = torch.tensor([0, 0, 0, 1, 1])
        >>> outputs = model(torch.randn(5, 3), edge_index, batch=batch, labels=torch.tensor([0, 1]))
        >>> list(outputs.logits.shape)
        [2, 2]
        ```
        """
        check_labels(labels, self.config)
        outputs = self.energy_transformer(x, edge_index, **kwargs | {"return_dict": True})
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else self._loss(logits, labels)
        if loss is not None and self.config.adjacency_loss_weight:
            reconstruct = self.energy_transformer.modulation.reconstruction_loss
            adjacency_loss = reconstruct(outputs.modulation, outputs.adjacency)
            loss = loss + self.config.adjacency_loss_weight * adjacency_loss
        return EnergyTransformerGraphClassifierOutput(loss=loss, logits=logits, **_records(outputs))


class EnergyTransformerForNodeClassification(EnergyTransformerGraphPreTrainedModel):
    """The Energy Transformer with a classifier of each node; with two classes, the paper's anomaly detection.

    Args:
        config ([`EnergyTransformerGraphConfig`]): see `classifier_norm`, `classifier_reads_input`, `class_weight` and
            `num_labels`. For a large graph, `use_cls_token=False` joins its nodes by its own edges alone.
    """

    def __init__(self, config: EnergyTransformerGraphConfig):
        super().__init__(config)
        self.energy_transformer = EnergyTransformerGraphModel(config, final_norm=False)
        self.classifier = _classifier(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self, x: torch.FloatTensor, edge_index: torch.LongTensor, labels: Tensor | None = None, **kwargs
    ) -> EnergyTransformerNodeClassifierOutput:
        r"""
        Args:
            x, edge_index, and in **kwargs edge_attr, batch, positions, edge_type, output_hidden_states,
                output_energies, output_node_energies, num_steps, generator, return_dict: see
                [`EnergyTransformerGraphModel`].
            labels (`torch.LongTensor` of shape `(n,)`, *optional*):
                Classes in [0, C); -100 for a node that is not in the loss. Without any other, the loss is 0.

        Example:

        ```python
        >>> import torch
        >>> from energy_transformer import EnergyTransformerForNodeClassification, EnergyTransformerGraphConfig

        >>> config = EnergyTransformerGraphConfig(num_node_features=3, use_cls_token=False, class_weight=[1.0, 9.0])
        >>> model = EnergyTransformerForNodeClassification(config)
        >>> edge_index = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> outputs = model(torch.randn(3, 3), edge_index, labels=torch.tensor([0, 1, -100]))
        >>> list(outputs.logits.shape)
        [3, 2]
        ```
        """
        check_labels(labels, self.config)
        outputs = self.energy_transformer(x, edge_index, **kwargs | {"return_dict": True})
        nodes = outputs.last_hidden_state[: len(x)]
        if self.config.classifier_reads_input:
            nodes = torch.cat([nodes, outputs.embeddings[: len(x)]], -1)
        logits = self.classifier(nodes)
        loss = None
        if labels is not None:
            loss = _cross_entropy(at_least_float32(logits), labels.to(logits.device), self.config)
        return EnergyTransformerNodeClassifierOutput(loss=loss, logits=logits, **_records(outputs))


def summed_cross_entropy(logits: Tensor, labels: Tensor, config: EnergyTransformerGraphConfig) -> tuple[Tensor, Tensor]:
    """The cross entropy summed over all labels but −100, weighted by class, and the sum of these weights.

    Raises:
        ValueError: unless the labels are integers of shape (B,), for logits (B, C).
    """
    if labels.is_floating_point() or labels.shape != logits.shape[:1]:
        given = f"{labels.dtype} {tuple(labels.shape)}"
        raise ValueError(f"labels must be integers of shape ({len(logits)},), got {given}")
    labels = labels.long()
    weight = logits.new_tensor(config.class_weight or [1.0] * config.num_labels)
    total = F.cross_entropy(logits, labels, weight, label_smoothing=config.label_smoothing, reduction="sum")
    return total, (weight[labels.clamp(min=0)] * (labels != -100)).sum()


def _cross_entropy(logits: Tensor, labels: Tensor, config: EnergyTransformerGraphConfig) -> Tensor:
    """The weighted mean; 0, with derivatives of 0, where no label is known."""
    total, weights = summed_cross_entropy(logits, labels, config)
    return total / weights.masked_fill(weights == 0, 1.0)


def _records(outputs: EnergyTransformerGraphModelOutput) -> dict:
    """What the outputs of the heads hold of the descent."""
    names = "last_hidden_state", "hidden_states", "energies", "node_energies"
    return {name: getattr(outputs, name) for name in names}


# so that `save_pretrained` puts the code beside the weights
EnergyTransformerGraphConfig.register_for_auto_class()
EnergyTransformerGraphModel.register_for_auto_class("AutoModel")
EnergyTransformerForGraphClassification.register_for_auto_class("AutoModelForSequenceClassification")
EnergyTransformerForNodeClassification.register_for_auto_class("AutoModelForTokenClassification")

__all__ = [
    "EnergyTransformerForGraphClassification",
    "EnergyTransformerForNodeClassification",
    "EnergyTransformerGraphModel",
    "EnergyTransformerGraphPreTrainedModel",
]
