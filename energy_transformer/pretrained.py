"""What all pretrained models share, those of images and those of graphs: the layer that a configuration asks for, the
initial weights of its parts, loading and saving."""

from numbers import Integral
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel

from .attention_backends import check_attention_backend
from .block import Descent, EnergyBlock, Record, check_num_steps
from .block_configuration import EnergyBlockConfig
from .checkpoint_terms import save_terms
from .energies import ENERGY_TERMS, BaseModernHopfield, EnergyAttention, EnergyLayerNorm, EnergyTerm, LayerNorm
from .updates import FlexibleUpdate, Update

_PUSH_OPTIONS = ("token", "private", "revision", "create_pr", "commit_message", "commit_description", "max_shard_size")


def _term_class(name: str) -> type[EnergyTerm]:
    if name not in ENERGY_TERMS:
        raise ValueError(
            f"config.energy_terms has {name!r}, which is not registered (known: {', '.join(ENERGY_TERMS)}): import the "
            f"module that defines it with register_energy_term({name!r}); where the package energy_transformer is not "
            "imported, trust_remote_code=True does that"
        )
    return ENERGY_TERMS[name]


class EnergyTransformerLayer(EnergyBlock):
    """One block of a model, with the norm, the terms and the update that the configuration asks for.

    Args:
        config ([`EnergyBlockConfig`]).
        num_steps: T, for the learned step sizes; the configuration's when None.
    """

    def __init__(self, config: EnergyBlockConfig, num_steps: int | None = None):
        dim = config.hidden_size
        terms = {
            name: _term_class(kind).from_config(config, **options) for name, (kind, options) in config.terms.items()
        }
        if config.norm_type == "energy_layer_norm":
            norm = EnergyLayerNorm(dim, config.layer_norm_eps, config.norm_regularization)
        else:
            norm = LayerNorm(dim, config.layer_norm_eps)
        steps = config.steps_of_blocks[0] if num_steps is None else num_steps
        super().__init__(terms, norm, self.make_update(config, steps), config.descent_gradient)
        self.config = config

    @staticmethod
    def make_update(config: EnergyBlockConfig, num_steps: int) -> Update:
        """The update that the configuration asks for."""
        options = config.learnable_step_size, config.hidden_size, config.momentum, config.temperature
        flexible = config.learnable_step_size or config.momentum or config.temperature
        return FlexibleUpdate(config.step_size, num_steps, *options) if flexible else Update(config.step_size)


class EnergyPreTrainedModel(PreTrainedModel):
    """Weight initialization, loading and saving."""

    base_model_prefix = "energy_transformer"
    supports_gradient_checkpointing = True
    layers: nn.ModuleList

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """One of `ATTENTION_BACKENDS`, `"auto"` when None; ValueError for any other, or one that cannot run here."""
        implementation = "auto" if requested_attention is None else requested_attention
        check_attention_backend(implementation)
        return implementation

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *args, **kwargs) -> str:
        """Without transformers' replacements of one attention by another, or by a kernel of the Hub: none computes
        the energy's gradient."""
        return self.get_correct_attn_implementation(attn_implementation)

    def steps_of_layers(self, num_steps: int | None = None) -> list[int]:
        """Descent steps of each layer: `num_steps`, or what the configuration says when None."""
        if num_steps is None:
            return self.config.steps_of_blocks
        check_num_steps(num_steps)
        return [int(num_steps)] * self.config.num_hidden_layers

    def _descend(self, state, steps, context, kept, energies, attentions, tolerance) -> list[Descent]:
        """Through the blocks, each of which begins where the one before it ended."""
        # without a step the model is at the start, which is the first block's
        layers = list(zip(self.layers, steps, strict=True)) if any(steps) else [(self.layers[0], 0)]
        descents: list[Descent] = []
        before = 0
        for layer, count in layers:
            states = {index - before for index in kept if before + bool(descents) <= index <= before + count}
            descents.append(layer(state, count, context, Record(states, energies, attentions), tolerance))
            state, before = descents[-1].state, before + count
        return descents

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        config = self.config
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, EnergyLayerNorm):
            init.ones_(module.gamma)
            init.zeros_(module.delta)
        elif isinstance(module, EnergyAttention):
            self._init_attention(module)
        elif isinstance(module, BaseModernHopfield):
            init.normal_(module.W, std=module.options.get("scale", config.hopfield_initializer_range))
            if module.bias is not None:
                init.zeros_(module.bias)
            if isinstance(module.beta, Tensor):
                init.constant_(module.beta, module.options.get("beta", config.hopfield_beta) or module.default_beta)
        elif isinstance(module, EnergyTerm) and hasattr(module, "reset_parameters"):
            module.reset_parameters()
        elif isinstance(module, Update) and isinstance(module.step_size, Tensor):
            init.constant_(module.step_size, config.step_size)

    def _init_attention(self, attention: EnergyAttention) -> None:
        scaled = self.config.initialization == "scaled"
        std = self.config.hidden_size**-0.5 if scaled else self.config.initializer_range
        std = attention.options.get("scale", std)
        init.normal_(attention.Wq, std=std)
        if scaled:
            init.copy_(attention.Wk, attention.Wq)
        else:
            init.normal_(attention.Wk, std=std)
        for bias in (attention.bq, attention.bk):
            if bias is not None:
                init.zeros_(bias)
        if isinstance(attention.beta, Tensor):
            beta = attention.options.get("beta", self.config.attention_beta) or attention.head_dim**-0.5
            beta = torch.as_tensor(beta, dtype=torch.float64).to(attention.beta)
            init.copy_(attention.beta, beta.expand_as(attention.beta))

    def save_pretrained(self, save_directory, *args, push_to_hub: bool = False, **kwargs):
        """As transformers has it; the files of energy terms that are not the package's own are saved as well."""
        scalars = {f"{prefix}.{name}".strip(".") for prefix, name in self._reshaped_scalars()}
        if scalars:
            weights = kwargs.get("state_dict") or self.state_dict()
            shapes = {name: () if name in scalars else weight.shape for name, weight in weights.items()}
            kwargs["state_dict"] = {name: weight.reshape(shapes[name]) for name, weight in weights.items()}
        terms = {kind: _term_class(kind) for kind, _ in self.config.terms.values()}
        package = __name__.rpartition(".")[0]
        own = {kind: cls for kind, cls in terms.items() if cls.__module__.rpartition(".")[0] != package}
        super().save_pretrained(save_directory, *args, push_to_hub=push_to_hub and not own, **kwargs)
        if own and (args[0] if args else kwargs.get("is_main_process", True)):
            save_terms(own, save_directory)
            if push_to_hub:  # once more, by way of a folder that is pushed as a whole
                options = {name: kwargs[name] for name in _PUSH_OPTIONS if name in kwargs}
                self.push_to_hub(kwargs.get("repo_id") or Path(save_directory).name, **options)

    def _reshaped_scalars(self) -> list[tuple[str, str]]:
        """Module and name of the parameters that `scalars_to_vectors` has reshaped."""
        return [(prefix, name) for prefix, module in self.named_modules() for name in getattr(module, "scalars", ())]

    def scalars_to_vectors(self) -> None:
        """Give each parameter of shape () the shape (1,), for `fully_shard` takes no scalars:

            model.scalars_to_vectors()
            for layer in model.base_model.layers:
                fully_shard(layer)
            fully_shard(model)

        Call it before the optimizer is made. Files keep the shape (): `save_pretrained` writes it, and a state dict
        of either shape can be loaded.
        """
        for module in self.modules():
            scalars = [name for name, parameter in module.named_parameters(recurse=False) if parameter.ndim == 0]
            for name in scalars:
                scalar = module.get_parameter(name)
                setattr(module, name, nn.Parameter(scalar.detach().reshape(1), scalar.requires_grad))
            if scalars:
                module.scalars = scalars


def states_along(descents: list[Descent]) -> tuple[Tensor | None, ...]:
    """x_0 … x_T of all blocks; a block begins where the one before it ended."""
    return descents[0].states + tuple(state for found in descents[1:] for state in found.states[1:])


def energies_along(descents: list[Descent]) -> dict[str, Tensor]:
    """(..., T + 1, N) by term; where one block ends, it is the energy of the next one."""
    *earlier, last = (found.energies or {} for found in descents)
    return {name: torch.cat([*(found[name][..., :-1, :] for found in earlier), last[name]], -2) for name in last}


def kept_states(wanted: bool | int | list[int], count: int) -> set[int]:
    """Indices of the states to record, of `count`; negative ones are counted from the end."""
    if isinstance(wanted, bool):
        return set(range(count)) if wanted else set()
    indices = [wanted] if isinstance(wanted, Integral) else wanted
    if any(not -count <= index < count for index in indices):
        raise ValueError(f"output_hidden_states must be true, false or indices of the {count} states, got {wanted}")
    return {int(index) % count for index in indices}


def check_labels(labels: Tensor | None, config: EnergyBlockConfig) -> None:
    """Raises ValueError for a label out of range; only on the CPU, and not while a graph is made."""
    if labels is None or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return
    if labels.is_floating_point() or labels.device.type != "cpu":
        return
    if config.num_labels > 1 and labels.ndim < 2 and labels.numel():
        least, largest = int(labels.min()), int(labels.max())
        if (least < 0 and least != -100) or largest >= config.num_labels:
            wrong = largest if largest >= config.num_labels else least
            raise ValueError(f"labels must lie in [0, num_labels) = [0, {config.num_labels}), got {wrong}")
