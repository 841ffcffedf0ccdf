"""The notebooks run in a kernel of their own, and are stored with what they show."""

import runpy

import nbformat
import pytest
from documents import NOTEBOOKS, ROOT, name_of
from training_runs import ENVIRONMENT

EXECUTE = runpy.run_path(str(ROOT / "notebooks" / "execute.py"))["execute"]
LONG = {"your_own_energy"}  # trains two models, in 20 seconds of one core
CASES = [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in LONG)) for path in NOTEBOOKS]


def shown(notebook) -> list[list[set[str]]]:
    """The kinds of output of each cell."""
    cells = (cell for cell in notebook.cells if cell.cell_type == "code")
    return [[set(output.get("data", {output.get("name")})) for output in cell.outputs] for cell in cells]


@pytest.mark.parametrize("path", CASES)
def test_notebook_runs_and_shows_what_is_stored(beside_the_demo, monkeypatch, path):
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
    assert shown(EXECUTE(path, beside_the_demo)) == shown(nbformat.read(path, as_version=4))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_stored_notebook_is_whole_and_small(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 300_000
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output.output_type == "error" for output in outputs)
    assert "/home/" not in path.read_text() and "/tmp/" not in path.read_text()
