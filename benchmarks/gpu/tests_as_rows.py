"""Some of the tests, run on the device, as rows."""

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

from .record import Row, Run

ROOT = Path(__file__).parent.parent.parent


def run_tests(run: Run, files: list[str], default_device: str, *selections: str) -> list[Row]:
    """A line for each test of `files`, with the properties that it recorded.

    Args:
        selections: expressions of `-k`, each for a process of its own, since most of the time goes to compiling.

    Raises:
        RuntimeError: when pytest itself fails.
    """
    found, left = [], run.deadline - time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "gpu.pytest_rows"]
    search = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    own = {"PYTHONPATH": search, "GPU_CHECK_DEVICE": default_device, "GPU_CHECK_UNTIL": str(time.time() + left)}
    processes = {}
    for number, selection in enumerate(selections or [""]):
        rows = run.folder / f"tests_{run.part}_{number}.jsonl"
        rows.unlink(missing_ok=True)
        environment = {**os.environ, **own, "GPU_CHECK_ROWS": str(rows)}
        processes[rows] = subprocess.Popen([*command, "-k", selection, *files], cwd=ROOT, env=environment)
    codes = [process.wait() for process in processes.values()]  # each skips what is left when the time is over
    for rows in processes:
        if rows.exists():
            found += [json.loads(line) for line in rows.read_text().splitlines()]
            rows.unlink()
    if not found:
        raise RuntimeError(f"pytest ended with {codes} and no result")
    if bad := [code for code in codes if code not in (0, 1, 5)]:  # 5: nothing was selected
        run.add("tests", test="pytest itself", result="failed", codes=bad)
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
