"""Which delegates this board is offered: each that could serve one of its accelerators, and what it lacks.

For people (`regatta-agent doctor`); the race decides by trying.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from regatta_protocol.measurement import BoardFacts
from regatta_runtimes.board.delegate_table import DelegateFacts
from regatta_runtimes.board.libraries import find_library

__all__ = ["Offer", "survey"]


@dataclass(frozen=True)
class Offer:
    """A delegate that serves accelerators of this board; ready when `lacks` is empty."""

    delegate: str
    accelerators: tuple[str, ...]
    library: Path | None
    lacks: tuple[str, ...]
    fix: str | None  # how to get what it lacks, on this board
    power_seen: bool  # the board's power sensor sees what the accelerator draws


def survey(board: BoardFacts, rows: Mapping[str, DelegateFacts], root: Path = Path("/")) -> tuple[Offer, ...]:
    """Return an offer for each delegate whose accelerator, or library where it serves none in particular, is here."""
    offers = []
    for name, facts in rows.items():
        found = tuple(accelerator for accelerator in board.accelerators if accelerator in facts.accelerators)
        libraries = [path for path in (find_library(text, root) for text in facts.libraries) if path is not None]
        if found or (libraries and not facts.accelerators):
            lacks = _lacks(facts, board, bool(libraries))
            fix = facts.hint(found[0] if found else None) if lacks else None
            sensor = board.power_sensor or ""
            seen = any(fnmatchcase(sensor, pattern) for pattern in facts.power_sensors)
            offers.append(Offer(name, found, libraries[0] if libraries else None, lacks, fix, seen))
    return tuple(offers)


def _lacks(facts: DelegateFacts, board: BoardFacts, has_library: bool) -> tuple[str, ...]:
    """Return what the delegate needs and the board has not."""
    lacks = [] if has_library or not facts.libraries else [" or ".join(facts.libraries)]
    if facts.needs and not any(fnmatchcase(driver, pattern) for driver in board.drivers for pattern in facts.needs):
        lacks.append(" or ".join(facts.needs.values()))
    if facts.compiled_only and not facts.libraries:
        lacks.append("a library that drives it")
    lacks += [f"the Python package {package}" for package in facts.packages if not _installed(package)]
    return tuple(lacks)


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
