"""The error classes of the package."""


class UserError(ValueError):
    """A mistake of the user; its message is one line. The scripts print it and exit with code 2."""


class ToldElsewhereError(UserError):
    """A mistake that every process has found, raised where another one tells it: the scripts do not print it."""
