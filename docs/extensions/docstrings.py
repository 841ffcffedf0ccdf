"""Docstrings are written in the Markdown of transformers; autodoc reads reStructuredText. This translates them.

It knows what the docstrings of this package use: fenced code, formulas between double dollars, `code`, and links to
other objects, [`name`].
"""

import dataclasses
import inspect
import re
from collections.abc import Iterator

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

_LINK_OR_CODE = re.compile(r"\[`([^`]+)`\](?!\()|`([^`]+)`")
_SPECIAL = re.compile(r"([\\|*]|(?<=\w)_(?!\w))")  # what marks something in reStructuredText
_BEFORE_INDENTED = re.compile(r"^( *)(\S.*[^:]):\n\n(?=\1 +\S)", flags=re.M)
_FENCE, _FORMULA = "```", "$$"
PACKAGE = "energy_transformer"


def _text(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", text).replace(r"\*optional\*", "*optional*")


def _line(line: str) -> str:
    """A line of prose."""
    pieces, end = [], 0
    for found in _LINK_OR_CODE.finditer(line):
        link, code = found.groups()
        pieces += [_text(line[end : found.start()]), f":py:obj:`.{link}`" if link else f"``{code}``"]
        end = found.end()
    return "".join([*pieces, _text(line[end:])])


def translate(lines: list[str]) -> Iterator[str]:
    """The lines of a docstring as reStructuredText."""
    text = _BEFORE_INDENTED.sub(r"\1\2::\n\n", "\n".join(lines))
    text = re.sub(r"\$\$(.*?)\$\$", lambda found: _FORMULA + " ".join(found[1].split()) + _FORMULA, text, flags=re.S)
    inside = False
    for line in text.split("\n"):
        content, indent = line.strip(), line[: len(line) - len(line.lstrip())]
        if content.startswith(_FENCE):
            inside = not inside
            yield ""
            if inside:
                yield from (f"{indent}.. code-block:: {content.removeprefix(_FENCE) or 'text'}", "")
        elif inside:
            yield f"   {line}"
        elif content.startswith(_FORMULA):
            yield from ("", f"{indent}.. math:: {content.strip('$').rstrip('$')}", "")
        else:
            yield _line(line)


def _translate(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    # an empty comment, since napoleon takes what precedes a colon in the first line of a property for its type
    first = ["..", ""] if what in ("property", "attribute") else []
    lines[:] = [*first, *translate(lines)]


def _find(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element) -> nodes.Node | None:
    """A name without its module is one that the package exports; a link to what has no place here is its name alone."""
    exported = f"{PACKAGE}.{node['reftarget']}"
    domain = env.domains.python_domain
    if node["reftype"] in ("exc", "class") and exported in domain.objects:
        return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", exported, node, content)
    return content if node.get("refspecific") and node["reftype"] == "obj" else None


def _sign(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str, returns: str
) -> tuple | None:
    """Of a class the arguments of its own constructor, not those of a base class."""
    if what != "class" or not signature:
        return None
    found = inspect.signature(obj.__init__ if "*args" in signature else obj)
    own = [each for each in found.parameters.values() if each.name != "self"]
    if dataclasses.is_dataclass(obj):
        own = [each for each in own if each.name in obj.__annotations__]
    plain = [each.replace(annotation=each.empty) for each in own]
    return str(found.replace(parameters=plain, return_annotation=found.empty)), returns


def _skip(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """The fields of named tuples, which the docstring of the class explains, and what transformers asks a class for."""
    return True if type(obj).__name__ == "_tuplegetter" or name == "config_class" else None


def setup(app: Sphinx) -> dict:
    app.connect("autodoc-process-docstring", _translate, priority=400)  # before napoleon's, which is 500
    app.connect("autodoc-process-signature", _sign)
    app.connect("autodoc-skip-member", _skip)
    app.connect("missing-reference", _find, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
