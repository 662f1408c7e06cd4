"""Errors that petx raises for a mistake of its user."""


class UserError(ValueError):
    """A mistake the user can correct; the command line prints its message without a traceback and exits with 2."""
