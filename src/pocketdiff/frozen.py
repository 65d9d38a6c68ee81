"""The base of every config and record: plain values, validated, immutable, no unknown fields; marks for their flags."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import permutations
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, BaseModel, Field

Same = TypeVar("Same", bound="Frozen")


class Filled:
    """Marks a field that a run fills in, ``Annotated[str | None, Filled()]``: it has no flag."""


class Frozen(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """A frozen model. The string under a field describes it, in the code and on the command line."""

    either: ClassVar[tuple[str, ...]] = ()
    """Fields that exclude each other: to set one clears the others."""
    common: ClassVar[tuple[str, ...]] = ()
    """The fields that most users need: ``--help`` shows their flags, and ``--help-all`` shows all flags."""

    def replace(self: Same, **changes: Any) -> Same:
        """A copy with other values, checked like those of a new one: ``config.replace(images=40_000)``.

        Raises:
            ValidationError: If there is no such field, or a value does not fit.
        """
        for field, other in permutations(self.either, 2):
            if changes.get(field) is not None:
                changes.setdefault(other, None)
        return self.model_validate({**dict(self), **changes})


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("holds characters that cannot be printed")
    return text


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, AfterValidator(_printable)]
"""One line that a terminal can show."""


@dataclass(frozen=True, eq=False)
class Metavar:
    """Marks a field: ``Annotated[Path, Metavar("FOLDER")]`` names its value in the help, or its possible values."""

    name: str | Iterable[str]

    def __str__(self) -> str:
        return self.name if isinstance(self.name, str) else f"{{{','.join(self.name)}}}"


@dataclass(frozen=True, eq=False)
class Alias:
    """Marks a number with a second flag, which takes ``value - offset``: ``Annotated[float, Alias("w", 1.0, "...")]``.

    ``help`` describes the flag.
    """

    name: str
    offset: float
    help: str
