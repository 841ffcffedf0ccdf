"""What all scripts share: a user's mistake is one line on standard error and exit code 2."""

import argparse
import re
import sys
from collections.abc import Callable
from typing import NoReturn

from .errors import ToldElsewhereError, UserError
from .interruption import interruption, watch_launcher


class OneLineErrors(argparse.ArgumentParser):
    """An `ArgumentParser` that does not print the whole usage before an error."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {_without_tokens(message)} (--help lists every option)\n")


def run_script(main: Callable[[list[str]], None]) -> NoReturn:
    """Call `main` with the words of the command line, and leave with 0, with 2 after a [`UserError`], and with 143 or
    130 after a signal."""
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
        message = f"{error.name} is missing: pip install 'energy-transformer[train]'"
    else:
        sys.exit(0)
    print(f"error: {_without_tokens(message)}", file=sys.stderr)
    sys.exit(2)


def _without_tokens(message: str) -> str:
    """An error may repeat the words of the command line, such as a misspelled `--hub_token`."""
    return re.sub(r"\bhf_\w+", "hf_…", message)
