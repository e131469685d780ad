"""What a value must keep to, said in its annotation: `Annotated[int, Bounds(ge=1)]`. Imports no pydantic.

Two readers hold to it: plain.py, and pydantic wherever a message holds the class. So a class that a serving worker
needs as well is a frozen dataclass, and its rules stand in one place.
"""

from __future__ import annotations

import re
from collections.abc import Sized
from typing import TYPE_CHECKING, ClassVar, cast

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

__all__ = ["Bounds", "Strict"]


class Strict:
    """The base of a dataclass whose unknown fields are refused: settings, where they are misspelled ones."""

    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid", "allow_inf_nan": False}


class Bounds:
    """Of a number, its range; of text, a tuple or a dict, its length; of text, the pattern of the whole."""

    __slots__ = ("ge", "gt", "le", "lt", "max_length", "min_length", "pattern")

    def __init__(
        self,
        *,
        ge: float | None = None,
        gt: float | None = None,
        le: float | None = None,
        lt: float | None = None,
        min_length: int | None = None,
        max_length: int | None = None,
        pattern: str | None = None,
    ) -> None:
        self.ge, self.gt, self.le, self.lt = ge, gt, le, lt
        self.min_length, self.max_length = min_length, max_length
        self.pattern = pattern

    def broken_by(self, value: object) -> str | None:
        """Return what a value of the annotated type should be and is not, or None when it keeps to the bounds."""
        if isinstance(value, int | float):
            return self._broken_by_number(value)
        if self.pattern is not None and re.fullmatch(self.pattern, str(value)) is None:
            return f"should match pattern '{self.pattern}'"
        length = len(value) if isinstance(value, Sized) else 0
        if self.min_length is not None and length < self.min_length:
            return f"should have at least {self.min_length} items or characters, and has {length}"
        if self.max_length is not None and length > self.max_length:
            return f"should have at most {self.max_length} items or characters, and has {length}"
        return None

    def _broken_by_number(self, value: float) -> str | None:
        if self.ge is not None and not value >= self.ge:
            return f"should be greater than or equal to {self.ge}"
        if self.gt is not None and not value > self.gt:
            return f"should be greater than {self.gt}"
        if self.le is not None and not value <= self.le:
            return f"should be less than or equal to {self.le}"
        if self.lt is not None and not value < self.lt:
            return f"should be less than {self.lt}"
        return None

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Have pydantic hold to the bounds: its schemas of numbers, text and collections have them by these names."""
        given = {name: getattr(self, name) for name in self.__slots__ if getattr(self, name) is not None}
        return cast("CoreSchema", {**handler(source), **given})
