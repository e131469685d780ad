"""The quarantine on disk: which delegates crashed too often with which model on this board.

A file that cannot be read counts as empty: then what crashes is tried again, twice, in workers of its own.
"""

from __future__ import annotations

import logging
from pathlib import Path

from regatta_protocol.codec import decode, encode
from regatta_protocol.durable import put_aside, read_bounded, remove_durably, write_durably
from regatta_protocol.errors import RegattaError
from regatta_protocol.measurement import RaceReport
from regatta_runtimes.worker.quarantine import Quarantine

__all__ = ["QuarantineFile"]

logger = logging.getLogger(__name__)

_MAX_BYTES = 256 * 1024  # of MAX_PAIRS pairs with the longest reasons


class QuarantineFile:
    """`quarantine.json` in the state folder."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "quarantine.json"

    def load(self) -> Quarantine:
        """Return what is quarantined."""
        try:
            return decode(Quarantine, read_bounded(self._path, _MAX_BYTES), _MAX_BYTES)
        except FileNotFoundError:
            return Quarantine()
        except OSError as err:
            logger.error("event=quarantine_unreadable path=%s error=%s action=none", self._path, err)
            return Quarantine()
        except RegattaError as err:
            aside = put_aside(self._path)
            logger.error("event=quarantine_damaged path=%s error=%s action=put_aside_as %s", self._path, err, aside)
            return Quarantine()

    def save(self, quarantine: Quarantine) -> None:
        """Keep it; a disk that is full costs the memory of these crashes, and nothing else."""
        if quarantine == self.load():
            return
        try:
            write_durably(self._path, encode(quarantine, _MAX_BYTES))
        except (RegattaError, OSError) as err:
            logger.error("event=quarantine_lost path=%s error=%s", self._path, err)

    def strike(self, report: RaceReport | None, candidate: str, reason: str, times: int = 1) -> None:
        """Take down that what serves crashed or hung: a crash is one wherever it happens.

        Args:
            report: of the race that placed it, which knows the pair; without one nothing is taken down.
            candidate: that crashed.
            reason: in words.
            times: how often.
        """
        pair = _pair(report, candidate)
        if pair is not None:
            quarantine = self.load()
            for _ in range(times):
                quarantine = quarantine.struck(pair, candidate, reason)
            self.save(quarantine)

    def absolve(self, report: RaceReport | None, candidate: str) -> None:
        """Take down that the candidate serves again, sound and fast."""
        pair = _pair(report, candidate)
        if pair is not None:
            self.save(self.load().cleared(pair))

    def clear(self) -> None:
        """Forget every crash.

        Raises:
            OSError: when the file cannot be removed.
        """
        if self._path.exists():
            remove_durably(self._path)


def _pair(report: RaceReport | None, candidate: str) -> str | None:
    results = report.candidates if report is not None else ()
    return next((one.pair for one in results if one.id == candidate), None)
