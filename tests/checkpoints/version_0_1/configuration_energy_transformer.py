"""Configuration of the Energy Transformer models."""

import math
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

AUTO_MAP = {
    "AutoConfig": "configuration_energy_transformer.EnergyTransformerConfig",
    "AutoModel": "modeling_energy_transformer.EnergyTransformerModel",
    "AutoModelForMaskedImageModeling": "modeling_energy_transformer.EnergyTransformerForMaskedImageModeling",
    "AutoModelForPreTraining": "modeling_energy_transformer.EnergyTransformerForMaskedImageModeling",
    "AutoModelForImageClassification": "modeling_energy_transformer.EnergyTransformerForImageClassification",
}


def _pair(size: int | list[int] | tuple[int, ...]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


@strict
class EnergyTransformerConfig(PreTrainedConfig):
    r"""
    Configuration of an Energy Transformer (Hoover et al. 2023, arXiv 2302.07253). The defaults are the paper's
    ImageNet model with the masked-autoencoder head: 4,873,729 parameters.

    Args:
        image_size (`int` or `(height, width)`, *optional*, defaults to 224): size of the images in pixels.
        patch_size (`int` or `(height, width)`, *optional*, defaults to 16): size of a patch in pixels.
        num_channels (`int`, *optional*, defaults to 3).
        hidden_size (`int`, *optional*, defaults to 768): width D of a token.
        num_attention_heads (`int`, *optional*, defaults to 12): number of heads H.
        head_dim (`int`, *optional*, defaults to 64): width Y of a head; H·Y need not be D.
        intermediate_size (`int`, *optional*, defaults to 3072): number of memories M of the Hopfield network.
        num_hidden_layers (`int`, *optional*, defaults to 1):
            Number of blocks, each with its own weights, run one after the other.
        num_steps (`int`, *optional*, defaults to 12): descent steps T of each block, all with the same weights.
        step_size (`float`, *optional*, defaults to 0.1): step size α.
        hopfield_activation (`"relu"` or `"softmax"`, *optional*, defaults to `"relu"`): kind of Hopfield network.
        attention_beta (`float` or one for each head, *optional*):
            Inverse temperature of the attention; 1/sqrt(head_dim) when None.
        hopfield_beta (`float`, *optional*):
            Inverse temperature of the Hopfield network; 1 for `"relu"` and 0.01 for `"softmax"` when None.
        learnable_beta (`bool`, *optional*, defaults to `False`): learn both betas, the attention's for each head.
        attention_bias (`bool` or `"shared"`, *optional*, defaults to `False`):
            Biases of the queries and keys: of shape (H, Y), or `"shared"` by the heads, (Y,).
        hopfield_bias (`bool` or `"before_beta"`, *optional*, defaults to `False`):
            Bias of the Hopfield network: added after the multiplication by beta, or before it.
        attend_to_self (`bool`, *optional*, defaults to `True`):
            Whether a token attends to itself, as in all released image code; the paper's equation excludes it.
        norm_type (`"energy_layer_norm"` or `"layer_norm"`, *optional*, defaults to `"energy_layer_norm"`):
            The paper's norm with a scalar gain, under which the energy falls, or `torch.nn.LayerNorm`.
        layer_norm_eps (`float`, *optional*, defaults to 1e-5).
        norm_regularization (`float`, *optional*, defaults to 0.0): λ of the regularised energy layer norm.
        use_cls_token (`bool`, *optional*, defaults to `True`): put a learned token before the patches.
        patch_embedding (`"linear"` or `"mlp"`, *optional*, defaults to `"linear"`):
            Encoder and decoder of the patches: one linear map, or linear, layer norm, ReLU, linear.
        initialization (`"paper"` or `"scaled"`, *optional*, defaults to `"paper"`):
            `"paper"`: every weight of the block, token and position normal with the two ranges below.
            `"scaled"`: positions are 2-D sine-cosine codes of unit amplitude, Wq and Wk start equal and normal with
            standard deviation 1/sqrt(hidden_size), memories normal with the range below. It leaves the plateau of
            the mean colour at once, where `"paper"` needs thousands of steps; for small models and short runs.
            The encoder and decoder are LeCun normal with zero bias in both, as in the reference.
        initializer_range (`float`, *optional*, defaults to 0.002): for Wq, Wk, tokens and positions.
        hopfield_initializer_range (`float`, *optional*, defaults to 0.02): for the memories.
        mask_ratio (`float`, *optional*, defaults to 100/196): share of the patches in the loss.
        mask_replace_probability (`float`, *optional*, defaults to 0.9):
            Share of those that is replaced by the mask token; the rest keeps its content and still counts.
        mask_type (`"scatter"`, `"block"` or `"scatter_or_block"`, *optional*, defaults to `"scatter"`):
            Hide single patches, or a square of patches that wraps around the borders, or either with equal chance.
        norm_pix_loss (`bool`, *optional*, defaults to `False`):
            Let the target of each patch be its pixels, normalised by their own mean and variance.
        decoder_norm (`"energy_layer_norm"`, `"layer_norm"` or `"none"`, *optional*, defaults to `"energy_layer_norm"`):
            What the decoder of the patches reads: the final state through the last block's norm, through a
            `torch.nn.LayerNorm` of its own (Lemon-cmd/energy-transformer-torch), or as it is (the seed's example).
        decoder_norm_eps (`float`, *optional*, defaults to 1e-5): of that layer norm; Lemon-cmd's is `hidden_size`.
        classifier_head (`"linear"` or `"mlp"`, *optional*, defaults to `"linear"`):
            Layer norm and linear map to the labels, or layer norm, linear, ReLU, linear.
        classifier_pooling (`"cls"` or `"mean"`, *optional*):
            What the classifier reads and `pooler_output` holds: the CLS token, or the mean of the patches. CLS, where
            there is one, when None.
        label_smoothing (`float`, *optional*, defaults to 0.0): of the cross entropy; the paper's flax code has 0.1.

    Raises:
        huggingface_hub.errors.StrictDataclassError:
            for a wrong type, an unknown value or an impossible combination; the message names the argument.

    Example:

    ```python
    >>> from energy_transformer import EnergyTransformerConfig, EnergyTransformerModel

    >>> model = EnergyTransformerModel(EnergyTransformerConfig(image_size=32, patch_size=4, hidden_size=64))
    >>> model.config.grid_size
    (8, 8)
    ```
    """

    model_type = "energy_transformer"

    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int | list[int] | tuple[int, int] = 16
    num_channels: int = 3
    hidden_size: int = 768
    num_attention_heads: int = 12
    head_dim: int = 64
    intermediate_size: int = 3072
    num_hidden_layers: int = 1
    num_steps: int = 12
    step_size: float | int = 0.1
    hopfield_activation: Literal["relu", "softmax"] = "relu"
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
    patch_embedding: Literal["linear", "mlp"] = "linear"
    initialization: Literal["paper", "scaled"] = "paper"
    initializer_range: float | int = 0.002
    hopfield_initializer_range: float | int = 0.02
    mask_ratio: float | int = 100 / 196
    mask_replace_probability: float | int = 0.9
    mask_type: Literal["scatter", "block", "scatter_or_block"] = "scatter"
    norm_pix_loss: bool = False
    decoder_norm: Literal["energy_layer_norm", "layer_norm", "none"] = "energy_layer_norm"
    decoder_norm_eps: float | int = 1e-5
    classifier_head: Literal["linear", "mlp"] = "linear"
    classifier_pooling: Literal["cls", "mean"] | None = None
    label_smoothing: float | int = 0.0

    def __post_init__(self, **kwargs):
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        super().__post_init__(**kwargs)

    @property
    def image_height_width(self) -> tuple[int, int]:
        """`image_size` as (height, width) in pixels."""
        return _pair(self.image_size)

    @property
    def patch_height_width(self) -> tuple[int, int]:
        """`patch_size` as (height, width) in pixels."""
        return _pair(self.patch_size)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        (height, width), (patch_height, patch_width) = self.image_height_width, self.patch_height_width
        return height // patch_height, width // patch_width

    def validate_architecture(self):
        """Part of `@strict`-powered validation: refuses impossible values and combinations."""
        for name in ("image_size", "patch_size"):
            size = getattr(self, name)
            if not isinstance(size, int) and len(size) != 2:
                raise ValueError(f"{name} must be one number or (height, width), got {size}")
        for name, value in vars(self).items():
            numbers = value if isinstance(value, list | tuple) else [value]
            if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
                raise ValueError(f"{name} must be finite, got {value}")
        positive = "num_channels hidden_size num_attention_heads head_dim intermediate_size num_hidden_layers num_steps"
        betas = self.attention_beta
        if isinstance(betas, list | tuple) and len(betas) != self.num_attention_heads:
            raise ValueError(
                f"attention_beta must be one number or one for each of {self.num_attention_heads} heads, got {betas}"
            )
        positive += " step_size layer_norm_eps decoder_norm_eps attention_beta hopfield_beta"
        for name in positive.split():
            value = getattr(self, name)
            if value is not None and min(value if isinstance(value, list | tuple) else [value]) <= 0:
                raise ValueError(f"{name} must be greater than 0, got {value}")
        for name in ("norm_regularization", "initializer_range", "hopfield_initializer_range"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        sizes = (*self.image_height_width, *self.patch_height_width)
        if min(sizes) <= 0 or any(image % patch for image, patch in zip(sizes[:2], sizes[2:], strict=True)):
            raise ValueError(
                f"image_size must be a multiple of patch_size, got {self.image_size} and {self.patch_size}"
            )
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must lie between 0 and 1, both excluded, got {self.mask_ratio}")
        if not 0 <= self.mask_replace_probability <= 1:
            raise ValueError(f"mask_replace_probability must lie in [0, 1], got {self.mask_replace_probability}")
        if self.norm_type == "layer_norm" and self.norm_regularization:
            raise ValueError("norm_regularization needs norm_type='energy_layer_norm', got norm_type='layer_norm'")
        if self.classifier_pooling == "cls" and not self.use_cls_token:
            raise ValueError("classifier_pooling='cls' needs use_cls_token=True, got use_cls_token=False")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {self.label_smoothing}")
        if self.label_smoothing and self.problem_type not in (None, "single_label_classification"):
            raise ValueError(
                f"label_smoothing needs problem_type='single_label_classification', got {self.problem_type!r}"
            )
        if self.initialization == "scaled" and self.hidden_size % 4:
            raise ValueError(
                f"initialization='scaled' needs a hidden_size that 4 divides (two axes of sines and cosines), "
                f"got {self.hidden_size}"
            )


__all__ = ["EnergyTransformerConfig"]
