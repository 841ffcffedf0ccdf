"""Some of the tests, run on the device, as rows."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

from .record import Row, Run

ROOT = Path(__file__).parent.parent.parent


def run_tests(run: Run, files: list[str], default_device: str, *options: str) -> list[Row]:
    """A line for each test of `files`, with the properties that it recorded.

    Raises:
        RuntimeError: when pytest itself fails.
    """
    rows, left = run.folder / f"tests_{run.part}.jsonl", run.deadline - time.monotonic()
    rows.unlink(missing_ok=True)
    workers = min(8, (os.cpu_count() or 1) // 2)
    if run.device.type == "cuda" and workers > 1 and importlib.util.find_spec("xdist"):
        options = *options, "-n", str(workers)  # most of the time goes to compiling
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "gpu.pytest_rows"]
    search = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    own = {
        "PYTHONPATH": search,
        "GPU_CHECK_ROWS": str(rows),
        "GPU_CHECK_DEVICE": default_device,
        "GPU_CHECK_UNTIL": str(time.time() + left),
    }
    done = subprocess.run([*command, *options, *files], cwd=ROOT, env={**os.environ, **own}, timeout=left + 60)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with {done.returncode}")
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    rows.unlink()
    return found


def add_summary(run: Run, lines: list[Row]) -> None:
    """How many of each test passed, and every one that failed."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for line in lines:
        counts[line["test"].partition("[")[0]][line["outcome"]] += 1
    for name, outcomes in counts.items():
        result = "failed" if outcomes["failed"] else "passed" if outcomes["passed"] else "skipped"
        run.add("tests", test=name, **{key: outcomes[key] for key in ("passed", "failed", "skipped")}, result=result)
    for line in lines:
        if line["outcome"] == "failed":
            run.add("failures", test=line["test"], why=line["why"])
    skipped = {line["why"] for line in lines if line["outcome"] == "skipped"}
    for why in sorted(skipped):
        run.note(f"skipped: {why}")
