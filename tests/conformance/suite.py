"""transformers' common tests on our models. Not collected by `make test`; run by `make conformance` (see `run.py`)."""

import unittest
from typing import ClassVar

import torch
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, floats_tensor
from tests.test_pipeline_mixin import PipelineTesterMixin
from tests.test_training_mixin import TrainingTesterMixin
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from transformers.models.auto import modeling_auto
from transformers.utils import ModelOutput, output_capturing

from energy_transformer import (
    EnergyBlock,
    EnergyTransformerConfig,
    EnergyTransformerForImageClassification,
    EnergyTransformerForMaskedImageModeling,
    EnergyTransformerModel,
)

# the suite tells by these tables of names which inputs a model takes
for table, model_class in [
    (modeling_auto.MODEL_MAPPING_NAMES, EnergyTransformerModel),
    (modeling_auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES, EnergyTransformerForMaskedImageModeling),
    (modeling_auto.MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING_NAMES, EnergyTransformerForMaskedImageModeling),
    (modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, EnergyTransformerForImageClassification),
]:
    table["energy_transformer"] = model_class.__name__


class EnergyTransformerModelTester:
    """Small configs and inputs. What the suite counts as hidden layers are the descent steps."""

    batch_size = 3
    image_size = 8
    patch_size = 4
    num_channels = 3
    hidden_size = 32
    num_attention_heads = 4
    num_hidden_layers = 2
    num_labels = 10
    seq_length = 5
    is_training = True

    def __init__(self, parent, **options):
        self.parent = parent
        self.options = {"num_hidden_layers": 1, "num_steps": 2} | options
        self.seq_length = 4 + self.options.get("use_cls_token", True)

    def get_config(self):
        return EnergyTransformerConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            num_channels=self.num_channels,
            hidden_size=self.hidden_size,
            num_attention_heads=self.num_attention_heads,
            head_dim=6,
            intermediate_size=40,
            num_labels=self.num_labels,
            **self.options,
        )

    def prepare_config_and_inputs_for_common(self):
        pixel_values = floats_tensor([self.batch_size, self.num_channels, self.image_size, self.image_size])
        return self.get_config(), {"pixel_values": pixel_values}


def booleans_as_integers(module, args, output):
    """Forward hook of any module."""

    def convert(value):
        return value.byte() if isinstance(value, torch.Tensor) and value.dtype == torch.bool else value

    if isinstance(output, ModelOutput):
        return type(output)(**{name: convert(value) for name, value in output.items()})
    return tuple(map(convert, output)) if type(output) is tuple else convert(output)


class EnergyTransformerModelTest(ModelTesterMixin, unittest.TestCase):
    """The paper's form of the models."""

    all_model_classes = (
        EnergyTransformerModel,
        EnergyTransformerForMaskedImageModeling,
        EnergyTransformerForImageClassification,
    )
    test_resize_embeddings = False  # images have no vocabulary
    test_torch_exportable = True
    test_all_params_have_gradient = True
    test_can_init_all_missing_weights_before_2023 = True
    options: ClassVar = {}

    def setUp(self):
        self.model_tester = EnergyTransformerModelTester(self, **self.options)
        self.config_tester = ConfigTester(
            self,
            config_class=EnergyTransformerConfig,
            has_text_modality=False,
            num_attention_heads=self.model_tester.num_attention_heads,
            **self.options,
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    # Tests of the suite that are replaced, and why.

    def test_model_get_set_embeddings(self):
        """The suite wants a `torch.nn.Embedding`, which is for token ids; its image models replace the test too."""
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            self.assertIsInstance(model.get_input_embeddings(), nn.Module)
            replacement = nn.Linear(48, self.model_tester.hidden_size)
            model.set_input_embeddings(replacement)
            self.assertIs(model.get_input_embeddings(), replacement)
            self.assertIsNone(model.get_output_embeddings())

    def test_model_outputs_equivalence(self):
        """The suite's message subtracts outputs from each other, which torch refuses for the boolean `mask`."""
        hook = register_module_forward_hook(booleans_as_integers)
        try:
            super().test_model_outputs_equivalence()
        finally:
            hook.remove()

    test_inputs_embeds = None  # the suite's needs token ids, as the next one does in the suite

    @torch.no_grad()
    def test_inputs_embeds_matches_input_ids(self):
        """The suite embeds the ids of a text: here it is the pixels that are embedded."""
        model = EnergyTransformerModel(self.model_tester.get_config()).eval()
        _, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        found, expected = model(inputs_embeds=model.embeddings(**inputs)), model(**inputs)
        torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state)

    def test_gradient_checkpointing_enable_disable(self):
        """The suite wants a `GradientCheckpointingLayer`, which checkpoints a whole call: blocks do each step."""
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            blocks = [module for module in model.modules() if isinstance(module, EnergyBlock)]
            self.assertTrue(blocks)
            self.assertFalse(model.is_gradient_checkpointing)
            for switch, state in (
                (model.gradient_checkpointing_enable, True),
                (model.gradient_checkpointing_disable, False),
            ):
                switch()
                self.assertEqual(model.is_gradient_checkpointing, state)
                self.assertEqual({block.gradient_checkpointing for block in blocks}, {state})

    def check_training_gradient_checkpointing(self, gradient_checkpointing_kwargs=None):
        """The suite counts the runs of a layer that is checkpointed as a whole; here each step runs a second time."""
        for model_class in self.all_model_classes[1:]:
            config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
            inputs = self._prepare_for_class(inputs, model_class, return_labels=True)
            runs, gradients = [], []
            for enabled in (False, True):
                torch.manual_seed(0)
                model = model_class(config).train()
                if enabled:
                    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=gradient_checkpointing_kwargs)
                calls = []
                for block in model.base_model.layers:
                    block.norm.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
                model(**inputs).loss.backward()
                runs.append(len(calls))
                gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
            self.assertEqual(runs[1] - runs[0], sum(config.steps_of_blocks))
            self.assertFalse([name for name, gradient in gradients[0].items() if gradient is None])
            torch.testing.assert_close(gradients[1], gradients[0])

    def test_can_capture_specific_layers_hidden_states(self):
        if not hasattr(output_capturing, "selected_hidden_states"):
            self.skipTest("this version counts indices of hidden states without the first")
        super().test_can_capture_specific_layers_hidden_states()


class TwoBlocksTest(EnergyTransformerModelTest):
    """Two blocks of one step, and other values of the options that change the modules."""

    options: ClassVar = {
        "num_hidden_layers": 2,
        "num_steps": 1,
        "hopfield_activation": "softmax",
        "learnable_beta": True,
        "attention_bias": True,
        "hopfield_bias": True,
        "attend_to_self": False,
        "norm_type": "layer_norm",
        "use_cls_token": False,
        "patch_embedding": "mlp",
        "initialization": "scaled",
        "mask_type": "block",
        "norm_pix_loss": True,
        "decoder_norm": "layer_norm",
        "classifier_head": "mlp",
    }


class ConstantBetasTest(EnergyTransformerModelTest):
    """Constant betas of each head, which are buffers, and the values of the options that are left."""

    options: ClassVar = {
        "attention_beta": [0.2, 0.3, 0.4, 0.5],
        "attention_bias": "shared",
        "hopfield_bias": "before_beta",
        "norm_regularization": 1e-3,
        "decoder_norm": "none",
        "mask_type": "scatter_or_block",
        "classifier_pooling": "mean",
    }


class PipelineTest(PipelineTesterMixin, unittest.TestCase):
    pipeline_model_mapping: ClassVar = {
        "image-feature-extraction": EnergyTransformerModel,
        "image-classification": EnergyTransformerForImageClassification,
    }

    def test_pipeline_image_feature_extraction(self):
        """The suite skips it without timm, which neither the pipeline nor the model uses."""
        self.run_task_tests(task="image-feature-extraction")

    def test_pipeline_image_feature_extraction_fp16(self):
        self.run_task_tests(task="image-feature-extraction", dtype="float16")


class OverfitTester(EnergyTransformerModelTester):
    def get_config(self):
        config = super().get_config()
        config.vocab_size = None  # the mixin reads it
        return config


class OverfitTest(TrainingTesterMixin):
    """The mixin has one loop for all models but makes batches of text only; its hook for these returns images here."""

    model_tester = OverfitTester(None, initialization="scaled")

    def _get_model_modality(self):
        return "text"

    def _get_trainable_model_class(self):
        return self.model_class


class ImageClassificationOverfitTest(OverfitTest, unittest.TestCase):
    model_class = EnergyTransformerForImageClassification

    def _create_text_training_batch(self, batch_size, seq_length, vocab_size):
        return {"pixel_values": floats_tensor([batch_size, 3, 8, 8]), "labels": torch.arange(batch_size)}


class MaskedImageModelingOverfitTest(OverfitTest, unittest.TestCase):
    model_class = EnergyTransformerForMaskedImageModeling

    def _create_text_training_batch(self, batch_size, seq_length, vocab_size):
        masked = torch.tensor([[True, False, False, True]]).expand(batch_size, -1)
        return {"pixel_values": floats_tensor([batch_size, 3, 8, 8]), "bool_masked_pos": masked}
