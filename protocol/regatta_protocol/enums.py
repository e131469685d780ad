"""Enumerations of text, for every Python that Regatta supports (3.10 lacks `enum.StrEnum`), and for every peer.

`OpenStrEnum` and `Word` are for what peers say to each other: a value that only a newer one knows must cost that value
and not the whole message. What describes the content of a model file (a task, a layout) stays closed: there, refusing
is right.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Annotated

from regatta_protocol.bounds import Bounds

__all__ = ["OpenStrEnum", "StrEnum", "Word"]

_TEXT = re.compile(r"[a-z0-9_]{1,64}")

Word = Annotated[str, Bounds(pattern=r"^[a-z0-9_]{1,64}$")]
"""One of a few known words, or a newer peer's: read with its text, and compared by it."""


class StrEnum(str, Enum):
    """An enumeration whose members are their own text, in f-strings, JSON and comparisons alike."""

    __str__ = str.__str__

    def __format__(self, format_spec: str) -> str:
        return str.__format__(self.value, format_spec)


class OpenStrEnum(StrEnum):
    """A StrEnum that reads a word of a newer peer as UNKNOWN and keeps its text: it is passed on as it came.

    Such a value equals no member, is not among the members, and `known` is False.
    """

    @classmethod
    def _missing_(cls, value: object) -> OpenStrEnum | None:
        if not isinstance(value, str) or _TEXT.fullmatch(value) is None:
            return None
        stranger = str.__new__(cls, value)
        stranger._name_ = "UNKNOWN"
        stranger._value_ = value
        return stranger

    @property
    def known(self) -> bool:
        """Whether this program knows the value."""
        return self._value_ in type(self)._value2member_map_
