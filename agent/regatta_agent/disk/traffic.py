"""What the device's connections have cost since enrolment, kept over restarts without a write for each message.

The running agent leaves the sums in its run folder (memory) every few seconds while they change, and in its state
folder (a card that wears out) once an hour and when it ends. A kill loses at most that hour of counting.
"""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import Field

from regatta_protocol.codec import decode, encode
from regatta_protocol.durable import read_bounded, write_durably
from regatta_protocol.errors import RegattaError
from regatta_protocol.traffic import Amount, Cause, Ledger
from regatta_protocol.wire import Wire

__all__ = ["TrafficBook", "TrafficFile", "read_traffic"]

logger = logging.getLogger(__name__)

_SHOWN_EVERY_S = 5.0
_KEPT_EVERY_S = 3600.0
_FILE_NAME = "traffic.json"
_MAX_FILE_BYTES = 16_384


class TrafficFile(Wire):
    """Bytes by cause, each as sent and received."""

    since: float  # seconds since 1970, by the device's clock
    causes: dict[str, tuple[int, int]] = Field(default_factory=dict, max_length=64)

    def amounts(self) -> dict[Cause, Amount]:
        """Return the sums; what a newer agent counted under a name unknown here is OTHER."""
        known = {cause.value: cause for cause in Cause}
        found: dict[Cause, Amount] = {}
        for name, (sent, received) in self.causes.items():
            cause = known.get(name, Cause.OTHER)
            found[cause] = found.get(cause, Amount()) + Amount(sent, received)
        return found


class TrafficBook:
    """The ledger that the bus writes, and the files that others read. Used by the loop's thread only."""

    def __init__(self, state_dir: Path, run_dir: Path, wall_s: float) -> None:
        self._kept_path = state_dir / _FILE_NAME
        self._shown_path = run_dir / _FILE_NAME
        before = _read(self._kept_path)
        self._since = before.since if before is not None else wall_s
        self.ledger = Ledger(before.amounts() if before is not None else None)
        self._kept = self._shown = self.ledger.totals()
        self._kept_s: float | None = None
        self._shown_s = float("-inf")

    def tick(self, now_s: float) -> None:
        """Write what is due."""
        if self._kept_s is None:
            self._kept_s = now_s
        if now_s - self._shown_s >= _SHOWN_EVERY_S:
            self._shown_s = now_s
            self._show()
        if now_s - self._kept_s >= _KEPT_EVERY_S:
            self._kept_s = now_s
            self._keep()

    def close(self) -> None:
        """Keep the sums for the next start."""
        self._keep()
        self._shown_path.unlink(missing_ok=True)

    def _show(self) -> None:
        totals = self.ledger.totals()
        if totals == self._shown and self._shown_path.exists():
            return
        fresh = self._shown_path.with_name(f".{_FILE_NAME}.new")
        try:
            fresh.write_bytes(self._encoded(totals))
            fresh.replace(self._shown_path)
        except OSError as err:
            logger.debug("event=traffic_not_shown error=%s", err)
            return
        self._shown = totals

    def _keep(self) -> None:
        totals = self.ledger.totals()
        if totals == self._kept:
            return
        try:
            write_durably(self._kept_path, self._encoded(totals))
        except (RegattaError, OSError) as err:
            logger.debug("event=traffic_not_kept error=%s", err)
            return
        self._kept = totals

    def _encoded(self, totals: dict[Cause, Amount]) -> bytes:
        causes = {cause.value: (amount.sent, amount.received) for cause, amount in totals.items()}
        return encode(TrafficFile(since=self._since, causes=causes))


def read_traffic(state_dir: Path, run_dir: Path) -> TrafficFile | None:
    """Return the running agent's sums, or what the last one kept; None when nothing was counted yet."""
    return _read(run_dir / _FILE_NAME) or _read(state_dir / _FILE_NAME)


def _read(path: Path) -> TrafficFile | None:
    try:
        return decode(TrafficFile, read_bounded(path, _MAX_FILE_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, RegattaError) as err:
        logger.warning("event=traffic_unreadable path=%s error=%s action=counting_anew", path, err)
        return None
