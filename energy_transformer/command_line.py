"""What all scripts share: a user's mistake is one line on standard error and exit code 2."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from .errors import UserError


class OneLineErrors(argparse.ArgumentParser):
    """An `ArgumentParser` that does not print the whole usage before an error."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (--help lists every option)\n")


def run_script(main: Callable[[list[str]], None]) -> NoReturn:
    """Call `main` with the words of the command line, and leave with 0, or with 2 after a [`UserError`]."""
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)
