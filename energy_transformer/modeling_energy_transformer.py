"""PyTorch Energy Transformer models (Hoover et al. 2023, arXiv 2302.07253).

Shapes: B images, C channels, N tokens (CLS first where there is one), P patches, D token width, T steps.
"""

import difflib
import inspect
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.utils.generic import can_return_tuple

from .attention_backends import at_least_float32
from .configuration_energy_transformer import EnergyTransformerConfig
from .context import EnergyContext
from .embeddings import EnergyTransformerEmbeddings, patch_dim, patch_map, sine_cosine_positions
from .masking import content_keys, draw_masks, fixed_noise, split_mask_values, whole_number_mask
from .outputs import (
    EnergyParts,
    EnergyTransformerImageClassifierOutput,
    EnergyTransformerMaskedImageModelingOutput,
    EnergyTransformerModelOutput,
)
from .patches import patch_mean_and_std, patchify, unpatchify
from .pretrained import (
    EnergyPreTrainedModel,
    EnergyTransformerLayer,
    check_labels,
    energies_along,
    kept_states,
    states_along,
)


class EnergyTransformerPreTrainedModel(EnergyPreTrainedModel):
    """Weight initialization, loading and saving."""

    config: EnergyTransformerConfig
    config_class = EnergyTransformerConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _input_embed_layer = "patch_embeddings"
    _can_record_outputs: ClassVar = {"hidden_states": EnergyTransformerLayer, "attentions": EnergyTransformerLayer}
    _no_split_modules: ClassVar = ["EnergyTransformerEmbeddings", "EnergyTransformerLayer"]

    def energy(self, pixel_values: Tensor, bool_masked_pos: Tensor | None = None, **options) -> Tensor:
        """Energy of each image, (B,), at the end x_T of its descent.

        Arguments as for [`EnergyTransformerModel.forward`]; `num_steps=0` gives the energy at the start.
        """
        options |= {"bool_masked_pos": bool_masked_pos, "output_energies": True, "return_dict": True}
        return self.base_model(pixel_values, **options).energies[:, -1]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, EnergyTransformerEmbeddings):
            self._init_embeddings(module)

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
    """The Energy Transformer without a head: pixels to normalized tokens.

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
        self.layers = nn.ModuleList(EnergyTransformerLayer(config, steps) for steps in config.steps_of_blocks)
        self.post_init()

    def _embed(self, pixel_values, bool_masked_pos, interpolate_pos_encoding, inputs_embeds) -> Tensor:
        """x_0."""
        if (pixel_values is None) == (inputs_embeds is None):
            raise ValueError("exactly one of pixel_values and inputs_embeds must be given")
        if inputs_embeds is not None:
            if bool_masked_pos is not None:
                raise ValueError("bool_masked_pos needs pixel_values: inputs_embeds are taken as they are")
            if inputs_embeds.ndim != 3 or inputs_embeds.shape[-1] != self.config.hidden_size:
                shape = tuple(inputs_embeds.shape)
                raise ValueError(f"inputs_embeds must have shape (B, N, {self.config.hidden_size}), got {shape}")
            return inputs_embeds
        self.embeddings.check_pixel_values(pixel_values, interpolate_pos_encoding)
        if bool_masked_pos is not None:
            bool_masked_pos = self.embeddings.patch_mask("bool_masked_pos", bool_masked_pos, pixel_values)
            _, bool_masked_pos = split_mask_values(bool_masked_pos)
        return self.embeddings(pixel_values, bool_masked_pos, interpolate_pos_encoding)

    def _keeps_attentions(self, wanted: bool | None) -> bool:
        wanted = self.config.output_attentions if wanted is None else wanted
        if wanted and self.config._attn_implementation not in ("auto", "eager"):
            raise ValueError(
                "output_attentions needs attn_implementation='eager' (or 'auto'), got "
                f"{self.config._attn_implementation!r}, which never holds the attentions"
            )
        return bool(wanted)

    def _pool(self, state: Tensor, tokens: torch.BoolTensor | None, first: int) -> Tensor:
        """(B, N, D) to (B, D): the CLS token, or the mean of the tokens from `first` on that are no padding."""
        if self.pooling == "cls":
            return state[:, 0]
        if tokens is None:
            return state[:, first:].mean(1)
        real = tokens[:, first:, None]
        return state[:, first:].masked_fill(~real, 0.0).sum(1) / real.sum(1).clamp(min=1)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        bool_masked_pos: torch.BoolTensor | None = None,
        attention_mask: torch.BoolTensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | int | list[int] | None = None,
        output_attentions: bool | None = None,
        output_energies: bool = False,
        output_energy_parts: bool = False,
        num_steps: int | None = None,
        tolerance: float | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        attention_bias: torch.FloatTensor | None = None,
        generator: torch.Generator | None = None,
        term_data: dict[str, Any] | None = None,
        **kwargs,
    ) -> EnergyTransformerModelOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(B, C, H, W)`): normalized images.
            bool_masked_pos (`torch.BoolTensor` of shape `(B, P)`, *optional*):
                Patches to replace by the mask token; of integers, those that are 1. Also a grid of patches,
                (B, rows, columns), or a mask of the pixels, (B, H, W), as a tensor, array or list: a patch is hidden
                as a whole where any of its pixels is.
            attention_mask (`torch.BoolTensor` of shape `(B, N)` or `(B, N, N)`, *optional*):
                N counts the CLS token, which comes first. (B, N): False for padding, which no token attends to,
                which has no energy and does not move. (B, N, N): True where the token of the row may attend to the
                token of the column; a row without any True only descends on the other terms. Also integers 0 and 1.
            interpolate_pos_encoding (`bool`): run at any size that the patch size divides.
            output_hidden_states (`bool`, `int` or `list[int]`, *optional*):
                Record the states x_0 … x_T, or only those of the given indices, with None for the others.
            output_attentions, output_energies, output_energy_parts (`bool`, *optional*): Record the descent.
                The attentions need `attn_implementation` `"eager"`, or `"auto"`, which is eager then.
            num_steps (`int`, *optional*): steps of each block, in place of `config.num_steps`.
            tolerance (`float`, *optional*):
                Stop the steps of an image when one changes its normalized tokens by at most this share of their
                length; it is then left out of the computation, and `num_steps_taken` says when. Without gradients,
                and for the last state alone.
            inputs_embeds (`torch.FloatTensor` of shape `(B, N, D)`, *optional*):
                Tokens in place of the pixels: x_0 as it is, with no CLS token and no position added. Where the CLS
                token is pooled, `pooler_output` is the first of them.
            attention_bias (`torch.FloatTensor` of shape `(B, H or 1, N, N)`, *optional*):
                Added to the scores of the attention, outside of its beta.
            generator (`torch.Generator`, *optional*): of the noise that `config.temperature` asks for.
            term_data (`dict`, *optional*): what terms of one's own need, `context.data` of their potentials.
            return_dict (`bool`, *optional*): False for a plain tuple.

        Raises:
            ValueError: for pixels, tokens or masks of the wrong shape, dtype or value, a size other than the config's
                without `interpolate_pos_encoding`, indices of states that there are not, attentions from a backend
                that has none, and a `tolerance` that is negative, or together with gradients or a record.
            TypeError: for an unknown keyword.

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
        _refuse_unknown(kwargs)
        steps = self.steps_of_layers(num_steps)
        keep_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        keep_attentions = self._keeps_attentions(output_attentions)
        keep_energies = bool(output_energies or output_energy_parts)
        kept = kept_states(keep_states, sum(steps) + 1)
        embedded = self._embed(pixel_values, bool_masked_pos, interpolate_pos_encoding, inputs_embeds)
        tokens, pairs = _split_attention_mask(attention_mask, embedded)
        bias = None if attention_bias is None else attention_bias.to(embedded.device)
        backend = self.config._attn_implementation
        context = EnergyContext(tokens, pairs, bias, backend=backend, generator=generator, data=term_data or {})
        descents = self._descend(embedded, steps, context, kept, keep_energies, keep_attentions, tolerance)
        state = descents[-1].state
        last_hidden_state = (descents[-1].normalized if self.final_norm else state).to(embedded.dtype)
        first = 0 if pixel_values is None else int(self.config.use_cls_token)
        energies = energies_along(descents) if keep_energies else {}
        by_token = sum(energies.values()) if energies else None
        return EnergyTransformerModelOutput(
            last_hidden_state=last_hidden_state,
            pooler_output=self._pool(last_hidden_state, tokens, first),
            hidden_states=states_along(descents) if kept else None,
            energies=by_token.sum(-1) if output_energies else None,
            attentions=sum((found.attentions for found in descents), ()) if keep_attentions else None,
            energy_parts=_energy_parts(energies, by_token) if output_energy_parts else None,
            num_steps_taken=None if tolerance is None else sum(found.num_steps_taken for found in descents),
        )


def _refuse_unknown(kwargs: dict) -> None:
    """Raises TypeError for a keyword that neither `forward` nor transformers knows."""
    unknown = [name for name in kwargs if name not in ("num_items_in_batch", "return_loss")]
    if unknown:
        known = {*inspect.signature(EnergyTransformerModel.forward).parameters, *_ARGUMENTS_OF_HEADS} - {
            "self",
            "kwargs",
        }
        near = difflib.get_close_matches(unknown[0], sorted(known - {unknown[0]}), n=1)
        hint = " (another head has it)" if unknown[0] in known else f"; did you mean {near[0]!r}?" if near else ""
        raise TypeError(f"forward() has no argument {unknown[0]!r}{hint}")


def _energy_parts(energies: dict[str, Tensor], by_token: Tensor) -> EnergyParts:
    by_term = {name: energy.sum(-1) for name, energy in energies.items()}
    known = {name: by_term.pop(name, None) for name in ("attention", "hopfield")}
    return EnergyParts(**known, others=by_term or None, tokens=by_token)


def _split_attention_mask(attention_mask, x) -> tuple[Tensor | None, Tensor | None]:
    """The mask of the tokens (B, N) or that of the pairs (B, N, N), whichever it is."""
    if attention_mask is None:
        return None, None
    attention_mask = whole_number_mask("attention_mask", attention_mask, 1)
    batch, tokens, _ = x.shape
    if attention_mask.shape == (batch, tokens):
        return attention_mask.to(x.device, torch.bool), None
    if attention_mask.shape == (batch, tokens, tokens):
        return None, attention_mask.to(x.device, torch.bool)
    raise ValueError(
        f"attention_mask must have shape (B, N) = {(batch, tokens)} or (B, N, N), with the CLS token in N where there "
        f"is one, got {tuple(attention_mask.shape)}"
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

    def decode(self, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """`last_hidden_state` (B, N, D) to images (B, C, H, W) on a grid of patches (the config's when None)."""
        config = self.config
        if self.decoder_norm is not None:
            tokens = self.decoder_norm(tokens)
        patches = self.decoder(tokens[:, int(config.use_cls_token) :])
        return unpatchify(patches, config.patch_height_width, grid or config.grid_size, config.num_channels)

    def decode_states(
        self, hidden_states: tuple[Tensor, ...], grid: tuple[int, int] | None = None, num_steps: int | None = None
    ) -> Tensor:
        """The states x_0 … x_T of a descent to images (T + 1, B, C, H, W), as if the descent ended there.

        States that are None, because `output_hidden_states` did not ask for them, are left out. With several blocks,
        `num_steps` is that of the descent, when one was given to it.
        """
        base, count = self.energy_transformer, len(hidden_states) - 1
        dtype = base.embeddings.position_embeddings.dtype
        if base.final_norm:  # through the norm of the block whose step led there
            steps = base.steps_of_layers(num_steps)
            steps = steps if sum(steps) == count else [count // len(steps)] * len(steps)
            layers = [layer for layer, number in zip(base.layers, steps, strict=True) for _ in range(number)]
            layers = [base.layers[0], *layers]
            hidden_states = [
                x if x is None else layer(x, 0).normalized for layer, x in zip(layers, hidden_states, strict=True)
            ]
        return torch.stack([self.decode(x.to(dtype), grid) for x in hidden_states if x is not None])

    def _draw_masks(self, pixel_values, noise, generator, image_index):
        """Masks of `config.mask_ratio`; in evaluation without noise or generator those of the image."""
        config = self.config
        grid = self.energy_transformer.embeddings.grid_of(*pixel_values.shape[2:])
        shape, device = (pixel_values.shape[0], grid[0] * grid[1]), pixel_values.device
        if noise is None and (image_index is not None or (generator is None and not self.training)):
            keys = content_keys(pixel_values) if image_index is None else torch.as_tensor(image_index, device=device)
            if keys.shape != shape[:1] or keys.is_floating_point() or keys.dtype == torch.bool:
                raise ValueError(f"image_index must be {shape[0]} integers, got {tuple(keys.shape)} of {keys.dtype}")
            noise = fixed_noise(keys.long(), shape[1])
        elif noise is None:
            noise = torch.rand(shape, generator=generator, device=device if generator is None else generator.device)
        noise = noise.to(device)
        return draw_masks(config.mask_type, noise, grid, config.mask_ratio, config.mask_replace_probability)

    def _resolve_masks(self, pixel_values, bool_masked_pos, bool_corrupted_pos, noise, generator, image_index=None):
        """The patches in the loss and those to replace, both (B, P): as given, or drawn when there are none."""
        if bool_masked_pos is None:
            if bool_corrupted_pos is not None:
                raise ValueError("bool_corrupted_pos needs bool_masked_pos: the patches in the loss")
            return self._draw_masks(pixel_values, noise, generator, image_index)
        patch_mask = self.energy_transformer.embeddings.patch_mask
        masked, corrupted = split_mask_values(patch_mask("bool_masked_pos", bool_masked_pos, pixel_values))
        if bool_corrupted_pos is not None:
            corrupted = patch_mask("bool_corrupted_pos", bool_corrupted_pos, pixel_values).bool()
        return masked, corrupted

    def energy(
        self,
        pixel_values,
        bool_masked_pos=None,
        bool_corrupted_pos=None,
        noise=None,
        generator=None,
        image_index=None,
        **options,
    ) -> Tensor:
        """Energy of each image, (B,), at the end x_T of its descent.

        Masks as for [`forward`], but no patch is masked when none of these arguments is given: the energy is then that
        of the whole image. The others are those of [`EnergyTransformerModel.forward`].
        """
        given = (bool_masked_pos, bool_corrupted_pos, noise, generator, image_index)
        if any(argument is not None for argument in given):
            _, bool_corrupted_pos = self._resolve_masks(pixel_values, *given)
        return super().energy(pixel_values, bool_corrupted_pos, generator=generator, **options)

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
        image_index: torch.LongTensor | None = None,
        **kwargs,
    ) -> EnergyTransformerMaskedImageModelingOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(B, C, H, W)`): normalized images.
            bool_masked_pos (`torch.BoolTensor` of shape `(B, P)`, *optional*):
                Patches in the loss, any number for each image, in any form that [`EnergyTransformerModel`] takes.
                Integers are taken as in the paper's code: 0 seen, 1 replaced and in the loss, 2 seen but in the loss.
                When None, masks are drawn from `noise` of shape (B, P) in [0, 1), from `generator` (which then also
                draws the noise of `config.temperature`), or from torch's own generator.
            bool_corrupted_pos (`torch.BoolTensor` of shape `(B, P)`, *optional*):
                Patches replaced by the mask token; by `bool_masked_pos` when None.
            image_index (`torch.LongTensor` of shape `(B,)`, *optional*):
                The place of each image in its dataset, of which its mask is then a function. In evaluation mode,
                when neither it nor noise nor a generator is given, the mask is a function of the pixels: the same at
                every call and in every batch.
            attention_mask, interpolate_pos_encoding, and in **kwargs output_hidden_states, output_attentions,
                output_energies, output_energy_parts, num_steps, tolerance, attention_bias, term_data, return_dict:
                see [`EnergyTransformerModel`].

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
            pixel_values, bool_masked_pos, bool_corrupted_pos, noise, generator, image_index
        )
        outputs = self.energy_transformer(
            pixel_values,
            bool_masked_pos=bool_corrupted_pos,
            attention_mask=attention_mask,
            interpolate_pos_encoding=interpolate_pos_encoding,
            generator=generator,
            return_dict=True,
            **kwargs,
        )
        grid = embeddings.grid_of(*pixel_values.shape[2:])
        reconstruction = self.decode(outputs.last_hidden_state, grid)
        return EnergyTransformerMaskedImageModelingOutput(
            loss=self._loss(pixel_values, reconstruction, bool_masked_pos),
            reconstruction=reconstruction,
            mask=bool_masked_pos,
            **_records(outputs),
        )


def _records(outputs: EnergyTransformerModelOutput) -> dict:
    """What the outputs of the heads hold of the descent."""
    names = "hidden_states", "energies", "attentions", "energy_parts", "num_steps_taken"
    return {name: getattr(outputs, name) for name in names}


_ARGUMENTS_OF_HEADS = ("labels", "bool_corrupted_pos", "noise", "image_index")


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
        pixel_values: torch.FloatTensor | None = None,
        labels: Tensor | None = None,
        attention_mask: torch.BoolTensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs,
    ) -> EnergyTransformerImageClassifierOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(B, C, H, W)`): normalized images.
            labels (`torch.Tensor` of shape `(B,)` or `(B, num_labels)`, *optional*):
                Integers in [0, num_labels) for a cross entropy, numbers for a regression (`num_labels` 1, mean
                squared error), (B, num_labels) zeros and ones as floats for several labels of an image.
            attention_mask, interpolate_pos_encoding, and in **kwargs output_hidden_states, output_attentions,
                output_energies, output_energy_parts, num_steps, tolerance, inputs_embeds, attention_bias, generator,
                term_data, return_dict: see [`EnergyTransformerModel`].

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
        check_labels(labels, self.config)
        outputs = self.energy_transformer(
            pixel_values,
            attention_mask=attention_mask,
            interpolate_pos_encoding=interpolate_pos_encoding,
            return_dict=True,
            **kwargs,
        )
        logits = self.classifier(outputs.pooler_output)
        return EnergyTransformerImageClassifierOutput(
            loss=None if labels is None else self._loss(labels, logits, kwargs.get("num_items_in_batch")),
            logits=logits,
            **_records(outputs),
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
