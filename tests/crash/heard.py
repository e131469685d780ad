"""What the fleet knows of the device, over its restarts, and what it must never hear."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Heard", "Violation", "demand"]


class Violation(Exception):
    """What must hold does not."""


def demand(holds: object, promise: str) -> None:
    """Raise Violation unless `holds`."""
    if not holds:
        raise Violation(promise)


@dataclass
class Heard:
    """All that left the device, and what was asked of it."""

    act: int = 0  # of the scenario, that was begun
    generation: int = 0  # last assigned
    version: int | None = None  # of that generation
    committed: int = 0  # the highest version reported so
    sequence: int = 0
    batches: dict[str, str] = field(default_factory=dict)  # id -> digest of what was in it
    items: dict[str, str] = field(default_factory=dict)  # item -> the batch it came in
    kept: set[str] = field(default_factory=set)  # items that the device has said it stored
    damaged: set[str] = field(default_factory=set)  # digests of files that the story itself damaged
    dropped: int = 0  # items that the device said it dropped

    def hear_all(self, told: Iterable[list[Any]]) -> Heard:
        """Take in what a fork told, and return this."""
        for news in told:
            self.hear(*news)
        return self

    def hear(self, kind: str, value: Any, *more: Any) -> None:
        """Take in one piece of news; what contradicts another is a violation."""
        if kind == "act":
            self.act = value
        elif kind == "assigned":
            self.generation, self.version = value, more[0]
        elif kind == "reported":
            demand(value > self.sequence, f"report {value} came after report {self.sequence}")
            self.sequence = value
            self.committed = max(self.committed, more[0])
        elif kind == "kept":
            self.kept.add(value)
        elif kind == "damaged":
            self.damaged.add(value)
        elif kind == "batch":
            self._hear_batch(value, *more)

    def missing(self) -> set[str]:
        """Return the items that were stored and have not come."""
        return self.kept - set(self.items)

    def _hear_batch(self, batch: str, digest: str, dropped: int, items: list[str]) -> None:
        known = self.batches.get(batch)
        demand(known in (None, digest), f"batch {batch} came with two contents")
        if known is not None:
            return
        self.batches[batch] = digest
        self.dropped += dropped
        for item in items:
            demand(item not in self.items, f"item {item} came in two batches")
            self.items[item] = batch
