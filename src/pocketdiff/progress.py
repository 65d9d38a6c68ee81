"""The one way in which long work reports its progress."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with the name of the work, how much of it is done, and how much there is. It may raise to stop the work."""


def silent(_what: str, _done: int, _total: int) -> None:
    """Reports to nobody."""
