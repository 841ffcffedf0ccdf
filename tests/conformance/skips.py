"""Why tests of the suite are skipped: the only place that lists it. A skip for any other reason fails the run.

Loaded by pytest as a plugin. The keys are regular expressions of the suite's own words.
"""

import re
from collections import Counter

REASONS = {
    # no code of ours could change these
    r"requires (an? )?(multiple )?accelerators?|requires MPS|test is slow": "needs a GPU (all slow tests do)",
    r"requires (Flash Attention|the kernels library)": "needs a GPU and kernels for ordinary attention",
    r"requires deepspeed": "needs deepspeed and a GPU",
    r"is not in `self.pipeline_model_mapping`|requires (Timm|PyTesseract|av)$": "a pipeline of another task",
    r"`run_pipeline_test` is currently not implemented": "the suite leaves its test of this pipeline out",
    r"counts indices of hidden states without the first": "an older transformers: indices meant something else",
    r"Not a prioritized model": "an older transformers: asks for a copyright in line 1",
    # these follow from what the models are
    r"RoPE|sliding window|sparse experts|output_router_logits|grouped_mm": "a mechanism of other architectures",
    r"language modeling head|use `inputs_embeds`|test_resize_embeddings is set|not take a cache": "for models of text",
    r"not (a )?composite|No subconfigs": "for models made of several models",
    r"does not have position embeddings": "resizes positions along one axis: ours are interpolated in two at each call",
    r"support (SDPA|sdpa)": "SDPA returns A v; the energy attention needs A k and Aᵀ q",
    r"No conversion found": "no checkpoint names of older versions to translate",
    r"does not have a TP plan": "no tensor parallel plan is offered",
    r"(has no|No) `?_keep_in_fp32_modules": "float32 is kept in the computation, whatever the weights are",
    r"No model with a differentiable loss was available": "the test finds no `weight` in an embedding that is an MLP",
}


class Skips:
    def __init__(self):
        self.known = Counter()
        self.unknown = Counter()

    def pytest_runtest_logreport(self, report):
        if not report.skipped or not isinstance(report.longrepr, tuple):
            return
        words = report.longrepr[2].removeprefix("Skipped: ")
        why = next((why for pattern, why in REASONS.items() if re.search(pattern, words)), None)
        if why is None:
            self.unknown[f"{report.nodeid}: {words}"] += 1
        else:
            self.known[why] += 1

    def pytest_sessionfinish(self, session):
        if self.unknown and not session.exitstatus:
            session.exitstatus = 1

    def pytest_terminal_summary(self, terminalreporter):
        terminalreporter.section("skipped, and why")
        for why, count in self.known.most_common():
            terminalreporter.line(f"{count:4} {why}")
        for words in self.unknown:
            terminalreporter.line(f"not expected: {words}", red=True)


def pytest_configure(config):
    config.pluginmanager.register(Skips())
