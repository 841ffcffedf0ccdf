"""The one error class of the package."""


class UserError(ValueError):
    """A mistake of the user; its message is one line. The scripts print it and exit with code 2."""
