"""The base of every config: plain values, checked, unchangeable, no field too many."""

from pydantic import BaseModel


class Frozen(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """A config model; the string under a field describes it, in the code and on the command line."""
