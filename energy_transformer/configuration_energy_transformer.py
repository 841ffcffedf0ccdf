"""Configuration of the Energy Transformer models."""

from typing import ClassVar, Literal

from huggingface_hub.dataclasses import strict

from .block_configuration import EnergyBlockConfig

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
class EnergyTransformerConfig(EnergyBlockConfig):
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
        num_steps (`int` or one for each block, *optional*, defaults to 12):
            Descent steps T of each block, all with the same weights.
        step_size (`float`, *optional*, defaults to 0.1): step size α.
        energy_terms (*optional*, defaults to `("attention", "hopfield")`):
            The terms of the energy, by the names under which they are registered: see `register_energy_term`. A term
            with options is a dictionary, `{"name": "hopfield", "hidden_dim": 64}`; a name may stand twice.
        descent_gradient (`"normalized"` or `"state"`, *optional*, defaults to `"normalized"`):
            Descend along ∂E/∂g, as the paper does, or along ∂E/∂x, through the Jacobian of the norm.
        learnable_step_size (`False`, `"step"` or `"channel"`, *optional*, defaults to `False`):
            Learn a step size of each step, or of each step and channel, beginning at `step_size`.
        momentum (`float`, *optional*, defaults to 0.0): share of the last step that the next one repeats.
        temperature (`float`, *optional*, defaults to 0.0): of Langevin noise, which each step then adds.
        hopfield_activation (`"relu"`, `"gelu"` or `"softmax"`, *optional*, defaults to `"relu"`):
            Kind of Hopfield network, by the gradient of its energy.
        attention_qk_norm (`bool`, *optional*, defaults to `False`):
            Normalize the queries and keys of each head to a mean square of 1, inside the energy.
        hopfield_norm (`bool`, *optional*, defaults to `False`):
            Normalize the hidden vector of the Hopfield network over its memories, inside the energy.
        attention_beta (`float` or one for each head, *optional*):
            Inverse temperature of the attention; 1/sqrt(head_dim) when None.
        hopfield_beta (`float`, *optional*):
            Inverse temperature of the Hopfield network; 1 for `"relu"` and `"gelu"`, 0.01 for `"softmax"` when None.
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
        norm_regularization (`float`, *optional*, defaults to 0.0): λ of the regularized energy layer norm.
        use_cls_token (`bool`, *optional*, defaults to `True`): put a learned token before the patches.
        patch_embedding (`"linear"` or `"mlp"`, *optional*, defaults to `"linear"`):
            Encoder and decoder of the patches: one linear map, or linear, layer norm, ReLU, linear.
        initialization (`"paper"` or `"scaled"`, *optional*, defaults to `"paper"`):
            `"paper"`: every weight of the block, token and position normal with the two ranges below.
            `"scaled"`: positions are 2-D sine-cosine codes of unit amplitude, Wq and Wk start equal and normal with
            standard deviation 1/sqrt(hidden_size), memories normal with the range below. It leaves the plateau of
            the mean color at once, where `"paper"` needs thousands of steps; for small models and short runs.
            The encoder and decoder are LeCun normal with zero bias in both, as in the reference.
        initializer_range (`float`, *optional*, defaults to 0.002): for Wq, Wk, tokens and positions.
        hopfield_initializer_range (`float`, *optional*, defaults to 0.02): for the memories.
        mask_ratio (`float`, *optional*, defaults to 100/196): share of the patches in the loss.
        mask_replace_probability (`float`, *optional*, defaults to 0.9):
            Share of those that is replaced by the mask token; the rest keeps its content and still counts.
        mask_type (`"scatter"`, `"block"` or `"scatter_or_block"`, *optional*, defaults to `"scatter"`):
            Hide single patches, or a square of patches that wraps around the borders, or either with equal chance.
        norm_pix_loss (`bool`, *optional*, defaults to `False`):
            Let the target of each patch be its pixels, normalized by their own mean and variance.
        decoder_norm (`"energy_layer_norm"`, `"layer_norm"` or `"none"`, *optional*, defaults to `"energy_layer_norm"`):
            What the decoder of the patches reads: the final state through the last block's norm, through a
            `torch.nn.LayerNorm` of its own (Lemon-cmd/energy-transformer-torch), or as it is (LumenPallidium's).
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
    own_auto_map = AUTO_MAP
    positive = (*EnergyBlockConfig.positive, "num_channels", "decoder_norm_eps")
    ranges: ClassVar = EnergyBlockConfig.ranges | {
        "mask_ratio": (lambda value: 0 < value < 1, "lie between 0 and 1, both excluded"),
        "mask_replace_probability": (lambda value: 0 <= value <= 1, "lie in [0, 1]"),
    }

    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int | list[int] | tuple[int, int] = 16
    num_channels: int = 3
    patch_embedding: Literal["linear", "mlp"] = "linear"
    mask_ratio: float | int = 100 / 196
    mask_replace_probability: float | int = 0.9
    mask_type: Literal["scatter", "block", "scatter_or_block"] = "scatter"
    norm_pix_loss: bool = False
    decoder_norm: Literal["energy_layer_norm", "layer_norm", "none"] = "energy_layer_norm"
    decoder_norm_eps: float | int = 1e-5
    classifier_head: Literal["linear", "mlp"] = "linear"
    classifier_pooling: Literal["cls", "mean"] | None = None

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
        self._check_block()
        self._check_sizes()
        refused = {
            "classifier_pooling='cls' needs use_cls_token=True, got use_cls_token=False": (
                self.classifier_pooling == "cls" and not self.use_cls_token
            ),
            "initialization='scaled' needs a hidden_size that 4 divides (two axes of sines and cosines), "
            f"got {self.hidden_size}": (self.initialization == "scaled" and self.hidden_size % 4),
        }
        self._refuse(refused)

    def _check_sizes(self):
        for name in ("image_size", "patch_size"):
            size = getattr(self, name)
            if not isinstance(size, int) and len(size) != 2:
                raise ValueError(f"{name} must be one number or (height, width), got {size}")
        sizes = (*self.image_height_width, *self.patch_height_width)
        if min(sizes) <= 0 or any(image % patch for image, patch in zip(sizes[:2], sizes[2:], strict=True)):
            raise ValueError(
                f"image_size must be a multiple of patch_size, got {self.image_size} and {self.patch_size}"
            )


__all__ = ["EnergyTransformerConfig"]
