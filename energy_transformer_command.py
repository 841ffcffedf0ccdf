"""The command `energy-transformer`: finds the module of a command by its name, and imports it when it is used.

It lies beside the package because importing anything of the package imports torch, for which `--help` does not wait.
A command is a file of `energy_transformer/commands` with a `main(argv)`; the first line of its docstring says what it
does.
"""

import ast
import importlib
import sys
from pathlib import Path
from typing import NoReturn

NAME = "energy-transformer"
FOLDER = Path(__file__).with_name("energy_transformer") / "commands"


def commands() -> dict[str, str]:
    """What each command does, by its name, without importing any."""
    files = sorted(path for path in FOLDER.glob("*.py") if path.stem != "__init__")
    return {path.stem: (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0] for path in files}


def help_text() -> str:
    lines = [
        f"usage: {NAME} COMMAND [--option value ...]",
        "",
        "Train Energy Transformers, look inside them, and share them.",
        "",
        "commands:",
        *(f"  {name:<12} {sentence}" for name, sentence in commands().items()),
        "",
        f"`{NAME} COMMAND --help` lists the options of a command.",
        "`python -m energy_transformer` is the same, as in `accelerate launch -m energy_transformer train TASK`.",
    ]
    return "\n".join(lines)


def main() -> NoReturn:
    """Run the command that the first word names with the words after it, or say in one line that there is none."""
    name, *words = sys.argv[1:] or [""]
    if name in ("-h", "--help"):
        print(help_text())
        sys.exit(0)
    if name not in commands():
        from energy_transformer.utils.suggestions import did_you_mean

        what = f"there is no command {name!r}{did_you_mean(name, commands())}" if name else "name a command"
        print(f"error: {what} ({', '.join(commands())}; --help lists what each does)", file=sys.stderr)
        sys.exit(2)

    from energy_transformer.utils.command_line import run_script

    sys.argv = [f"{NAME} {name}", *words]  # as the command's own help calls it
    run_script(lambda argv: importlib.import_module(f"energy_transformer.commands.{name}").main(argv))


if __name__ == "__main__":
    main()
