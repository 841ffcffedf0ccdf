"""Masked-image training: which patches are hidden, the loss on them, and what is measured and drawn at the end."""

from pathlib import Path
from typing import ClassVar

import torch

from ..configuration_energy_transformer import EnergyTransformerConfig
from ..data import normalize
from ..hub import load_pretrained
from ..masking import draw_masks, noise_units
from ..modeling_energy_transformer import EnergyTransformerForMaskedImageModeling
from ..utils.errors import UserError
from .image_training import ImageTraining
from .loaders import Batch
from .masked_image_modeling_arguments import MaskedImageModelingArguments
from .masked_image_modeling_evaluation import evaluate, save_pictures
from .model_configuration import configure


def build_config(args: MaskedImageModelingArguments) -> EnergyTransformerConfig:
    """The model's configuration: that of `model_name_or_path` or the default one, with the overrides.

    Raises:
        UserError: for an unknown field or an impossible combination.
    """
    return configure(args, mask_ratio=args.mask_ratio, mask_replace_probability=args.mask_replace_probability)


class MaskedImageModelingTraining(ImageTraining):
    """One run of `scripts/train_masked_image_modeling.py`."""

    args: MaskedImageModelingArguments
    pictures: ClassVar[tuple[str, ...]] = ("reconstructions.png", "descent.png", "energy.png", "token_energies.png")
    metric: ClassVar[str] = "eval_masked_mse"

    def build_config(self) -> EnergyTransformerConfig:
        config = build_config(self.args)
        try:
            self.units = noise_units(config.grid_size, config.patch_height_width, self.args.mask_patch_size)
        except ValueError as error:
            raise UserError(str(error)) from error
        return config

    def build_model(self) -> EnergyTransformerForMaskedImageModeling:
        if not self.args.model_name_or_path:
            return EnergyTransformerForMaskedImageModeling(self.config)
        return load_pretrained(
            EnergyTransformerForMaskedImageModeling, self.args.model_name_or_path, config=self.config
        )

    def draw(self, num_samples: int, generator: torch.Generator) -> Batch:
        draws, config = super().draw(num_samples, generator), self.config
        noise = torch.rand(num_samples, self.units, generator=generator, device=generator.device)
        masked, corrupted = draw_masks(
            config.mask_type, noise, config.grid_size, config.mask_ratio, config.mask_replace_probability
        )
        return {**draws, "masked": masked, "corrupted": corrupted}

    def loss_weights(self, draws: Batch) -> torch.Tensor:
        return draws["masked"].sum(-1).float()

    def forward(self, batch: Batch, draws: Batch, **options):
        pixel_values = normalize(batch["image"], self.processor)
        return self.model(
            pixel_values, bool_masked_pos=draws["masked"], bool_corrupted_pos=draws["corrupted"], **options
        )

    def evaluate(self) -> dict[str, float]:
        return evaluate(self.accelerator, self.model, self.eval_loader, self.processor, self.units, self.args.seed)

    def describe(self, results: dict[str, float]) -> str:
        return f"held-out error {results['eval_ratio_to_mean_color']:.3f} of the mean color's"

    def save_pictures(self, model: EnergyTransformerForMaskedImageModeling, folder: Path) -> None:
        save_pictures(model, self.eval_images, self.processor, self.units, self.args, folder)
