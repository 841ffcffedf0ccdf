"""PyTorch Energy Transformer models (Hoover et al. 2023, arXiv 2302.07253).

Shapes: B images, C channels, N tokens (CLS first where there is one), P patches, D token width, T steps.
"""

from collections.abc import Iterator
from numbers import Integral, Real
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from .attention_backends import at_least_float32, check_attention_backend
from .configuration_energy_transformer import EnergyTransformerConfig
from .descent import descend_until_settled, descent_step, energy_gradient, energy_parts
from .embeddings import EnergyTransformerEmbeddings, patch_dim, patch_map, sine_cosine_positions
from .energies import BaseModernHopfield, EnergyAttention, EnergyLayerNorm, LayerNorm, SoftmaxModernHopfield
from .masking import draw_masks, fixed_noise, split_mask_values
from .outputs import (
    EnergyParts,
    EnergyTransformerImageClassifierOutput,
    EnergyTransformerMaskedImageModelingOutput,
    EnergyTransformerModelOutput,
)
from .patches import patch_mean_and_std, patchify, unpatchify


class EnergyTransformerLayer(GradientCheckpointingLayer):
    """One block: its energies and norm. A call is one descent step, so checkpointing is by step."""

    def __init__(self, config: EnergyTransformerConfig):
        super().__init__()
        dim = config.hidden_size
        self.config = config
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
            beta=config.hopfield_beta,
            bias=config.hopfield_bias,
            learnable_beta=config.learnable_beta,
        )

    def energy_parts(self, x, mask=None, tokens=None) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention and Hopfield energy of each token, both (B, N), of the states x (B, N, D)."""
        implementation = self.config._attn_implementation
        return energy_parts(self.norm(x), self.attention, self.hopfield, mask, tokens, implementation)

    def forward(self, x, mask=None, tokens=None, output_attentions=False):
        """The next states, and with `output_attentions` also the attention weights (B, H, N, N) that led to them."""
        block = self.attention, self.hopfield
        if not output_attentions:
            implementation = self.config._attn_implementation
            return descent_step(x, self.norm, *block, self.step_size, mask, tokens, implementation)
        g = self.norm(x)
        weights = self.attention(g, mask, tokens, method="attention_weights")
        return x - self.step_size * energy_gradient(g, *block, mask, tokens, weights), weights


class EnergyTransformerPreTrainedModel(PreTrainedModel):
    """Weight initialisation, loading and saving."""

    config: EnergyTransformerConfig
    config_class = EnergyTransformerConfig
    base_model_prefix = "energy_transformer"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _input_embed_layer = "patch_embeddings"
    _can_record_outputs: ClassVar = {"hidden_states": EnergyTransformerLayer, "attentions": EnergyTransformerLayer}
    _no_split_modules: ClassVar = ["EnergyTransformerEmbeddings", "EnergyTransformerLayer"]

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """One of `ATTENTION_BACKENDS`, `"auto"` when None; ValueError for any other, or one that cannot run here."""
        implementation = "auto" if requested_attention is None else requested_attention
        check_attention_backend(implementation)
        return implementation

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *args, **kwargs) -> str:
        """Without transformers' replacements of one attention by another, or by a kernel of the Hub: none computes
        the energy's gradient."""
        return self.get_correct_attn_implementation(attn_implementation)

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
            if isinstance(module.beta, torch.Tensor):
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
        if isinstance(attention.beta, torch.Tensor):
            beta = self.config.attention_beta or attention.head_dim**-0.5
            beta = torch.as_tensor(beta, dtype=torch.float64).to(attention.beta)
            init.copy_(attention.beta, beta.expand_as(attention.beta))

    def energy(
        self,
        pixel_values: torch.FloatTensor,
        bool_masked_pos: torch.BoolTensor | None = None,
        *,
        attention_mask: torch.BoolTensor | None = None,
        interpolate_pos_encoding: bool = False,
        num_steps: int | None = None,
    ) -> torch.FloatTensor:
        """Energy of each image, (B,), at the end x_T of its descent.

        Arguments as for [`EnergyTransformerModel.forward`]; `num_steps=0` gives the energy at the start.
        """
        outputs = self.base_model(
            pixel_values,
            bool_masked_pos=bool_masked_pos,
            attention_mask=attention_mask,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_energies=True,
            num_steps=num_steps,
            return_dict=True,
        )
        return outputs.energies[:, -1]

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
        final_norm (`bool`, *optional*, defaults to `True`):
            False lets `last_hidden_state` be x_T itself, for heads that have a norm of their own.
    """

    def __init__(self, config: EnergyTransformerConfig, use_mask_token: bool = False, final_norm: bool = True):
        super().__init__(config)
        self.final_norm = final_norm
        self.pooling = config.classifier_pooling or ("cls" if config.use_cls_token else "mean")
        self.embeddings = EnergyTransformerEmbeddings(config, use_mask_token)
        self.layers = nn.ModuleList([EnergyTransformerLayer(config) for _ in range(config.num_hidden_layers)])
        self.post_init()

    def _steps(self, num_steps: int | None) -> Iterator[EnergyTransformerLayer]:
        """The layer of each step, in order."""
        num_steps = self.config.num_steps if num_steps is None else num_steps
        if not isinstance(num_steps, Integral) or num_steps < 0:
            raise ValueError(f"num_steps must be a whole number of at least 0, got {num_steps!r}")
        for layer in self.layers:
            for _ in range(num_steps):
                yield layer

    def _pool(self, state: torch.Tensor, attention_mask: torch.BoolTensor | None) -> torch.Tensor:
        """(B, N, D) to (B, D): the CLS token, or the mean of the patches that are no padding."""
        if self.pooling == "cls":
            return state[:, 0]
        first = int(self.config.use_cls_token)
        if attention_mask is None or attention_mask.ndim == 3:
            return state[:, first:].mean(1)
        real = attention_mask[:, first:, None].bool().to(state.device)
        return state[:, first:].masked_fill(~real, 0.0).sum(1) / real.sum(1).clamp(min=1)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        bool_masked_pos: torch.BoolTensor | None = None,
        attention_mask: torch.BoolTensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | int | list[int] | None = None,
        output_attentions: bool | None = None,
        output_energies: bool = False,
        output_energy_parts: bool = False,
        num_steps: int | None = None,
        tolerance: float | None = None,
        **kwargs,
    ) -> EnergyTransformerModelOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(B, C, H, W)`): normalised images.
            bool_masked_pos (`torch.BoolTensor` of shape `(B, P)`, *optional*):
                Patches to replace by the mask token; of integers, those that are 1.
            attention_mask (`torch.BoolTensor` of shape `(B, N)` or `(B, N, N)`, *optional*):
                N counts the CLS token, which comes first. (B, N): False for padding, which no token attends to,
                which has no energy and does not move. (B, N, N): True where the token of the row may attend to the
                token of the column; a row without any True only descends on the Hopfield energy.
            interpolate_pos_encoding (`bool`): run at any size that the patch size divides.
            output_hidden_states (`bool`, `int` or `list[int]`, *optional*):
                Record the states x_0 … x_T, or only those of the given indices, with None for the others.
            output_attentions, output_energies, output_energy_parts (`bool`, *optional*): Record the descent.
                The attentions need `attn_implementation` `"eager"`, or `"auto"`, which is eager then.
            num_steps (`int`, *optional*): steps of each block, in place of `config.num_steps`.
            tolerance (`float`, *optional*):
                Stop the steps of an image when one changes its normalised tokens by at most this share of their
                length; it is then left out of the computation, and `num_steps_taken` says when. Without gradients,
                and for the last state alone.
            return_dict (`bool`, *optional*): False for a plain tuple.

        Raises:
            ValueError: for pixels or masks of the wrong shape, a size other than the config's without
                `interpolate_pos_encoding`, indices of states that there are not, attentions from a backend that has
                none, and a `tolerance` that is negative, or together with gradients or a record of the descent.

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
        steps = list(self._steps(num_steps))
        keep_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        kept = _kept_states(keep_states, len(steps) + 1)
        keep_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        keep_energies = output_energies or output_energy_parts
        if keep_attentions and self.config._attn_implementation not in ("auto", "eager"):
            raise ValueError(
                "output_attentions needs attn_implementation='eager' (or 'auto'), got "
                f"{self.config._attn_implementation!r}, which never holds the attentions"
            )
        if tolerance is not None:
            _check_tolerance(tolerance, bool(kept or keep_attentions or keep_energies))
        if bool_masked_pos is not None:
            _, bool_masked_pos = split_mask_values(bool_masked_pos)
            _check_mask("bool_masked_pos", bool_masked_pos, pixel_values, self.config)

        x = self.embeddings(pixel_values, bool_masked_pos, interpolate_pos_encoding)
        mask, tokens = _split_attention_mask(attention_mask, x)
        dtype = x.dtype
        x = at_least_float32(x)  # the sum of many small steps
        states, parts, attentions = [x if 0 in kept else None], [], []
        layer, taken = self.layers[0], None
        if tolerance is not None:
            taken = torch.zeros(len(x), dtype=torch.long, device=x.device)
            for layer in self.layers:
                x, more = descend_until_settled(
                    x, layer, layer.norm, len(steps) // len(self.layers), tolerance, mask, tokens
                )
                taken += more
            steps = []
        for step, layer in enumerate(steps, start=1):
            if keep_energies:
                parts.append(layer.energy_parts(x, mask, tokens))
            if keep_attentions:
                x, weights = layer(x, mask, tokens, output_attentions=True)
                attentions.append(weights)
            else:
                x = layer(x, mask, tokens)
            states.append(x if step in kept else None)
        if keep_energies:
            parts.append(layer.energy_parts(x, mask, tokens))
            attention, hopfield = (torch.stack(part, dim=1) for part in zip(*parts, strict=True))
            by_token = attention + hopfield
        last_hidden_state = (layer.norm(x) if self.final_norm else x).to(dtype)
        return EnergyTransformerModelOutput(
            last_hidden_state=last_hidden_state,
            pooler_output=self._pool(last_hidden_state, attention_mask),
            hidden_states=tuple(states) if kept else None,
            energies=by_token.sum(-1) if output_energies else None,
            attentions=tuple(attentions) if keep_attentions else None,
            energy_parts=EnergyParts(attention.sum(-1), hopfield.sum(-1), by_token) if output_energy_parts else None,
            num_steps_taken=taken,
        )


def _check_tolerance(tolerance: float, recorded: bool) -> None:
    if not isinstance(tolerance, Real) or not tolerance >= 0:
        raise ValueError(f"tolerance must be a number of at least 0, got {tolerance!r}")
    if torch.is_grad_enabled():
        raise ValueError("tolerance needs torch.no_grad(): the number of steps would depend on the weights")
    if recorded:
        raise ValueError(
            "tolerance cannot be combined with output_hidden_states, output_attentions, output_energies or "
            "output_energy_parts: the images take different numbers of steps"
        )


def _kept_states(wanted: bool | int | list[int], count: int) -> set[int]:
    """Indices of the states to record, of `count`; negative ones are counted from the end."""
    if isinstance(wanted, bool):
        return set(range(count)) if wanted else set()
    indices = [wanted] if isinstance(wanted, int) else wanted
    if any(not -count <= index < count for index in indices):
        raise ValueError(f"output_hidden_states must be true, false or indices of the {count} states, got {wanted}")
    return {index % count for index in indices}


def _split_attention_mask(attention_mask, x) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The mask of the pairs (B, N, N) or that of the tokens (B, N), whichever it is."""
    if attention_mask is None:
        return None, None
    if attention_mask.is_floating_point():
        raise ValueError(f"attention_mask must hold booleans or integers, True to attend, got {attention_mask.dtype}")
    batch, tokens, _ = x.shape
    if attention_mask.shape == (batch, tokens):
        real = attention_mask.to(x.device, torch.bool)
        return None, real
    if attention_mask.shape == (batch, tokens, tokens):
        return attention_mask.to(x.device, torch.bool), None
    raise ValueError(
        f"attention_mask must have shape (B, N) = {(batch, tokens)} or (B, N, N), with the CLS token in N where there "
        f"is one, got {tuple(attention_mask.shape)}"
    )


def _check_mask(name, mask, pixel_values, config: EnergyTransformerConfig) -> None:
    patch_height, patch_width = config.patch_height_width
    num_patches = (pixel_values.shape[-2] // patch_height) * (pixel_values.shape[-1] // patch_width)
    if mask.shape != (pixel_values.shape[0], num_patches):
        raise ValueError(
            f"{name} must have shape (B, patches) = ({pixel_values.shape[0]}, {num_patches}), got {tuple(mask.shape)}"
        )


class EnergyTransformerForMaskedImageModeling(EnergyTransformerPreTrainedModel):
    """The Energy Transformer with the paper's masked-autoencoder head: a decoder of each token.

    Args:
        config ([`EnergyTransformerConfig`]).
    """

    # its loss is a mean over each batch: `Trainer` divides it by the number of accumulated batches
    accepts_loss_kwargs = False

    def __init__(self, config: EnergyTransformerConfig):
        super().__init__(config)
        final_norm = config.decoder_norm == "energy_layer_norm"
        self.energy_transformer = EnergyTransformerModel(config, use_mask_token=True, final_norm=final_norm)
        norm_of_its_own = config.decoder_norm == "layer_norm"
        self.decoder_norm = nn.LayerNorm(config.hidden_size, config.decoder_norm_eps) if norm_of_its_own else None
        self.decoder = patch_map(config, config.hidden_size, patch_dim(config))
        self.post_init()

    def decode(self, tokens: torch.Tensor, grid: tuple[int, int] | None = None) -> torch.Tensor:
        """`last_hidden_state` (B, N, D) to images (B, C, H, W) on a grid of patches (the config's when None)."""
        config = self.config
        if self.decoder_norm is not None:
            tokens = self.decoder_norm(tokens)
        patches = self.decoder(tokens[:, int(config.use_cls_token) :])
        return unpatchify(patches, config.patch_height_width, grid or config.grid_size, config.num_channels)

    def decode_states(self, hidden_states: tuple[torch.Tensor, ...], grid: tuple[int, int] | None = None):
        """The states x_0 … x_T of a descent to images (T + 1, B, C, H, W), as if the descent ended there.

        States that are None, because `output_hidden_states` did not ask for them, are left out.
        """
        layers = self.energy_transformer.layers
        steps = max(1, (len(hidden_states) - 1) // len(layers))
        dtype = self.energy_transformer.embeddings.position_embeddings.dtype
        if not self.energy_transformer.final_norm:
            return torch.stack([self.decode(x.to(dtype), grid) for x in hidden_states if x is not None])
        norms = [layers[min(max(t - 1, 0) // steps, len(layers) - 1)].norm for t in range(len(hidden_states))]
        recorded = [(norm, x) for norm, x in zip(norms, hidden_states, strict=True) if x is not None]
        return torch.stack([self.decode(norm(x).to(dtype), grid) for norm, x in recorded])

    def _draw_masks(self, pixel_values, noise, generator):
        """Masks of `config.mask_ratio`; in evaluation without noise or generator always the same ones."""
        config = self.config
        grid = self.energy_transformer.embeddings.grid_of(*pixel_values.shape[2:])
        shape, device = (pixel_values.shape[0], grid[0] * grid[1]), pixel_values.device
        if noise is None and generator is None and not self.training:
            noise = fixed_noise(*shape, device=device)
        elif noise is None:
            noise = torch.rand(shape, generator=generator, device=device)
        return draw_masks(config.mask_type, noise, grid, config.mask_ratio, config.mask_replace_probability)

    def _resolve_masks(self, pixel_values, bool_masked_pos, bool_corrupted_pos, noise, generator):
        """The patches in the loss and those to replace, both (B, P): as given, or drawn when there are none."""
        if bool_masked_pos is None:
            if bool_corrupted_pos is not None:
                raise ValueError("bool_corrupted_pos needs bool_masked_pos: the patches in the loss")
            bool_masked_pos, bool_corrupted_pos = self._draw_masks(pixel_values, noise, generator)
        bool_masked_pos, replaced = split_mask_values(bool_masked_pos)
        bool_corrupted_pos = replaced if bool_corrupted_pos is None else bool_corrupted_pos.bool()
        _check_mask("bool_masked_pos", bool_masked_pos, pixel_values, self.config)
        _check_mask("bool_corrupted_pos", bool_corrupted_pos, pixel_values, self.config)
        return bool_masked_pos, bool_corrupted_pos

    def energy(
        self,
        pixel_values: torch.FloatTensor,
        bool_masked_pos: torch.BoolTensor | None = None,
        bool_corrupted_pos: torch.BoolTensor | None = None,
        noise: torch.FloatTensor | None = None,
        generator: torch.Generator | None = None,
        *,
        attention_mask: torch.BoolTensor | None = None,
        interpolate_pos_encoding: bool = False,
        num_steps: int | None = None,
    ) -> torch.FloatTensor:
        """Energy of each image, (B,), at the end x_T of its descent.

        Masks as for [`forward`], but no patch is masked when none of the four arguments is given: the energy is then
        that of the whole image. The others are those of [`EnergyTransformerModel.energy`].
        """
        given = (bool_masked_pos, bool_corrupted_pos, noise, generator)
        if any(argument is not None for argument in given):
            _, bool_corrupted_pos = self._resolve_masks(pixel_values, *given)
        return super().energy(
            pixel_values,
            bool_corrupted_pos,
            attention_mask=attention_mask,
            interpolate_pos_encoding=interpolate_pos_encoding,
            num_steps=num_steps,
        )

    def _loss(self, pixel_values, reconstruction, mask):
        patch_size = self.config.patch_height_width
        target = patchify(at_least_float32(pixel_values), patch_size)
        if self.config.norm_pix_loss:
            mean, std = patch_mean_and_std(target)
            target = (target - mean) / std
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
        attention_mask: torch.BoolTensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | int | list[int] | None = None,
        output_attentions: bool | None = None,
        output_energies: bool = False,
        output_energy_parts: bool = False,
        num_steps: int | None = None,
        tolerance: float | None = None,
        **kwargs,
    ) -> EnergyTransformerMaskedImageModelingOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(B, C, H, W)`): normalised images.
            bool_masked_pos (`torch.BoolTensor` of shape `(B, P)`, *optional*):
                Patches in the loss, any number for each image. Integers are taken as in the paper's code: 0 seen,
                1 replaced and in the loss, 2 or more seen but in the loss. When None, masks are drawn from `noise`
                of shape (B, P) in [0, 1), from `generator`, or from torch's own generator; in evaluation mode without
                either, the same masks at every call.
            bool_corrupted_pos (`torch.BoolTensor` of shape `(B, P)`, *optional*):
                Patches replaced by the mask token; by `bool_masked_pos` when None.
            attention_mask, interpolate_pos_encoding, output_hidden_states, output_attentions, output_energies,
                output_energy_parts, num_steps, tolerance, return_dict: see [`EnergyTransformerModel`].

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
        bool_masked_pos, bool_corrupted_pos = self._resolve_masks(
            pixel_values, bool_masked_pos, bool_corrupted_pos, noise, generator
        )
        outputs = self.energy_transformer(
            pixel_values,
            bool_masked_pos=bool_corrupted_pos,
            attention_mask=attention_mask,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            output_energies=output_energies,
            output_energy_parts=output_energy_parts,
            num_steps=num_steps,
            tolerance=tolerance,
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
            energy_parts=outputs.energy_parts,
            num_steps_taken=outputs.num_steps_taken,
        )


def _classifier(config: EnergyTransformerConfig) -> nn.Sequential:
    """Both start with the flax code's layer norm, whose ε is 1e-6."""
    layers = [nn.LayerNorm(config.hidden_size, 1e-6), nn.Linear(config.hidden_size, config.num_labels)]
    if config.classifier_head == "mlp":
        layers += [nn.ReLU(), nn.Linear(config.num_labels, config.num_labels)]
    return nn.Sequential(*layers)


class EnergyTransformerForImageClassification(EnergyTransformerPreTrainedModel):
    """The Energy Transformer with a classifier that reads the final state x_T, before the energy layer norm.

    Args:
        config ([`EnergyTransformerConfig`]): see `classifier_head`, `classifier_pooling`, `label_smoothing`,
            `num_labels` and `problem_type`.
    """

    def __init__(self, config: EnergyTransformerConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.energy_transformer = EnergyTransformerModel(config, final_norm=False)
        self.classifier = _classifier(config)
        self.post_init()

    def _loss(self, labels, logits, num_items_in_batch=None):
        """`num_items_in_batch`, which `Trainer` passes, counts the images of all steps that it accumulates."""
        logits = at_least_float32(logits)
        if not self.config.label_smoothing:
            return self.loss_function(labels, logits, self.config, num_items_in_batch=num_items_in_batch)
        if self.num_labels == 1 or labels.is_floating_point():
            raise ValueError(f"label_smoothing needs one integer label of several for each image, got {labels.dtype}")
        labels = labels.to(logits.device).view(-1)
        reduction = "mean" if num_items_in_batch is None else "sum"
        loss = F.cross_entropy(logits, labels, reduction=reduction, label_smoothing=self.config.label_smoothing)
        return loss if num_items_in_batch is None else loss / num_items_in_batch

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        labels: torch.Tensor | None = None,
        attention_mask: torch.BoolTensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | int | list[int] | None = None,
        output_attentions: bool | None = None,
        output_energies: bool = False,
        output_energy_parts: bool = False,
        num_steps: int | None = None,
        tolerance: float | None = None,
        **kwargs,
    ) -> EnergyTransformerImageClassifierOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(B, C, H, W)`): normalised images.
            labels (`torch.Tensor` of shape `(B,)` or `(B, num_labels)`, *optional*):
                Integers in [0, num_labels) for a cross entropy, numbers for a regression (`num_labels` 1, mean
                squared error), (B, num_labels) zeros and ones as floats for several labels of an image.
            attention_mask, interpolate_pos_encoding, output_hidden_states, output_attentions, output_energies,
                output_energy_parts, num_steps, tolerance, return_dict: see [`EnergyTransformerModel`].

        Example:

        ```python
        >>> import torch
        >>> from energy_transformer import EnergyTransformerConfig, EnergyTransformerForImageClassification

        >>> config = EnergyTransformerConfig(image_size=32, patch_size=4, hidden_size=64, num_labels=10)
        >>> model = EnergyTransformerForImageClassification(config)
        >>> outputs = model(torch.randn(2, 3, 32, 32), labels=torch.tensor([3, 7]))
        >>> list(outputs.logits.shape)
        [2, 10]
        ```
        """
        outputs = self.energy_transformer(
            pixel_values,
            attention_mask=attention_mask,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            output_energies=output_energies,
            output_energy_parts=output_energy_parts,
            num_steps=num_steps,
            tolerance=tolerance,
            return_dict=True,
        )
        logits = self.classifier(outputs.pooler_output)
        return EnergyTransformerImageClassifierOutput(
            loss=None if labels is None else self._loss(labels, logits, kwargs.get("num_items_in_batch")),
            logits=logits,
            hidden_states=outputs.hidden_states,
            energies=outputs.energies,
            attentions=outputs.attentions,
            energy_parts=outputs.energy_parts,
            num_steps_taken=outputs.num_steps_taken,
        )


# so that `save_pretrained` puts the code beside the weights
EnergyTransformerConfig.register_for_auto_class()
EnergyTransformerModel.register_for_auto_class("AutoModel")
EnergyTransformerForMaskedImageModeling.register_for_auto_class("AutoModelForMaskedImageModeling")
EnergyTransformerForImageClassification.register_for_auto_class("AutoModelForImageClassification")

__all__ = [
    "EnergyTransformerForImageClassification",
    "EnergyTransformerForMaskedImageModeling",
    "EnergyTransformerModel",
    "EnergyTransformerPreTrainedModel",
]
