"""The record on disk: `record.json`, and the good copy before it, `record.previous.json`.

Invariants:
- `save` returns only when the record survives a power cut; a failed save leaves the old record in place.
- `load` never fails on bad content: it takes the previous copy, else begins anew and says so. A beginning anew is
  safe: the broker retains the assignment, and what lies verified on disk is not downloaded again.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from regatta_agent.core.installs import AgentRecord
from regatta_protocol.codec import decode, encode
from regatta_protocol.durable import put_aside, read_patiently, shortage_of, write_durably
from regatta_protocol.errors import Misuse, RegattaError, TooNew

__all__ = ["MAX_RECORD_BYTES", "UNSAVED_REPORTS", "RecordFile"]

logger = logging.getLogger(__name__)

# How far the number of reports may run ahead of the record on disk. A report is no reason for a write, and one that
# says "no space" must go out although nothing can be written. A start begins that much above what it finds, or with the
# milliseconds since 1970, which are more on every board whose clock is set.
UNSAVED_REPORTS = 200
MAX_RECORD_BYTES = 4 * 1024 * 1024  # 64 models of 16 versions at about 2 KB


class RecordFile:
    """The record's place on disk."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "record.json"
        self._previous = state_dir / "record.previous.json"

    def load(self, *, set_aside: bool = False) -> AgentRecord:
        """Return what was last saved, or the copy before it, or an empty record.

        Args:
            set_aside: a damaged file is kept under another name, for who wants to know; for the agent alone.

        Raises:
            Misuse: when a newer agent wrote it: going on would lose what this one does not know.
            Exhausted: when it cannot be opened for want of descriptors or memory, which says nothing about it.
        """
        damaged = False
        for path in (self._path, self._previous):
            try:
                record = decode(AgentRecord, read_patiently(path, MAX_RECORD_BYTES), MAX_RECORD_BYTES)
            except FileNotFoundError:
                continue
            except TooNew as err:
                raise Misuse(f"{path} was written by a newer agent ({err}): install that agent again") from err
            except OSError as err:
                shortage = shortage_of(err, str(path))
                if shortage is not None:  # the copy before would forget what was told since, for nothing
                    raise shortage from err
                logger.error("event=record_unreadable path=%s error=%s action=try_the_copy_before", path, err)
                damaged = True
                continue
            except RegattaError as err:
                aside = put_aside(path) if set_aside else None
                action = f"put_aside_as {aside}" if aside is not None else "try_the_copy_before"
                logger.error("event=record_damaged path=%s error=%s action=%s", path, err, action)
                damaged = True
                continue
            # A save raises the number by a start's step and what was unsaved at most: the copy before must not report
            # under a number used since.
            ahead = 2 * UNSAVED_REPORTS if damaged else 0
            return record.model_copy(update={"report_sequence": record.report_sequence + ahead})
        if damaged:
            logger.error("event=record_rebuilt path=%s action=waiting_for_the_assignment", self._path)
        return AgentRecord()

    def save(self, record: AgentRecord) -> None:
        """Persist the record; the one before stays beside it.

        Raises:
            StorageFull: when the disk is full; the record on disk is the old one.
            OSError: when it cannot be written; likewise.
        """
        data = encode(record, MAX_RECORD_BYTES)
        try:
            self._keep_previous()
        except OSError as err:
            raise shortage_of(err, str(self._previous)) or err from err
        write_durably(self._path, data)

    def _keep_previous(self) -> None:
        """Give the content that is on disk and synced a second name: no write, no window without a record."""
        temporary = self._previous.with_name(f".{self._previous.name}.tmp")
        temporary.unlink(missing_ok=True)
        if self._path.exists():
            os.link(self._path, temporary)
            try:
                temporary.replace(self._previous)
            finally:
                temporary.unlink(missing_ok=True)
