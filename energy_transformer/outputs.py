"""What the models return.

Shapes: B images or graphs, N tokens, L tokens of all graphs together, P patches, D token width, H heads, T steps.
"""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class EnergyParts(ModelOutput):
    """
    The energies of a descent, split in two ways: the terms together sum to `energies`, and so do the tokens.

    Args:
        attention (`torch.FloatTensor` of shape `(B, T + 1)`, *optional*): energy of the attention.
        hopfield (`torch.FloatTensor` of shape `(B, T + 1)`, *optional*): energy of the Hopfield network.
        others (`dict` of `torch.FloatTensor` of shape `(B, T + 1)`, *optional*): of other terms, by their names.
        tokens (`torch.FloatTensor` of shape `(B, T + 1, N)`):
            Share of each token in all terms; in the attention, as a query.
    """

    attention: torch.FloatTensor | None = None
    hopfield: torch.FloatTensor | None = None
    others: dict[str, torch.FloatTensor] | None = None
    tokens: torch.FloatTensor | None = None


@dataclass
class EnergyTransformerModelOutput(ModelOutput):
    """
    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(B, N, D)`): norm(x_T), in the dtype of the model.
        pooler_output (`torch.FloatTensor` of shape `(B, D)`):
            Of `last_hidden_state`, the CLS token or the mean of the patches: see `classifier_pooling` of the config.
        hidden_states (`tuple` of `torch.FloatTensor` of shape `(B, N, D)`, *optional*):
            The states x_0 … x_T of the descent; with several blocks, those of all blocks one after the other. None in
            the place of a state that `output_hidden_states` did not ask for.
        energies (`torch.FloatTensor` of shape `(B, T + 1)`, *optional*):
            Energy of each image at each state; with several blocks, that of the block whose step comes next.
        attentions (`tuple` of `torch.FloatTensor` of shape `(B, H, N, N)`, *optional*): for each step.
        energy_parts ([`EnergyParts`], *optional*): the energies, split.
        num_steps_taken (`torch.LongTensor` of shape `(B,)`, *optional*):
            With a `tolerance`, the steps until the image had settled, of all blocks together.
    """

    last_hidden_state: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    energies: torch.FloatTensor | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    energy_parts: EnergyParts | None = None
    num_steps_taken: torch.LongTensor | None = None


@dataclass
class EnergyTransformerMaskedImageModelingOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `()`): mean squared error over the pixels of the masked patches.
        reconstruction (`torch.FloatTensor` of shape `(B, C, H, W)`):
            The decoded image, in the units of `pixel_values` (of the normalized patches with `norm_pix_loss`).
        mask (`torch.BoolTensor` of shape `(B, P)`): True for the patches in the loss.
        hidden_states, energies, attentions, energy_parts, num_steps_taken: see [`EnergyTransformerModelOutput`].
    """

    loss: torch.FloatTensor | None = None
    reconstruction: torch.FloatTensor | None = None
    mask: torch.BoolTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    energies: torch.FloatTensor | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    energy_parts: EnergyParts | None = None
    num_steps_taken: torch.LongTensor | None = None


@dataclass
class EnergyTransformerImageClassifierOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*): given `labels`.
        logits (`torch.FloatTensor` of shape `(B, num_labels)`).
        hidden_states, energies, attentions, energy_parts, num_steps_taken: see [`EnergyTransformerModelOutput`].
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    energies: torch.FloatTensor | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    energy_parts: EnergyParts | None = None
    num_steps_taken: torch.LongTensor | None = None


@dataclass
class EnergyTransformerGraphModelOutput(ModelOutput):
    """
    The L tokens are the nodes in the order in which they came and then, where there are any, the CLS tokens of the
    graphs.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(L, D)`): norm(x_T), in the dtype of the model.
        pooler_output (`torch.FloatTensor` of shape `(B, D)`):
            Of `last_hidden_state`, the CLS token of each graph or the mean of its nodes: see `pooling` of the config.
        embeddings (`torch.FloatTensor` of shape `(L, D)`): x_0.
        hidden_states (`tuple` of `torch.FloatTensor` of shape `(L, D)`, *optional*):
            The states x_0 … x_T of the descent; with several blocks, those of all blocks one after the other. None in
            the place of a state that `output_hidden_states` did not ask for.
        energies (`torch.FloatTensor` of shape `(B, T + 1)`, *optional*):
            Energy of each graph at each state; with several blocks, that of the block whose step comes next.
        node_energies (`torch.FloatTensor` of shape `(nodes,)`, *optional*):
            The terms of the energy at x_T that belong to a node; in the attention, as a query.
        modulation (`torch.FloatTensor` of shape `(B, N, N, H)`, *optional*): of `edge_modulation` of the config.
        adjacency (`torch.FloatTensor` of shape `(B, N, N, K)`, *optional*): the padded edge features behind it.
    """

    last_hidden_state: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    embeddings: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    energies: torch.FloatTensor | None = None
    node_energies: torch.FloatTensor | None = None
    modulation: torch.FloatTensor | None = None
    adjacency: torch.FloatTensor | None = None


@dataclass
class EnergyTransformerGraphClassifierOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*): given `labels`.
        logits (`torch.FloatTensor` of shape `(B, num_labels)`): of each graph; in a regression, the numbers themselves.
        last_hidden_state (`torch.FloatTensor` of shape `(L, D)`): x_T, which the classifier reads.
        hidden_states, energies, node_energies: see [`EnergyTransformerGraphModelOutput`].
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    energies: torch.FloatTensor | None = None
    node_energies: torch.FloatTensor | None = None


@dataclass
class EnergyTransformerNodeClassifierOutput(EnergyTransformerGraphClassifierOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*): given `labels`.
        logits (`torch.FloatTensor` of shape `(nodes, num_labels)`): of each node.
        last_hidden_state (`torch.FloatTensor` of shape `(L, D)`): x_T, which the classifier reads.
        hidden_states, energies, node_energies: see [`EnergyTransformerGraphModelOutput`].
    """
