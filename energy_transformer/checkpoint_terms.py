"""The energy terms that a checkpoint brings of its own: none in the package.

Saving a model with such terms puts an import of each in its copy of this file, so that whoever loads the checkpoint
with `trust_remote_code=True` has them registered.
"""

import ast
import sys
from pathlib import Path

from transformers.utils import logging

logger = logging.get_logger(__name__)


def save_terms(terms: dict[str, type], folder: str | Path) -> None:
    """Put the files that define the terms, by their registered names, beside a saved model.

    In the copies, imports of `energy_transformer` become imports of the files beside them. A term whose file cannot
    travel, and what a file imports that has to be installed where the checkpoint is opened, is named in a warning.
    """
    own, imports = Path(__file__).read_text(), ""
    for kind, cls in terms.items():
        file = getattr(sys.modules.get(cls.__module__), "__file__", None)
        if cls.__module__ == "__main__" or file is None or "." in cls.__qualname__:
            logger.warning(
                f"the energy term {kind!r} is defined in {cls.__module__}, whose code cannot be saved beside the model "
                "as it is: define it at the top of a file of its own, or register it before the model is loaded"
            )
            continue
        name = f"term_{cls.__module__.rpartition('.')[2]}"
        Path(folder, f"{name}.py").write_text(_of_the_files_beside(Path(file).read_text(), kind))
        imports += f"from .{name} import {cls.__name__}\n"
    Path(folder, "checkpoint_terms.py").write_text(own.replace("\nlogger =", f"{imports}\nlogger =", 1))


def _of_the_files_beside(source: str, kind: str) -> str:
    """The source of a term with its imports of the package turned into those of the files beside it."""
    lines = source.splitlines()
    for node in reversed(ast.parse(source).body):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        module = node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name
        root = module.partition(".")[0]
        if isinstance(node, ast.ImportFrom) and root == "energy_transformer":
            package = sys.modules["energy_transformer"]
            files = {alias: getattr(getattr(package, alias.name, None), "__module__", module) for alias in node.names}
            lines[node.lineno - 1 : node.end_lineno] = [
                f"from .{module.rpartition('.')[2]} import {ast.unparse(alias)}" for alias, module in files.items()
            ]
        elif getattr(node, "level", 0) or root not in {*sys.stdlib_module_names, "torch", "transformers"}:
            logger.warning(
                f"the file of the energy term {kind!r} needs `{ast.unparse(node)}`, which has to be there as well "
                "wherever the checkpoint is opened with trust_remote_code=True"
            )
    return "\n".join(lines) + "\n"
