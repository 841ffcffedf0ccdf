"""What the pages say is there: their code runs, commands, options and links exist, every name is explained."""

import ast
import contextlib
import html.parser
import importlib
import importlib.util
import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest
from documents import NOTEBOOKS, PAGES, REFERENCE, ROOT, blocks, commands, name_of, text_of

import energy_transformer
from energy_transformer.commands.train import TASKS
from energy_transformer.energies import ENERGY_TERMS

HAVE_TESTS_OF_THEIR_OWN = {"docs/ecosystem.md", "docs/your_own_energy.md"}
WITH_CODE = [page for page in PAGES if blocks(page, "python") and name_of(page) not in HAVE_TESTS_OF_THEIR_OWN]
EXTERNAL = re.compile(r"^(https?:|mailto:)")


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_code_runs(beside_the_demo, page):
    """The blocks of a page one after the other, as a reader runs them."""
    registered, names = dict(ENERGY_TERMS), {"__name__": "page"}
    try:
        for code in blocks(page, "python"):
            exec(compile(code, str(page), "exec"), names)
    finally:
        ENERGY_TERMS.clear()
        ENERGY_TERMS.update(registered)


@pytest.fixture(scope="module")
def help_of():
    """The options of a command of the package, from its own help; each is asked once."""
    known = {}

    def ask(words: tuple[str, ...], capsys) -> set[str]:
        if words not in known:
            name, *task = words
            with contextlib.suppress(SystemExit):
                importlib.import_module(f"energy_transformer.commands.{name}").main([*task, "--help"])
            known[words] = set(re.findall(r"--[a-z][a-z0-9_-]*", capsys.readouterr().out))
        return known[words]

    return ask


def check_package_command(words: list[str], help_of, capsys) -> None:
    """`energy-transformer COMMAND` or `energy-transformer train TASK` with options."""
    task = words[1:2] if words[0] == "train" and not words[1].startswith("-") else []
    known = help_of((words[0], *task), capsys)
    given = {word.partition("=")[0] for word in words if word.startswith("--")} - {"--help"}
    assert "--help" in known and given <= known, f"{words[0]} has no {given - known}"
    if "--config" in words:
        recipe = words[words.index("--config") + 1]
        assert (ROOT / "configuration" / "training" / f"{recipe}.yaml").is_file()


def check_command(command: str, help_of, capsys) -> None:
    program, *rest = shlex.split(command)
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert [word for word in rest if "=" not in word and word not in targets] == []
    elif program == "pip":
        extras = re.search(r"\[(.*)\]", command)
        section = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
        known = re.findall(r"^(\w+) = \[", section.partition("[tool")[0], re.MULTILINE)
        assert rest[0] == "install" and set(extras[1].split(",") if extras else ()) <= set(known)
    elif (program, rest[0]) == ("accelerate", "launch"):
        from accelerate.commands.launch import launch_command_parser

        launch = launch_command_parser().parse_args(rest[1:])
        assert launch.config_file is None or (ROOT / launch.config_file).is_file()
        if launch.module:
            assert launch.training_script == "energy_transformer"
            check_package_command(launch.training_script_args, help_of, capsys)
        else:  # a door to a command, which the tests of the commands compare with it
            assert (ROOT / launch.training_script).is_file()
    elif program == "energy-transformer":
        check_package_command(rest, help_of, capsys)
    else:
        assert program == "python" and (ROOT / rest[0]).is_file(), f"this test does not know {command!r}"


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name_of)
def test_commands_and_options_exist(page, help_of, capsys):
    for command in commands(page):
        check_command(command, help_of, capsys)


COMMANDS = [("train", task) for task in TASKS]
COMMANDS += [(path.stem,) for path in (ROOT / "energy_transformer" / "commands").glob("[a-z]*.py")]


def test_options_in_the_text_exist(help_of, capsys):
    """Those that stand between backticks."""
    known = set().union(*(help_of(words, capsys) for words in COMMANDS))
    for page in PAGES:
        inline = re.findall(r"`([^`\n]+)`", text_of(page))
        named = {option for code in inline for option in re.findall(r"(?<!\S)--[a-z][a-z_]*", code)}
        assert named - known == set(), name_of(page)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files(page):
    text = text_of(page)
    links = [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r"(?:src|href)=\"([^\"]+)\"", text)]
    local = {link.partition("#")[0] for link in links if not EXTERNAL.match(link) and not link.startswith("#")}
    assert [link for link in local if not (page.parent / link).exists() and not is_made_by_the_site(page, link)] == []


def is_made_by_the_site(page: Path, link: str) -> bool:
    """docs/conf.py copies the notebooks into the site."""
    path = (page.parent / link).resolve()
    return path.parent == ROOT / "docs" / "notebooks" and (ROOT / "notebooks" / path.name).is_file()


def public_names() -> dict[str, object]:
    """What an `__all__` of the package mentions, and what pages and notebooks import from it."""
    modules = [energy_transformer.__name__]
    modules += [found.name for found in pkgutil.walk_packages(energy_transformer.__path__, "energy_transformer.")]
    modules.remove("energy_transformer.app.interface")  # a program, which needs gradio
    names = {
        f"{module}.{name}" for module in modules for name in getattr(importlib.import_module(module), "__all__", ())
    }
    sources = [code for page in PAGES for code in blocks(page, "python")]
    for notebook in NOTEBOOKS:
        cells = json.loads(notebook.read_text())["cells"]
        sources += ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    for node in (node for source in sources for node in ast.walk(ast.parse(source))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "energy_transformer":
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name: getattr(importlib.import_module(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in names}


def documented_objects() -> list[object]:
    """What the pages of the reference list: single names, and whole modules."""
    found = []
    for page in REFERENCE.glob("*.md"):
        current = ""
        for directive, target in re.findall(r"^\.\. (\w+):: (\S+)$", page.read_text(), re.MULTILINE):
            name = target if target.startswith("energy_transformer") else f"{current}.{target}"
            if directive == "currentmodule":
                current = target
            elif directive == "automodule":
                module = importlib.import_module(name)
                listed = getattr(module, "__all__", [each for each in vars(module) if not each.startswith("_")])
                members = [getattr(module, each) for each in listed]
                found += [each for each in members if getattr(each, "__doc__", None) and callable(each)]
            elif directive.startswith("auto"):
                module, _, attribute = name.rpartition(".")
                found.append(getattr(importlib.import_module(module), attribute))
    return found


def test_every_public_name_is_in_the_reference():
    public, documented = public_names(), {id(each) for each in documented_objects()}
    missing = sorted(name for name, each in public.items() if id(each) not in documented)
    print(f"{len(public) - len(missing)} of {len(public)} public names are in the reference")
    assert len(public) > 60 and missing == []


class _Page(html.parser.HTMLParser):
    """The links and the anchors of a page of HTML."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.anchors.add(attributes.get("id"))
        self.links += [attributes[name] for name in ("href", "src") if attributes.get(name)]


def broken_links(folder: Path) -> list[str]:
    pages = {path.resolve(): _Page(path) for path in folder.rglob("*.html")}
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else path
            known = pages[target].anchors if target in pages else {""}
            if not target.exists() or (target in pages and parts.fragment and parts.fragment not in known):
                broken.append(f"{path.relative_to(folder.resolve())}: {link}")
    return broken


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason="`make docs` brings Sphinx")
def test_the_site_builds_without_a_warning_and_its_links_lead_somewhere(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-b", "html", "-d", tmp_path / "cache"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, ROOT / "docs", tmp_path / "site"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert broken_links(tmp_path / "site") == []
    from sphinx.util.inventory import InventoryFile

    inventory = InventoryFile.loads((tmp_path / "site" / "objects.inv").read_bytes(), uri="")
    entries = {name for kind, entries in inventory.data.items() if kind.startswith("py:") for name in entries}
    short = {name.rpartition(".")[2] for name in entries}
    assert {name.rpartition(".")[2] for name in public_names()} - short == set()
    pages = [path.read_text() for path in (tmp_path / "site").rglob("*.html")]
    assert not any(re.search(r"<(script|link|img)[^>]* (src|href)=.http", page) for page in pages)  # it works offline
    assert any("<math " in page for page in pages)
