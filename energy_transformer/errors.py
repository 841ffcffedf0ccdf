"""The one error class of the package."""


class UserError(ValueError):
    """A mistake of the user. The scripts print its message on one line and exit with code 2."""
