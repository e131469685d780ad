"""`StrEnum` for every Python that Regatta supports: Python 3.10 lacks `enum.StrEnum`. Nothing else belongs here."""

from __future__ import annotations

from enum import Enum

__all__ = ["StrEnum"]


class StrEnum(str, Enum):
    """An enumeration whose members are their own text, in f-strings, JSON and comparisons alike."""

    __str__ = str.__str__

    def __format__(self, format_spec: str) -> str:
        return str.__format__(self.value, format_spec)
