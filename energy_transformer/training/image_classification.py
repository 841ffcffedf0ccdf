"""Image classification: fine-tuning of a pretrained model, a linear probe, or training from scratch."""

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import datasets
import torch
from accelerate.logging import get_logger
from accelerate.utils import broadcast, broadcast_object_list
from torch.nn import functional as F
from transformers.utils import ModelOutput

from ..configuration_energy_transformer import EnergyTransformerConfig
from ..data import denormalize, normalize
from ..data.labels import Labels, prepare_labels
from ..hub import load_pretrained
from ..inspection.classification_pictures import confusion_figure, predictions_figure
from ..inspection.pictures import even_sample
from ..metrics.confusion import Confusion
from ..modeling_energy_transformer import EnergyTransformerForImageClassification
from ..utils.errors import UserError
from .image_classification_arguments import ImageClassificationArguments
from .image_classification_evaluation import evaluate_classifier, pixel_probe_accuracy
from .image_training import ImageTraining
from .linear_probe import StandardizedLinear, feature_statistics, fold_weights, folded_model, standardize_head
from .loaders import Batch
from .mixing import UNIFORMS, Mixer
from .model_configuration import configure

logger = get_logger(__name__)
_HEAD = "classifier."


def load_with_new_head(
    name_or_path: str, config: EnergyTransformerConfig
) -> tuple[EnergyTransformerForImageClassification, list[str]]:
    """A classifier on the backbone of a checkpoint, and the names of the parameters that the checkpoint does not have.

    These are of the head alone, or none when the checkpoint is a classifier of as many labels.

    Raises:
        UserError: when the backbone lacks a parameter or one has another shape.
    """
    model, info = load_pretrained(
        EnergyTransformerForImageClassification,
        name_or_path,
        config=config,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    mismatched = [entry[0] for entry in info["mismatched_keys"]]
    new = sorted({*info["missing_keys"], *mismatched})
    foreign = [name for name in new if not name.startswith(_HEAD)]
    if foreign:
        reason = "another shape of" if foreign[0] in mismatched else "no"
        raise UserError(f"model_name_or_path {name_or_path} does not fit the model: it has {reason} {foreign[0]}")
    return model, new


class ImageClassificationTraining(ImageTraining):
    """One run of `scripts/train_image_classification.py`."""

    args: ImageClassificationArguments
    pictures: ClassVar[tuple[str, ...]] = ("confusion_matrix.png", "predictions.png")
    metric: ClassVar[str] = "eval_accuracy"
    minimize: ClassVar[bool] = False

    def build_config(self) -> EnergyTransformerConfig:
        args = self.args
        self.label_column_name = args.label_column_name
        self.confusion: Confusion | None = None  # of the last evaluation
        self.mixer = Mixer(args.mixup_alpha, args.cutmix_alpha) if args.mixup_alpha or args.cutmix_alpha else None
        self.batch_multiple = 2 if self.mixer else 1  # which mixes pairs
        return configure(args, label_smoothing=args.label_smoothing)

    def load_datasets(self) -> tuple[datasets.DatasetDict, str, Labels | None]:
        splits, image_column, _ = super().load_datasets()
        labels = prepare_labels(splits, self.args.label_column_name)
        self.names = labels.names
        counted = splits["validation" if self.args.streaming else "train"]  # a stream is not read through for it
        self.majority = int(labels.numbers(counted).bincount().argmax())
        self.config.id2label = dict(enumerate(self.names))
        self.config.label2id = {name: label for label, name in enumerate(self.names)}
        self.config.problem_type = "single_label_classification"
        return splits, image_column, labels

    def build_model(self) -> EnergyTransformerForImageClassification:
        source = self.args.model_name_or_path
        if not source:
            return EnergyTransformerForImageClassification(self.config)
        model, new = load_with_new_head(source, self.config)
        told = f"new, everything else is that of {source}" if new else f"that of {source}, as is everything else"
        if self.accelerator.is_main_process:
            print(f"the head ({len(self.names)} labels) is {told}", flush=True)
        if self.args.freeze_backbone:
            self._prepare_probe(model)
        return model

    def _prepare_probe(self, model: EnergyTransformerForImageClassification) -> None:
        """Freeze the backbone and standardize its features, as the main process finds them."""
        model.energy_transformer.requires_grad_(False)
        width = model.config.hidden_size
        statistics = (torch.zeros(width), torch.ones(width))
        if self.accelerator.is_main_process:
            images = self.train_loader.images
            statistics = feature_statistics(model, images, self.processor, self.accelerator.device)
        shared = broadcast(torch.stack(statistics).to(self.accelerator.device)).cpu()
        standardize_head(model, *shared)

    def _whole_model(self) -> EnergyTransformerForImageClassification:
        """A linear probe becomes an ordinary classifier."""
        model: Any = super()._whole_model()
        return folded_model(model) if isinstance(model.classifier[1], StandardizedLinear) else model

    def whole_weights(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return fold_weights(weights)

    def draw(self, num_samples: int, generator: torch.Generator) -> Batch:
        draws = super().draw(num_samples, generator)
        if self.mixer:
            draws["mix"] = torch.rand(num_samples, UNIFORMS, generator=generator, device=generator.device)
        return draws

    def forward(self, batch: Batch, draws: Batch, **options) -> ModelOutput:
        pixel_values, targets = normalize(batch["image"], self.processor), batch["label"]
        if self.mixer:
            pixel_values, targets = self.mixer(pixel_values, targets, len(self.names), draws["mix"])
        outputs = self.model(pixel_values, **options)
        smoothing = self.config.label_smoothing
        outputs.loss = F.cross_entropy(outputs.logits.float(), targets, label_smoothing=smoothing)
        return outputs

    def evaluate(self) -> dict[str, float]:
        results, self.confusion = evaluate_classifier(
            self.accelerator, self.model, self.eval_loader, self.processor, self.names
        )
        majority = self.confusion.images(len(self.names))[self.majority]
        results["eval_majority_accuracy"] = float(majority / results["eval_samples"])
        if not self.args.streaming:  # a stream has no selection of images to fit the probe to
            results["eval_pixel_probe_accuracy"] = self._pixel_probe_accuracy
        return results

    @cached_property
    def _pixel_probe_accuracy(self) -> float:
        """Of the main process, while the others wait for it."""
        found: list[float | None] = [None]
        if self.accelerator.is_main_process:
            workers = self.args.dataloader_num_workers
            found = [pixel_probe_accuracy(self.train_loader.images, self.eval_images, len(self.names), workers)]
        return broadcast_object_list(found)[0]

    def describe(self, results: dict[str, float]) -> str:
        return f"held-out accuracy {results['eval_accuracy']:.3f}"

    @torch.no_grad()
    def save_pictures(self, model: EnergyTransformerForImageClassification, folder: Path) -> None:
        if self.confusion is not None:
            confusion_figure(self.confusion, self.names).save(folder / "confusion_matrix.png")
        rows = even_sample(len(self.eval_images), self.args.num_visual_samples, self.args.seed)
        batch = self.eval_images.__getitems__(rows)
        pixel_values = normalize(batch["image"].to(model.device), self.processor)
        model.eval()
        predicted = model(pixel_values).logits.argmax(-1).tolist()
        figure = predictions_figure(
            denormalize(pixel_values, self.processor),
            [self.names[label] for label in predicted],
            [self.names[label] for label in batch["label"].tolist()],
        )
        figure.save(folder / "predictions.png")
