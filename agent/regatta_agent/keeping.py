"""Keeps the record on disk as it changes, and knows when it may be tried again where the disk takes it not.

A full disk is tried again when there is more space, or after an hour; another fault after some seconds. Nothing here
decides what happens meanwhile: `keep` says whether the disk has the record.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from regatta_agent.clock import Clock
from regatta_agent.core.installs import AgentRecord
from regatta_agent.record import RecordFile
from regatta_agent.store import Store
from regatta_protocol.errors import StorageFull

__all__ = ["Keeper"]

logger = logging.getLogger(__name__)

_FAULT_WAIT_S = 5.0  # after another fault than a full disk: a folder that cannot be written, no descriptor left


@dataclass(frozen=True)
class _Refused:
    """The disk did not take it: when to try again, on a monotonic clock, or from how much space on."""

    again_s: float
    free_bytes: int | None


class Keeper:
    """The record as the disk has it. Used by the loop's thread only."""

    def __init__(self, file: RecordFile, store: Store, clock: Clock, full_wait_s: float) -> None:
        self._file = file
        self._store = store
        self._clock = clock
        self._full_wait_s = full_wait_s
        self._kept: AgentRecord | None = None
        self._refused: _Refused | None = None

    def load(self) -> AgentRecord:
        """Return what was last kept, or an empty record; a damaged file is put aside."""
        self._kept = None
        return self._file.load(set_aside=True)

    def keep(self, record: AgentRecord) -> bool:
        """Persist the record when it differs from what is on disk; return whether the disk has it."""
        if self._kept is not None and _without_counters(self._kept) == _without_counters(record):
            return True
        refused = self._refused
        if refused is not None and not self._may_try(refused):
            return False
        try:
            self._file.save(record)
        except (StorageFull, OSError) as err:
            if refused is None:
                logger.error("event=record_not_saved error=%s action=nothing_new_is_begun", err)
            self._refused = self._refusal(err)
            return False
        if refused is not None:
            logger.info("event=record_saved_again")
        self._refused = None
        self._kept = record
        return True

    def _may_try(self, refused: _Refused) -> bool:
        more_space = refused.free_bytes is not None and self._store.free_bytes() > refused.free_bytes
        return more_space or self._clock.monotonic() >= refused.again_s

    def _refusal(self, err: Exception) -> _Refused:
        now_s = self._clock.monotonic()
        if isinstance(err, StorageFull):
            return _Refused(now_s + self._full_wait_s, self._store.free_bytes())
        return _Refused(now_s + _FAULT_WAIT_S, None)


def _without_counters(record: AgentRecord) -> AgentRecord:
    return record.model_copy(update={"bytes_received": 0})
