"""The package's own errors: each is one sentence that says what is wrong, where, and how to mend it."""


class PocketdiffError(Exception):
    """A fault that the user can mend. The command line prints it without a traceback."""

    status = 2
    """Exit status of the command line: 2 for bad input, 1 for failed work."""


class DataError(PocketdiffError):
    """A data set that cannot be read or used."""
