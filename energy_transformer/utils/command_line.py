"""What all commands share: a user's mistake is one line on standard error and exit code 2."""

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from .console import prepare_console
from .errors import ToldElsewhereError, UserError
from .extras import explain_missing
from .interruption import interruption, watch_launcher
from .suggestions import did_you_mean
from .tokens import hide_tokens


class OneLineErrors(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors are one line, which suggests what was perhaps meant and repeats no token."""

    synonyms: Mapping[str, str] = {}  # what other programs call an option, with the words for it here
    source: str = ""  # where the words come from, before an error
    _words: Sequence[str] = ()

    def parse_args(self, args=None, namespace=None):  # type: ignore[override]
        values, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._suggestion(unknown)}")
        return values

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[override]
        self._words = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(self._words, namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {self.source}{hide_tokens(message, self._words)} (--help lists every option)\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += did_you_mean(str(value), map(str, action.choices or ()))
            raise

    def _suggestion(self, unknown: Iterable[str]) -> str:
        given = next((word for word in unknown if word.startswith("-")), None)
        if given is None:
            return ""
        name = given.partition("=")[0].lstrip("-").replace("-", "_")
        if name in self.synonyms:
            return f", did you mean '{self.synonyms[name]}'?"
        known = [option for action in self._actions for option in action.option_strings if "-" not in option[2:]]
        return did_you_mean(f"--{name}", known)


def run_script(main: Callable[[list[str]], None]) -> NoReturn:
    """Call `main` with the words of the command line, and leave with 0, with 2 after a [`UserError`], and with 143 or
    130 after a signal."""
    prepare_console()
    interruption.install()
    watch_launcher()
    try:
        main(sys.argv[1:])
    except ToldElsewhereError:
        sys.exit(2)
    except UserError as error:
        # a worker of a DataLoader puts a traceback before the message
        message = str(error).strip().splitlines()[-1].rpartition("UserError: ")[2]
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("energy_transformer"):  # no mistake of the user
            raise
        message = explain_missing(error.name or "")
    else:
        sys.exit(0)
    print(f"error: {hide_tokens(message, sys.argv[1:])}", file=sys.stderr)
    sys.exit(2)
