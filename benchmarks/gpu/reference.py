"""Part b: the tests against the numbers of the reference implementations, with tensors made on the device."""

import importlib.util
import sys

from .record import Run
from .tests_as_rows import ROOT, add_summary, run_tests


def run(run: Run) -> None:
    files = sorted(path.name for path in (ROOT / "tests").glob("test_reference_*.py"))
    files = ["test_reference_jax.py"] if run.quick else files
    if importlib.util.find_spec("msgpack") is None:
        run.note("the package msgpack is missing: tests of the flax checkpoint fail or are skipped")
    sys.stdout.flush()
    add_summary(run, run_tests(run, [f"tests/{name}" for name in files], run.device.type))
