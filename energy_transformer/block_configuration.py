"""The part of a configuration that describes the blocks of a model, of images or of graphs."""

import difflib
import json
import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)


@strict
class EnergyBlockConfig(PreTrainedConfig):
    """What the configurations of all models share: the blocks and their descent. The options, from `hidden_size` to
    `norm_regularization`, are those of [`EnergyTransformerConfig`], which explains them."""

    own_auto_map: ClassVar[dict[str, str]] = {}
    positive: ClassVar[tuple[str, ...]] = (
        "hidden_size", "num_attention_heads", "head_dim", "intermediate_size", "num_hidden_layers", "num_steps",
        "step_size", "layer_norm_eps", "attention_beta", "hopfield_beta",
    )  # fmt: skip
    ranges: ClassVar[dict[str, tuple[Callable[[Any], bool], str]]] = {
        "norm_regularization": (lambda value: value >= 0, "not be negative"),
        "initializer_range": (lambda value: value >= 0, "not be negative"),
        "hopfield_initializer_range": (lambda value: value >= 0, "not be negative"),
        "temperature": (lambda value: value >= 0, "not be negative"),
        "momentum": (lambda value: 0 <= value < 1, "lie in [0, 1)"),
        "label_smoothing": (lambda value: 0 <= value < 1, "lie in [0, 1)"),
    }

    hidden_size: int = 768
    num_attention_heads: int = 12
    head_dim: int = 64
    intermediate_size: int = 3072
    num_hidden_layers: int = 1
    num_steps: int | list[int] | tuple[int, ...] = 12
    step_size: float | int = 0.1
    energy_terms: list[str | dict] | tuple[str | dict, ...] = ("attention", "hopfield")
    descent_gradient: Literal["normalized", "state"] = "normalized"
    learnable_step_size: Literal[False, "step", "channel"] = False
    momentum: float | int = 0.0
    temperature: float | int = 0.0
    hopfield_activation: Literal["relu", "gelu", "softmax"] = "relu"
    attention_qk_norm: bool = False
    hopfield_norm: bool = False
    attention_beta: float | int | list[float | int] | tuple[float | int, ...] | None = None
    hopfield_beta: float | int | None = None
    learnable_beta: bool = False
    attention_bias: bool | Literal["shared"] = False
    hopfield_bias: bool | Literal["before_beta"] = False
    attend_to_self: bool = True
    norm_type: Literal["energy_layer_norm", "layer_norm"] = "energy_layer_norm"
    layer_norm_eps: float | int = 1e-5
    norm_regularization: float | int = 0.0
    use_cls_token: bool = True
    initialization: Literal["paper", "scaled"] = "paper"
    initializer_range: float | int = 0.002
    hopfield_initializer_range: float | int = 0.02
    label_smoothing: float | int = 0.0

    def __post_init__(self, **kwargs):
        unknown = [name for name in kwargs if not self._is_known(name)]
        if unknown:
            near = difflib.get_close_matches(unknown[0], [field.name for field in fields(self)], n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise TypeError(f"{type(self).__name__} has no option {unknown[0]!r}{hint}")
        kwargs.setdefault("auto_map", dict(self.own_auto_map))
        super().__post_init__(**kwargs)

    @classmethod
    def _is_known(cls, name: str) -> bool:
        """Whether a keyword is an option of this class, or one of those that transformers knows."""
        return name.startswith("_") or name in _TRANSFORMERS_OPTIONS or name in {field.name for field in fields(cls)}

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """As transformers has it. What a file holds beyond the known options gives a warning, and stays an attribute:
        a file may be of a later version."""
        unknown = {name: value for name, value in config_dict.items() if not cls._is_known(name)}
        known = {name: value for name, value in config_dict.items() if name not in unknown}
        loaded = super().from_dict(known, **kwargs)
        if unknown:
            logger.warning_once(f"the configuration holds options that this version does not know: {sorted(unknown)}")
            config = loaded[0] if isinstance(loaded, tuple) else loaded
            for name, value in unknown.items():
                setattr(config, name, value)
        return loaded

    @property
    def terms(self) -> dict[str, tuple[str, dict]]:
        """The registered name and the options of each term of the energy, by the name of its submodule: that under
        which it is registered, and with a number behind it where it stands again."""
        found: dict[str, tuple[str, dict]] = {}
        for term in self.energy_terms:
            options = {} if isinstance(term, str) else dict(term)
            kind = term if isinstance(term, str) else options.pop("name")
            count = 1 + sum(known == kind for known, _ in found.values())
            found[kind if count == 1 else f"{kind}_{count}"] = kind, options
        return found

    @property
    def steps_of_blocks(self) -> list[int]:
        """`num_steps` of each block."""
        steps = self.num_steps
        return [steps] * self.num_hidden_layers if isinstance(steps, int) else list(steps)

    def _check_block(self):
        """Raises ValueError for values and combinations that no block can have."""
        self._check_numbers()
        self._check_terms()
        each = {"attention_beta": (self.num_attention_heads, "heads"), "num_steps": (self.num_hidden_layers, "blocks")}
        for name, (count, what) in each.items():
            value = getattr(self, name)
            if isinstance(value, list | tuple) and len(value) != count:
                raise ValueError(f"{name} must be one number or one for each of {count} {what}, got {value}")
        refused = {
            "hopfield_bias='before_beta' cannot be combined with hopfield_norm=True": (
                self.hopfield_bias == "before_beta" and self.hopfield_norm
            ),
            "norm_regularization needs norm_type='energy_layer_norm', got norm_type='layer_norm'": (
                self.norm_type == "layer_norm" and self.norm_regularization
            ),
            f"label_smoothing needs problem_type='single_label_classification', got {self.problem_type!r}": (
                self.label_smoothing and self.problem_type not in (None, "single_label_classification")
            ),
        }
        self._refuse(refused)

    @staticmethod
    def _refuse(refused: dict[str, Any]):
        """Raises ValueError with the first message whose condition is met."""
        for message, wrong in refused.items():
            if wrong:
                raise ValueError(message)

    def _check_numbers(self):
        for name, value in vars(self).items():
            numbers = value if isinstance(value, list | tuple) else [value]
            if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
                raise ValueError(f"{name} must be finite, got {value}")
        for name in self.positive:
            value = getattr(self, name)
            if value is not None and min(value if isinstance(value, list | tuple) else [value], default=1) <= 0:
                raise ValueError(f"{name} must be greater than 0, got {value}")
        for name, (fits, allowed) in self.ranges.items():
            if not fits(getattr(self, name)):
                raise ValueError(f"{name} must {allowed}, got {getattr(self, name)}")

    def _check_terms(self):
        if not self.energy_terms:
            raise ValueError("energy_terms must name at least one term, got none")
        for term in self.energy_terms:
            if isinstance(term, dict) and not isinstance(term.get("name"), str):
                raise ValueError(f"energy_terms: the name of a term with options stands under 'name', got {term}")
            try:
                json.dumps(term)
            except TypeError as error:
                raise ValueError(
                    f"energy_terms: the options of a term must be what JSON can hold, got {term}"
                ) from error
        if len(self.terms) < len(self.energy_terms):
            raise ValueError(f"energy_terms: two terms would have the same name, of {list(self.energy_terms)}")


# What transformers puts into a configuration or takes from one without a field of its own.
_TRANSFORMERS_OPTIONS = {
    "auto_map", "custom_pipelines", "name_or_path", "torch_dtype", "num_labels", "output_attentions",
    "attn_implementation", "experts_implementation", "quantization_config", "per_layer_config", "model_type",
    "transformers_version", "tie_word_embeddings", "use_cache",
}  # fmt: skip
