"""Stand-in for the suite's test of the pipeline."""

import math
import unittest

from transformers import ImageClassificationPipeline

from .images import pipeline_inputs


class ImageClassificationPipelineTests(unittest.TestCase):
    def get_test_pipeline(self, model, tokenizer=None, dtype="float32", **processors):
        return ImageClassificationPipeline(model=model, dtype=dtype, top_k=2, **processors), pipeline_inputs()

    def run_pipeline_test(self, classifier, examples):
        labels = set(classifier.model.config.id2label.values())
        one = classifier(examples[0])
        several = classifier(examples, batch_size=2)
        self.assertEqual(len(several), len(examples))
        for answer in [one, *several]:
            self.assertEqual(len(answer), 2)
            self.assertTrue(all(guess["label"] in labels for guess in answer))
            self.assertGreaterEqual(answer[0]["score"], answer[1]["score"])
        everything = classifier(examples[0], top_k=len(labels))
        self.assertTrue(math.isclose(sum(guess["score"] for guess in everything), 1, abs_tol=5e-3))
        self.assertEqual(one[0]["label"], several[0][0]["label"])
