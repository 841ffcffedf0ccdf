"""transformers' own common tests on our models."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_common_suite_passes():
    run = Path(__file__).parent / "conformance" / "run.py"
    result = subprocess.run([sys.executable, str(run)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
