"""Every snippet of docs/ecosystem.md runs as it stands there."""

import importlib.util

import pytest
from documents import ROOT, blocks

PAGE = ROOT / "docs" / "ecosystem.md"
SNIPPETS = blocks(PAGE, "python")
NAMES = "head offload sizes masks norm_pix masked_images_trainer classification_trainer lora pipeline compile onnx int8"
MARKS = {
    "compile": pytest.mark.slow,
    "int8": pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="`make test-slow` brings torchao"),
}
CASES = [
    pytest.param(snippet, id=name, marks=MARKS.get(name, ()))
    for name, snippet in zip(NAMES.split(), SNIPPETS, strict=True)
]


@pytest.mark.parametrize("snippet", CASES)
def test_snippet(beside_the_demo, snippet):
    """`zip(strict=True)` above fails where a snippet is added or lost without a name."""
    exec(compile(snippet, str(PAGE), "exec"), {"__name__": "snippet"})
