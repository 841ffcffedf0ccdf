"""An environment with transformers and torch and what they require, and nothing else; so without this package."""

import json
import os
import subprocess
from pathlib import Path

# run by the interpreter whose installed packages are taken
_LIST_REQUIRED = """
import importlib.metadata as metadata, json
from packaging.requirements import Requirement

wanted, found = ["torch", "transformers"], {}
while wanted:
    name = wanted.pop().lower().replace("_", "-")
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        continue  # a requirement of another platform
    if name in found:
        continue
    tops = {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}
    found[name] = sorted(str(distribution.locate_file(top)) for top in tops)
    requirements = [Requirement(text) for text in distribution.requires or ()]
    wanted += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
print(json.dumps(sorted({path for paths in found.values() for path in paths})))
"""


def build_minimal_environment(python: str, folder: Path) -> Path:
    """The interpreter of a new environment in `folder`, with links to what `python` has installed of it."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    listed = subprocess.run([python, "-c", _LIST_REQUIRED], env=clean, capture_output=True, text=True, check=True)
    subprocess.run([python, "-m", "venv", "--without-pip", str(folder)], env=clean, check=True)
    new = folder / "bin" / "python"
    (packages,) = folder.glob("lib/python*/site-packages")
    for path in map(Path, json.loads(listed.stdout)):
        (packages / path.name).symlink_to(path)
    return new
