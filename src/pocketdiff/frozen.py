"""The base of every config and record: plain values, validated, immutable, no unknown fields."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field


class Frozen(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """A frozen model. The string under a field describes it, in the code and on the command line."""


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("holds characters that cannot be printed")
    return text


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, AfterValidator(_printable)]
"""One line that a terminal can show."""
