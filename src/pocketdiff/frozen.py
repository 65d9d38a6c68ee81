"""The base of every config and record: plain values, validated, immutable, no unknown fields."""

from pydantic import BaseModel


class Frozen(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """A frozen model. The string under a field describes it, in the code and on the command line."""
