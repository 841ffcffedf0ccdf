"""The energy terms that a checkpoint brings of its own: none in the package.

Saving a model with such terms puts an import of each in its copy of this file, so that whoever loads the checkpoint
with `trust_remote_code=True` has them registered.
"""

import re
import sys
from pathlib import Path

from transformers.utils import logging

logger = logging.get_logger(__name__)


def save_terms(terms: dict[str, type], folder: str | Path) -> None:
    """Put the files that define the terms, by their registered names, beside a saved model.

    In the copies, imports of `energy_transformer` become imports of the files beside them. A term whose file cannot
    travel, since it is defined in a program or a notebook, is named in a warning.
    """
    own, imports = Path(__file__).read_text(), ""
    for kind, cls in terms.items():
        file = getattr(sys.modules.get(cls.__module__), "__file__", None)
        if cls.__module__ == "__main__" or file is None:
            logger.warning(
                f"the energy term {kind!r} is defined in {cls.__module__}, whose code cannot be saved beside the "
                "model: put it into a file of its own and import it, or register it before the model is loaded"
            )
            continue
        source = re.sub(r"^from energy_transformer import", "from .energies import", Path(file).read_text(), flags=re.M)
        source = re.sub(r"^from energy_transformer\.(\w+) import", r"from .\1 import", source, flags=re.M)
        name = cls.__module__.rpartition(".")[2]
        Path(folder, f"{name}.py").write_text(source)
        imports += f"from .{name} import {cls.__name__}\n"
    Path(folder, "checkpoint_terms.py").write_text(own.replace("\nlogger =", f"{imports}\nlogger =", 1))
