"""Part a: `tests/test_kernels.py` on the device, and the errors that it recorded."""

import importlib.util
import os

from .record import Run
from .tests_as_rows import add_summary, run_tests

SELECTIONS = ["torch.bfloat16", "torch.float16", "torch.float32", "not torch."]


def run(run: Run) -> None:
    if importlib.util.find_spec("triton") is None:
        run.note("the package triton is missing: nothing to prove")
        return
    if run.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        run.note("on a CPU the kernels run in Triton's interpreter alone: set TRITON_INTERPRET=1")
    selections = ["length or stride or refused"] if run.quick else SELECTIONS
    lines = run_tests(run, ["tests/test_kernels.py"], "cpu", *selections)  # the tests place their tensors themselves
    add_summary(run, lines)
    for line in lines:
        if "value_error" in line:
            kept = (
                "test",
                "outcome",
                "seconds",
                "value_error",
                "gradient_error",
                "eager_value_error",
                "eager_gradient_error",
            )
            run.add("errors relative to float64", **{key: line[key] for key in kept})
