"""Configuration of the Energy Transformer models of graphs."""

from typing import Literal

from huggingface_hub.dataclasses import strict

from .block_configuration import EnergyBlockConfig

AUTO_MAP = {
    "AutoConfig": "configuration_energy_transformer_graph.EnergyTransformerGraphConfig",
    "AutoModel": "modeling_energy_transformer_graph.EnergyTransformerGraphModel",
    "AutoModelForSequenceClassification": ("modeling_energy_transformer_graph.EnergyTransformerForGraphClassification"),
    "AutoModelForTokenClassification": "modeling_energy_transformer_graph.EnergyTransformerForNodeClassification",
}


@strict
class EnergyTransformerGraphConfig(EnergyBlockConfig):
    r"""
    Configuration of an Energy Transformer of graphs (Hoover et al. 2023, arXiv 2302.07253, sections 4 and 5). The
    defaults are the sizes of the paper's graph classifier: four blocks of one step.

    The options of the blocks, `hidden_size` (128 here), `num_attention_heads` (12), `head_dim` (64),
    `intermediate_size` (512), `num_hidden_layers` (4), `num_steps` (1), `step_size`, `energy_terms`,
    `descent_gradient`, `learnable_step_size`, `momentum`, `hopfield_activation`, `attention_qk_norm`, `hopfield_norm`,
    `attention_beta`, `hopfield_beta`, `learnable_beta`, `attention_bias`, `hopfield_bias`, `norm_type`,
    `layer_norm_eps`, `norm_regularization`, `initializer_range` and `hopfield_initializer_range`, are those of
    [`EnergyTransformerConfig`]. A last step with weights of its own, as in the paper's anomaly detection, is a second
    block of one step: `num_hidden_layers=2, num_steps=[T - 1, 1]`.

    Args:
        num_node_features (`int`, *optional*, defaults to 1): numbers F of a node.
        num_edge_features (`int`, *optional*, defaults to 0):
            Numbers K of an edge. A linear map makes of them a bias of the attention scores of each head.
        num_position_features (`int`, *optional*, defaults to 0): numbers k of the position of a node.
        use_cls_token (`bool`, *optional*, defaults to `True`):
            Give each graph a learned token that is joined to all its nodes and to itself.
        pooling (`"cls"` or `"mean"`, *optional*):
            What stands for a graph: its CLS token, or the mean of its nodes. CLS, where there is one, when None.
        attend_to_self (`bool`, *optional*, defaults to `True`): False ignores edges from a token to itself.
        add_self_loops (`bool`, *optional*, defaults to `False`):
            Let each node attend to itself, where the data have no such edge. The paper's attention leaves it out.
        attention_layout (`"sparse"` or `"dense"`, *optional*, defaults to `"sparse"`):
            Attend along the list of edges, in memory linear in their number, or over all pairs of tokens of graphs that
            are padded to the size of the largest one, with a mask. Both give the same numbers.
        initialization (`"paper"` or `"scaled"`, *optional*, defaults to `"paper"`):
            Wq and Wk normal with `initializer_range`, or equal, with standard deviation 1/sqrt(hidden_size).
        temperature (`float`, *optional*, defaults to 0.0): of Langevin noise, in training mode only.
        residual (`"state"` or `"normalized"`, *optional*, defaults to `"state"`):
            What a step is added to: x, or g = norm(x) as in the paper's anomaly detection.
        classifier_norm (`bool`, *optional*, defaults to `True`): whether the classifier begins with a layer norm.
        classifier_reads_input (`bool`, *optional*, defaults to `False`):
            Let the classifier read x_0 beside x_T, as in the paper's anomaly detection.
        class_weight (`list[float]`, *optional*): weight of each class in the cross entropy; all 1 when None.
        label_smoothing (`float`, *optional*, defaults to 0.0): of the cross entropy.
        regression_loss (`"mse"` or `"l1"`, *optional*, defaults to `"mse"`).
        num_relations (`int`, *optional*, defaults to 0):
            Descend once for each type of edges and take the maximum of what comes out and of x_0, as in the paper's
            heterogeneous anomaly detection. 0 for one descent over all edges.
        attention_clamp (`float`, *optional*):
            Hold the scores between −this and this, as `zhuergou/Energy-Transformer-for-Graph-Anomaly-Detection` does.
            The derivative of a score that is held is 0, and the step ignores this: there it follows no gradient, and
            the energy need not fall.
        edge_modulation (`"product"` or `"convolution"`, *optional*):
            Compute as `Lemon-cmd/energy-transformer-graph` does, with its term `"modulated_attention"`: edge features
            multiply the scores, alone or times a convolution of x_0 x_0ᵀ; what is exactly 0 is no edge. See
            `graph_reference.py` for what is wrong with it.
        adjacency_loss_weight (`float`, *optional*, defaults to 0.0):
            Weight of the reconstruction of the edge features from the modulation, in the loss of a graph.

    Raises:
        huggingface_hub.errors.StrictDataclassError:
            for a wrong type, an unknown value or an impossible combination; the message names the argument.

    Example:

    ```python
    >>> from energy_transformer import EnergyTransformerForGraphClassification, EnergyTransformerGraphConfig

    >>> config = EnergyTransformerGraphConfig(num_node_features=7, num_edge_features=4, num_labels=2)
    >>> EnergyTransformerForGraphClassification(config).num_parameters()
    1050806
    ```
    """

    model_type = "energy_transformer_graph"
    own_auto_map = AUTO_MAP
    positive = (*EnergyBlockConfig.positive, "num_node_features", "attention_clamp", "class_weight")
    ranges = EnergyBlockConfig.ranges | {
        name: (lambda value: value >= 0, "not be negative")
        for name in ("num_edge_features", "num_position_features", "num_relations", "adjacency_loss_weight")
    }

    num_node_features: int = 1
    num_edge_features: int = 0
    num_position_features: int = 0
    hidden_size: int = 128
    intermediate_size: int = 512
    num_hidden_layers: int = 4
    num_steps: int | list[int] | tuple[int, ...] = 1
    hopfield_initializer_range: float | int = 128**-0.5
    pooling: Literal["cls", "mean"] | None = None
    add_self_loops: bool = False
    attention_layout: Literal["sparse", "dense"] = "sparse"
    residual: Literal["state", "normalized"] = "state"
    classifier_norm: bool = True
    classifier_reads_input: bool = False
    class_weight: list[float | int] | tuple[float | int, ...] | None = None
    regression_loss: Literal["mse", "l1"] = "mse"
    num_relations: int = 0
    attention_clamp: float | int | None = None
    edge_modulation: Literal["product", "convolution"] | None = None
    adjacency_loss_weight: float | int = 0.0

    def validate_architecture(self):
        """Part of `@strict`-powered validation: refuses impossible values and combinations."""
        self._check_block()
        flexible = self.learnable_step_size or self.momentum or self.temperature
        modulated = "modulated_attention" in [kind for kind, _ in self.terms.values()]
        weights = len(self.class_weight or [0] * self.num_labels)
        refused = {
            "pooling='cls' needs use_cls_token=True, got use_cls_token=False": (
                self.pooling == "cls" and not self.use_cls_token
            ),
            "residual='normalized' cannot be combined with learnable_step_size, momentum or temperature": (
                self.residual == "normalized" and flexible
            ),
            f"class_weight must have one number for each of {self.num_labels} labels, got {self.class_weight}": (
                weights != self.num_labels
            ),
            "attention_clamp needs attention_layout='sparse'": (
                self.attention_clamp is not None and self.attention_layout == "dense"
            ),
            "num_relations needs attention_layout='sparse', and no edge features": (
                self.num_relations and (self.attention_layout == "dense" or self.num_edge_features)
            ),
            "edge_modulation and the energy term 'modulated_attention' need each other": (
                modulated != (self.edge_modulation is not None)
            ),
            "edge_modulation needs attention_layout='dense' and use_cls_token=True": (
                self.edge_modulation and (self.attention_layout == "sparse" or not self.use_cls_token)
            ),
            "adjacency_loss_weight needs edge_modulation": self.adjacency_loss_weight and not self.edge_modulation,
        }
        self._refuse(refused)


__all__ = ["EnergyTransformerGraphConfig"]
