"""A plugin of pytest for the parts that are tests: their results as lines of JSON while they go on, on a device.

GPU_CHECK_ROWS names the file of the lines, GPU_CHECK_DEVICE where tensors are made by default, and GPU_CHECK_UNTIL the
time, in seconds of the clock, after which tests are skipped.
"""

import json
import os
import time

import pytest
import torch

ROWS = os.environ["GPU_CHECK_ROWS"]


def pytest_configure(config):
    torch.set_default_device(os.environ["GPU_CHECK_DEVICE"])


def pytest_runtest_setup(item):
    if time.time() > float(os.environ["GPU_CHECK_UNTIL"]):
        pytest.skip("out of time")


def pytest_runtest_logreport(report):
    if report.when != "call" and report.outcome == "passed":
        return
    line = {"test": report.nodeid, "outcome": report.outcome, "seconds": report.duration, "why": _why(report)}
    with open(ROWS, "a") as file:
        file.write(json.dumps({**line, **dict(report.user_properties)}) + "\n")


def _why(report) -> str:
    if report.outcome == "passed":
        return ""
    if isinstance(report.longrepr, tuple):  # of a test that was skipped: where, and why
        return report.longrepr[-1]
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash else str(report.longrepr))[:400]
