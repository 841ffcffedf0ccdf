"""Run the notebooks and store what they show: `make notebooks`, or `python notebooks/execute.py NOTEBOOK ...`."""

import base64
import io
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

COLORS = 128
MAX_WIDTH = 1200  # pixels


def execute(path: Path, folder: Path) -> nbformat.NotebookNode:
    """The notebook with new outputs of a kernel of its own, which works in `folder`; what goes to stderr is left out.

    Raises:
        nbclient.exceptions.CellExecutionError: when a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of the run
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
            for output in cell.outputs:
                _shrink(output.get("data", {}))
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def _shrink(data: dict) -> None:
    """Make the picture of an output small in place: few colors, no wider than a screen, and in one format."""
    if "image/png" not in data:
        return
    data.pop("image/jpeg", None)
    picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB")
    if picture.width > MAX_WIDTH:
        picture = picture.resize(
            (MAX_WIDTH, round(picture.height * MAX_WIDTH / picture.width)), Image.Resampling.LANCZOS
        )
    written = io.BytesIO()
    picture.quantize(COLORS, dither=Image.Dither.NONE).save(written, format="PNG", optimize=True)
    data["image/png"] = base64.b64encode(written.getvalue()).decode()


if __name__ == "__main__":
    from tempfile import TemporaryDirectory

    for name in sys.argv[1:] or sorted(Path(__file__).parent.glob("*.ipynb")):
        with TemporaryDirectory() as folder:
            nbformat.write(execute(Path(name), Path(folder)), name)
        print(name)
