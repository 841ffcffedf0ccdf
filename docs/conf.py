"""The documentation site: `make docs`. Warnings are errors there."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE / "extensions")]

from energy_transformer import __version__, data  # noqa: E402 (found by the path above)

for name in data.__all__:  # which it imports when they are used; autodoc looks for what is there
    setattr(data, name, getattr(data, name))

# the notebooks lie outside of the one folder that Sphinx reads, and their links lead to the pages from there
(HERE / "notebooks").mkdir(exist_ok=True)
for notebook in (ROOT / "notebooks").glob("*.ipynb"):
    (HERE / "notebooks" / notebook.name).write_text(notebook.read_text().replace("](../docs/", "](../"))

project = "energy-transformer"
author = "The energy-transformer authors"
copyright = author
release = version = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "docstrings", "formulas"]
exclude_patterns = ["build"]
nitpicky = True
# objects of other packages: their documentation is not linked, so that the site builds without a network
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(torch|transformers|numpy|matplotlib|PIL|datasets|evaluate|accelerate|huggingface_hub|collections|pathlib)\b.*",
    ),
]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebooks hold their outputs, and a test executes them

toc_object_entries_show_parents = "hide"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings give shapes and dtypes, which say more
napoleon_use_param = False  # one line may describe several arguments
napoleon_custom_sections = [("Attributes", "params_style")]
default_role = "literal"
html_math_renderer = "mathml"

html_theme = "furo"
pygments_dark_style = "monokai"  # furo's own underlines the names of modules as if they were links
html_title = "energy-transformer"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
