"""Keeps the record on disk as it changes, and leaves a disk alone that refuses it (patience.py says how long).

Nothing here decides what happens meanwhile: `keep` says whether the disk has the record, and `told` what the fleet may
hear of one that the disk does not have: what a restart would come back to, and why.
"""

from __future__ import annotations

import logging

from regatta_agent.clock import Clock
from regatta_agent.core.installs import AgentRecord
from regatta_agent.core.states import IN_PROGRESS
from regatta_agent.disk.patience import Patience
from regatta_agent.disk.record import UNSAVED_REPORTS, RecordFile
from regatta_agent.disk.store import Store
from regatta_agent.reporting import as_on_disk
from regatta_protocol.errors import StorageFull
from regatta_protocol.ids import ModelRef
from regatta_protocol.messages import InstallState

__all__ = ["Keeper"]

logger = logging.getLogger(__name__)

_NEEDED = IN_PROGRESS | {InstallState.COMMITTED}


class Keeper:
    """The record as the disk has it. Used by the loop's thread only."""

    def __init__(self, file: RecordFile, store: Store, clock: Clock, full_wait_s: float) -> None:
        self._file = file
        self._store = store
        self._clock = clock
        self._patience = Patience(full_wait_s)
        self._on_disk = AgentRecord()
        self._kept: AgentRecord | None = None  # what this process put there
        self._refused: str | None = None  # why the disk does not have what it shall have
        self._last_number = 0  # that a report may have before the record is saved again

    def load(self, first_number: int) -> AgentRecord:
        """Return what was last kept, or an empty record; a damaged file is put aside.

        Its reports are counted above all that went out before, saved or not: above what was saved, and from
        `first_number`, the time in ms, on, so that a device that starts again and again on a full disk is heard, too.
        """
        self._kept = None
        self._on_disk = self._file.load(set_aside=True)
        before = self._on_disk.report_sequence
        number = max(before + UNSAVED_REPORTS if before > 0 else 0, first_number)
        self._last_number = number + UNSAVED_REPORTS
        return self._on_disk.model_copy(update={"report_sequence": number})

    def needed(self) -> frozenset[ModelRef]:
        """Return the versions whose files the record on disk counts on."""
        return frozenset(one.ref for one in self._on_disk.all() if one.state in _NEEDED or one.committed_at is not None)

    def keep(self, record: AgentRecord) -> bool:
        """Persist the record when it differs from what is on disk; return whether the disk has it."""
        same = self._kept is not None and _without_counters(self._kept) == _without_counters(record)
        if same and self.may_number(record):
            return True
        patience, now_s = self._patience, self._clock.monotonic()
        if patience.tried and not patience.may_ask(now_s, self._store.free_bytes()):
            return False
        try:
            self._file.save(record)
        except (StorageFull, OSError) as err:
            if not patience.tried:
                logger.error("event=record_not_saved error=%s action=nothing_new_is_begun", err)
            patience.refused(err, now_s, self._store.free_bytes())
            self._refused = str(err)
            return False
        if patience.tried:
            logger.info("event=record_saved_again")
        patience.obeyed()
        self._refused = None
        self._last_number = record.report_sequence + UNSAVED_REPORTS
        self._kept = self._on_disk = record
        return True

    def told(self, record: AgentRecord) -> AgentRecord:
        """Return what the fleet may hear of the record: all of it, or, when the disk refuses it, what the disk has."""
        return record if self._refused is None else as_on_disk(record, self._on_disk, self._refused)

    def may_number(self, record: AgentRecord) -> bool:
        """Return whether a report may go out under the record's number although the disk has a smaller one."""
        return record.report_sequence <= self._last_number


def _without_counters(record: AgentRecord) -> AgentRecord:
    return record.model_copy(update={"bytes_received": 0, "report_sequence": 0})
