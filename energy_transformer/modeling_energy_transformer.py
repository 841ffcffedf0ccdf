"""PyTorch Energy Transformer models (Hoover et al. 2023, arXiv 2302.07253).

Shapes: B images, C channels, N tokens (CLS first where there is one), P patches, D token width, T steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .attention_backends import at_least_float32
from .configuration_energy_transformer import EnergyTransformerConfig
from .descent import descent_step, token_energies
from .energies import BaseModernHopfield, EnergyAttention, EnergyLayerNorm, LayerNorm, SoftmaxModernHopfield
from .masking import scatter_masks
from .patches import patchify, unpatchify


@dataclass
class EnergyTransformerModelOutput(ModelOutput):
    """
    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(B, N, D)`): norm(x_T), in the dtype of the model.
        hidden_states (`tuple` of `torch.FloatTensor` of shape `(B, N, D)`, *optional*):
            The states x_0 … x_T of the descent; with several blocks, those of all blocks one after the other.
        energies (`torch.FloatTensor` of shape `(B, T + 1)`, *optional*): energy of each image at each state.
        attentions (`tuple` of `torch.FloatTensor` of shape `(B, H, N, N)`, *optional*): for each step.
    """

    last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    energies: torch.FloatTensor | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class EnergyTransformerMaskedImageModelingOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `()`): mean squared error over the pixels of the masked patches.
        reconstruction (`torch.FloatTensor` of shape `(B, C, H, W)`):
            The decoded image, in the units of `pixel_values` (of the normalised patches with `norm_pix_loss`).
        mask (`torch.BoolTensor` of shape `(B, P)`): True for the patches in the loss.
        hidden_states, energies, attentions: see [`EnergyTransformerModelOutput`].
    """

    loss: torch.FloatTensor | None = None
    reconstruction: torch.FloatTensor | None = None
    mask: torch.BoolTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    energies: torch.FloatTensor | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


def sine_cosine_positions(grid: tuple[int, int], dim: int) -> torch.Tensor:
    """2-D sine-cosine codes of unit amplitude, shape (rows·columns, dim): half of the width for each axis.

    The wavelengths go geometrically from 4 patches to 4 times the longer side of the grid, so that every channel
    tells the places of this grid apart.
    """
    longest = max(grid)
    frequencies = 2 * torch.pi / torch.logspace(0, 1, dim // 4, base=longest, dtype=torch.float64).mul(4)
    axes = []
    for size in grid:
        angles = torch.arange(size, dtype=torch.float64)[:, None] * frequencies
        axes.append(torch.cat([angles.sin(), angles.cos()], dim=-1))
    rows = axes[0][:, None].expand(*grid, -1)
    columns = axes[1][None].expand(*grid, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1).float()


def _patch_map(config: EnergyTransformerConfig, in_dim: int, out_dim: int) -> nn.Module:
    """The encoder or decoder of the patches; the MLP is that of the seed's example."""
    if config.patch_embedding == "linear":
        return nn.Linear(in_dim, out_dim)
    dim = config.hidden_size
    return nn.Sequential(nn.Linear(in_dim, dim), nn.LayerNorm(dim), nn.ReLU(), nn.Linear(dim, out_dim))


def _patch_dim(config: EnergyTransformerConfig) -> int:
    height, width = config.patch_height_width
    return config.num_channels * height * width


class EnergyTransformerEmbeddings(nn.Module):
    """Pixels to tokens: patches, mask token, CLS token, positions. Positions are added to mask tokens too."""

    def __init__(self, config: EnergyTransformerConfig, use_mask_token: bool = False):
        super().__init__()
        self.config = config
        rows, columns = config.grid_size
        self.patch_embeddings = _patch_map(config, _patch_dim(config), config.hidden_size)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if use_mask_token else None
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if config.use_cls_token else None
        num_positions = rows * columns + config.use_cls_token
        self.position_embeddings = nn.Parameter(torch.zeros(1, num_positions, config.hidden_size))

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image of that size in pixels."""
        patch_height, patch_width = self.config.patch_height_width
        return height // patch_height, width // patch_width

    def interpolate_pos_encoding(self, grid: tuple[int, int]) -> torch.Tensor:
        """The positions resized to another grid, bicubic in two dimensions as in the reference; CLS is kept."""
        if grid == self.config.grid_size:
            return self.position_embeddings
        kept = int(self.config.use_cls_token)
        patches = self.position_embeddings[:, kept:].unflatten(1, self.config.grid_size).permute(0, 3, 1, 2)
        resized = F.interpolate(at_least_float32(patches), size=grid, mode="bicubic", align_corners=False)
        resized = resized.to(patches.dtype).flatten(2).transpose(1, 2)
        return torch.cat([self.position_embeddings[:, :kept], resized], dim=1)

    def check_pixel_values(self, pixel_values: torch.Tensor, interpolate: bool) -> None:
        """Raises ValueError unless `pixel_values` are (B, C, H, W) of a size that can be cut into patches."""
        channels, size = self.config.num_channels, self.config.image_height_width
        if pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
            raise ValueError(f"pixel_values must have shape (B, {channels}, H, W), got {tuple(pixel_values.shape)}")
        height, width = pixel_values.shape[2:]
        patch_height, patch_width = self.config.patch_height_width
        if height % patch_height or width % patch_width:
            raise ValueError(
                f"pixel_values of {height}x{width} pixels are not a multiple of the patch size "
                f"{patch_height}x{patch_width}"
            )
        if not interpolate and (height, width) != size:
            raise ValueError(
                f"pixel_values are {height}x{width} pixels, but the model was made for {size[0]}x{size[1]}; "
                "pass interpolate_pos_encoding=True to run it at another size"
            )

    def forward(
        self,
        pixel_values: torch.Tensor,
        corrupted: torch.BoolTensor | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> torch.Tensor:
        """`pixel_values` (B, C, H, W) to tokens (B, N, D); `corrupted` (B, P) become the mask token."""
        self.check_pixel_values(pixel_values, interpolate_pos_encoding)
        grid = self.grid_of(*pixel_values.shape[2:])
        patches = patchify(pixel_values, self.config.patch_height_width)
        dtype = self.position_embeddings.dtype
        tokens = self.patch_embeddings(patches.to(dtype))
        if corrupted is not None:
            if self.mask_token is None:
                raise ValueError("bool_masked_pos needs a model with a mask token: pass use_mask_token=True")
            tokens = torch.where(corrupted[..., None], self.mask_token.to(tokens.dtype), tokens)
        if self.cls_token is not None:
            cls_tokens = self.cls_token.expand(tokens.shape[0], -1, -1).to(tokens.dtype)
            tokens = torch.cat([cls_tokens, tokens], dim=1)
        return tokens + self.interpolate_pos_encoding(grid)


class EnergyTransformerLayer(GradientCheckpointingLayer):
    """One block: its energies and norm. A call is one descent step, so checkpointing is by step."""

    def __init__(self, config: EnergyTransformerConfig):
        super().__init__()
        dim = config.hidden_size
        self.step_size = config.step_size
        if config.norm_type == "energy_layer_norm":
            self.norm = EnergyLayerNorm(dim, config.layer_norm_eps, config.norm_regularization)
        else:
            self.norm = LayerNorm(dim, config.layer_norm_eps)
        self.attention = EnergyAttention(
            dim,
            config.num_attention_heads,
            config.attention_beta,
            head_dim=config.head_dim,
            use_bias=config.attention_bias,
            learnable_beta=config.learnable_beta,
            attend_to_self=config.attend_to_self,
        )
        hopfield = SoftmaxModernHopfield if config.hopfield_activation == "softmax" else BaseModernHopfield
        self.hopfield = hopfield(
            dim,
            config.intermediate_size,
            config.hopfield_bias,
            config.hopfield_beta,
            learnable_beta=config.learnable_beta,
        )

    def energies(self, x: torch.Tensor) -> torch.Tensor:
        """Energy of each image, (B,), of the states x (B, N, D)."""
        return token_energies(self.norm(x), self.attention, self.hopfield).sum(-1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return descent_step(x, self.norm, self.attention, self.hopfield, self.step_size)


class EnergyTransformerPreTrainedModel(PreTrainedModel):
    """Weight initialisation, loading and saving."""

    config: EnergyTransformerConfig
    config_class = EnergyTransformerConfig
    base_model_prefix = "energy_transformer"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = ["EnergyTransformerEmbeddings", "EnergyTransformerLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        config = self.config
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=module.in_features**-0.5)
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
            init.normal_(module.W, std=config.hopfield_initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)
            if isinstance(module.beta, nn.Parameter):
                init.constant_(module.beta, config.hopfield_beta or module.default_beta)
        elif isinstance(module, EnergyTransformerEmbeddings):
            self._init_embeddings(module)

    def _init_attention(self, attention: EnergyAttention) -> None:
        scaled = self.config.initialization == "scaled"
        std = self.config.hidden_size**-0.5 if scaled else self.config.initializer_range
        init.normal_(attention.Wq, std=std)
        if scaled:
            init.copy_(attention.Wk, attention.Wq)
        else:
            init.normal_(attention.Wk, std=std)
        for bias in (attention.bq, attention.bk):
            if bias is not None:
                init.zeros_(bias)
        if isinstance(attention.beta, nn.Parameter):
            init.constant_(attention.beta, self.config.attention_beta or attention.head_dim**-0.5)

    def _init_embeddings(self, embeddings: EnergyTransformerEmbeddings) -> None:
        config = self.config
        for token in (embeddings.cls_token, embeddings.mask_token):
            if token is not None:
                init.normal_(token, std=config.initializer_range)
        positions = embeddings.position_embeddings
        if config.initialization == "paper":
            init.normal_(positions, std=config.initializer_range)
        else:
            codes = sine_cosine_positions(config.grid_size, config.hidden_size)
            codes = F.pad(codes, (0, 0, int(config.use_cls_token), 0))
            init.copy_(positions, codes[None].to(positions))


class EnergyTransformerModel(EnergyTransformerPreTrainedModel):
    """The Energy Transformer without a head: pixels to normalised tokens.

    Args:
        config ([`EnergyTransformerConfig`]).
        use_mask_token (`bool`, *optional*, defaults to `False`): whether patches can be masked.
    """

    def __init__(self, config: EnergyTransformerConfig, use_mask_token: bool = False):
        super().__init__(config)
        self.embeddings = EnergyTransformerEmbeddings(config, use_mask_token)
        self.layers = nn.ModuleList([EnergyTransformerLayer(config) for _ in range(config.num_hidden_layers)])
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embeddings

    def _steps(self, num_steps: int | None) -> Iterator[EnergyTransformerLayer]:
        """The layer of each step, in order."""
        num_steps = self.config.num_steps if num_steps is None else num_steps
        if num_steps < 0:
            raise ValueError(f"num_steps must not be negative, got {num_steps}")
        for layer in self.layers:
            for _ in range(num_steps):
                yield layer

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        bool_masked_pos: torch.BoolTensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        output_energies: bool = False,
        num_steps: int | None = None,
        **kwargs,
    ) -> EnergyTransformerModelOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(B, C, H, W)`): normalised images.
            bool_masked_pos (`torch.BoolTensor` of shape `(B, P)`, *optional*): patches to replace by the mask token.
            interpolate_pos_encoding (`bool`): run at any size that the patch size divides.
            output_hidden_states, output_attentions, output_energies (`bool`): record the descent.
            num_steps (`int`, *optional*): steps of each block, in place of `config.num_steps`.
            return_dict (`bool`, *optional*): False for a plain tuple.

        Raises:
            ValueError: for pixels or masks of the wrong shape, and a size other than the config's without
                `interpolate_pos_encoding`.

        Example:

        ```python
        >>> import torch
        >>> from energy_transformer import EnergyTransformerConfig, EnergyTransformerModel

        >>> model = EnergyTransformerModel(EnergyTransformerConfig(image_size=32, patch_size=4))
        >>> outputs = model(torch.randn(2, 3, 32, 32), output_energies=True)
        >>> list(outputs.last_hidden_state.shape), list(outputs.energies.shape)
        ([2, 65, 768], [2, 13])
        ```
        """
        keep_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        keep_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        if bool_masked_pos is not None:
            bool_masked_pos = _check_mask("bool_masked_pos", bool_masked_pos, pixel_values, self.config)

        x = self.embeddings(pixel_values, bool_masked_pos, interpolate_pos_encoding)
        dtype = x.dtype
        x = at_least_float32(x)  # the sum of many small steps
        states, energies, attentions = [x], [], []
        layer = self.layers[0]
        for layer in self._steps(num_steps):
            if output_energies:
                energies.append(layer.energies(x))
            if keep_attentions:
                attentions.append(layer.attention.attention_weights(layer.norm(x)))
            x = layer(x)
            if keep_states:
                states.append(x)
        if output_energies:
            energies.append(layer.energies(x))
        return EnergyTransformerModelOutput(
            last_hidden_state=layer.norm(x).to(dtype),
            hidden_states=tuple(states) if keep_states else None,
            energies=torch.stack(energies, dim=-1) if output_energies else None,
            attentions=tuple(attentions) if keep_attentions else None,
        )


def _check_mask(name, mask, pixel_values, config: EnergyTransformerConfig) -> torch.BoolTensor:
    """`mask` as booleans, once it is seen to be a mask for these images."""
    patch_height, patch_width = config.patch_height_width
    num_patches = (pixel_values.shape[-2] // patch_height) * (pixel_values.shape[-1] // patch_width)
    if mask.shape != (pixel_values.shape[0], num_patches):
        raise ValueError(
            f"{name} must have shape (B, patches) = ({pixel_values.shape[0]}, {num_patches}), got {tuple(mask.shape)}"
        )
    return mask.bool()


class EnergyTransformerForMaskedImageModeling(EnergyTransformerPreTrainedModel):
    """The Energy Transformer with the paper's masked-autoencoder head: a decoder of each normalised token.

    Args:
        config ([`EnergyTransformerConfig`]).
    """

    def __init__(self, config: EnergyTransformerConfig):
        super().__init__(config)
        self.energy_transformer = EnergyTransformerModel(config, use_mask_token=True)
        self.decoder = _patch_map(config, config.hidden_size, _patch_dim(config))
        self.post_init()

    def decode(self, tokens: torch.Tensor, grid: tuple[int, int] | None = None) -> torch.Tensor:
        """Normalised tokens (B, N, D) to images (B, C, H, W) on a grid of patches (the config's when None)."""
        config = self.config
        patches = self.decoder(tokens[:, int(config.use_cls_token) :])
        return unpatchify(patches, config.patch_height_width, grid or config.grid_size, config.num_channels)

    def decode_states(self, hidden_states: tuple[torch.Tensor, ...], grid: tuple[int, int] | None = None):
        """The states x_0 … x_T of a descent to images (T + 1, B, C, H, W), each through its block's norm."""
        layers = self.energy_transformer.layers
        steps = max(1, (len(hidden_states) - 1) // len(layers))
        dtype = self.energy_transformer.embeddings.position_embeddings.dtype
        norms = [layers[min(max(t - 1, 0) // steps, len(layers) - 1)].norm for t in range(len(hidden_states))]
        images = [self.decode(norm(x).to(dtype), grid) for norm, x in zip(norms, hidden_states, strict=True)]
        return torch.stack(images)

    def _draw_masks(self, pixel_values, noise, generator):
        """Masks of `config.mask_ratio`; in evaluation without noise or generator always the same ones."""
        config = self.config
        grid = self.energy_transformer.embeddings.grid_of(*pixel_values.shape[2:])
        if noise is None:
            if generator is None and not self.training:
                generator = torch.Generator(pixel_values.device).manual_seed(0)
            shape = (pixel_values.shape[0], grid[0] * grid[1])
            noise = torch.rand(shape, generator=generator, device=pixel_values.device)
        return scatter_masks(noise, grid, config.mask_ratio, config.mask_replace_probability)

    def _loss(self, pixel_values, reconstruction, mask):
        patch_size = self.config.patch_height_width
        target = patchify(at_least_float32(pixel_values), patch_size)
        if self.config.norm_pix_loss:
            target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        error = (patchify(at_least_float32(reconstruction), patch_size) - target).square().mean(-1)
        return torch.where(mask, error, 0.0).sum() / mask.sum().clamp(min=1)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        bool_masked_pos: torch.BoolTensor | None = None,
        bool_corrupted_pos: torch.BoolTensor | None = None,
        noise: torch.FloatTensor | None = None,
        generator: torch.Generator | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        output_energies: bool = False,
        num_steps: int | None = None,
        **kwargs,
    ) -> EnergyTransformerMaskedImageModelingOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(B, C, H, W)`): normalised images.
            bool_masked_pos (`torch.BoolTensor` of shape `(B, P)`, *optional*):
                Patches in the loss, any number for each image. When None, masks are drawn from `noise` of shape
                (B, P) in [0, 1), from `generator`, or from torch's own generator; in evaluation mode without either,
                the same masks at every call.
            bool_corrupted_pos (`torch.BoolTensor` of shape `(B, P)`, *optional*):
                Patches replaced by the mask token; the same as `bool_masked_pos` when None.
            interpolate_pos_encoding, output_hidden_states, output_attentions, output_energies, num_steps,
                return_dict: see [`EnergyTransformerModel`].

        Example:

        ```python
        >>> import torch
        >>> from energy_transformer import EnergyTransformerConfig, EnergyTransformerForMaskedImageModeling

        >>> config = EnergyTransformerConfig(image_size=32, patch_size=4, hidden_size=64)
        >>> model = EnergyTransformerForMaskedImageModeling(config)
        >>> mask = torch.zeros(1, 64, dtype=torch.bool)
        >>> mask[:, 20:40] = True
        >>> outputs = model(torch.randn(1, 3, 32, 32), bool_masked_pos=mask)
        >>> list(outputs.reconstruction.shape)
        [1, 3, 32, 32]
        ```
        """
        embeddings = self.energy_transformer.embeddings
        embeddings.check_pixel_values(pixel_values, interpolate_pos_encoding)
        if bool_masked_pos is None:
            if bool_corrupted_pos is not None:
                raise ValueError("bool_corrupted_pos needs bool_masked_pos: the patches in the loss")
            bool_masked_pos, bool_corrupted_pos = self._draw_masks(pixel_values, noise, generator)
        bool_masked_pos = _check_mask("bool_masked_pos", bool_masked_pos, pixel_values, self.config)
        if bool_corrupted_pos is None:
            bool_corrupted_pos = bool_masked_pos
        bool_corrupted_pos = _check_mask("bool_corrupted_pos", bool_corrupted_pos, pixel_values, self.config)

        outputs = self.energy_transformer(
            pixel_values,
            bool_masked_pos=bool_corrupted_pos,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            output_energies=output_energies,
            num_steps=num_steps,
            return_dict=True,
        )
        grid = embeddings.grid_of(*pixel_values.shape[2:])
        reconstruction = self.decode(outputs.last_hidden_state, grid)
        return EnergyTransformerMaskedImageModelingOutput(
            loss=self._loss(pixel_values, reconstruction, bool_masked_pos),
            reconstruction=reconstruction,
            mask=bool_masked_pos,
            hidden_states=outputs.hidden_states,
            energies=outputs.energies,
            attentions=outputs.attentions,
        )


# so that `save_pretrained` puts the code beside the weights
EnergyTransformerConfig.register_for_auto_class()
EnergyTransformerModel.register_for_auto_class("AutoModel")
EnergyTransformerForMaskedImageModeling.register_for_auto_class("AutoModelForMaskedImageModeling")

__all__ = [
    "EnergyTransformerForMaskedImageModeling",
    "EnergyTransformerModel",
    "EnergyTransformerPreTrainedModel",
]
