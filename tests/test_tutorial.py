"""The tutorial says of its descent what is true of it."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial.py"


@pytest.mark.slow
def test_tutorial(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(TUTORIAL), str(tmp_path)])
    names = runpy.run_path(str(TUTORIAL))
    trace = {name: torch.tensor(values) for name, values in names["trace"].items()}
    assert names["gradient_error"] < 1e-12
    assert len(names["energies"]) == 151 and (names["energies"].diff() < 0).all()
    assert trace["hopfield"][-1] > trace["hopfield"].min() and (trace["attention"].diff() < 0).all()
    assert trace["moved"][-1] < 0.05 * trace["moved"][0]
    assert (trace["length"].diff() > 0).all() and trace["length"][-1] > 50 * trace["length"][0]
    assert trace["along"][-1] > 0.95 and trace["along"][0] < 0.8
    for picture in ("tutorial_energy.png", "tutorial_tokens.png"):
        assert (tmp_path / picture).stat().st_size > 5000
