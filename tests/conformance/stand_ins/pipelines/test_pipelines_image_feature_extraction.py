"""Stand-in for the suite's test of the pipeline."""

import unittest

import torch
from transformers import ImageFeatureExtractionPipeline

from .images import pipeline_inputs


class ImageFeatureExtractionPipelineTests(unittest.TestCase):
    def get_test_pipeline(self, model, tokenizer=None, dtype="float32", **processors):
        return ImageFeatureExtractionPipeline(model=model, dtype=dtype, **processors), pipeline_inputs()

    def run_pipeline_test(self, extractor, examples):
        outputs = extractor(examples)
        self.assertEqual(len(outputs), len(examples))
        features = extractor(examples[0], return_tensors=True)
        self.assertEqual(features.shape[-1], extractor.model.config.hidden_size)
        torch.testing.assert_close(torch.tensor(outputs[0]), features.float())
