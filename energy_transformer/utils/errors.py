"""The error classes of the package, and what other errors say."""


class UserError(ValueError):
    """A mistake of the user; its message is one line. The scripts print it and exit with code 2."""


class ToldElsewhereError(UserError):
    """A mistake that every process has found, raised where another one tells it: the scripts do not print it."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
