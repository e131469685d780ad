"""What the loop knows of the world: gathered once a turn, and again only after something was done in it.

So a turn at rest looks at the run folder and at the free space once, and at no model file: what lies on disk of a
version is remembered until something may have changed it.

Not here: the record, which is the loop's own, and what follows from either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from regatta_agent.actions import Actions
from regatta_agent.clock import FlooredClock
from regatta_agent.core.facts import Facts, StoredVersion
from regatta_agent.core.installs import AgentRecord
from regatta_agent.disk.store import Store
from regatta_agent.process.trouble import Trouble
from regatta_agent.workers import WorkerPool
from regatta_protocol.errors import Exhausted
from regatta_protocol.ids import ModelRef

__all__ = ["Surroundings"]


class Surroundings:
    """The facts of the turn. Used by the loop's thread only."""

    def __init__(
        self,
        store: Store,
        workers: WorkerPool,
        actions: Actions,
        clock: FlooredClock,
        versions: Mapping[str, str],
        trouble: Trouble,
    ) -> None:
        """
        Args:
            store, workers, actions: what is looked at.
            clock: the loop's.
            versions: of runtimes, drivers and kernel.
            trouble: told when the board has nothing left to look with.
        """
        self._store = store
        self._workers = workers
        self._actions = actions
        self._clock = clock
        self._versions = versions
        self._trouble = trouble
        self._began_s = clock.monotonic()
        self._stored: dict[ModelRef, StoredVersion | None] = {}
        self._facts: Facts | None = None
        self.boot = store.boot.hex() if store.boot is not None else None  # which run of the kernel this is

    def expire(self) -> None:
        """Let what was seen be of the past: a turn has begun, or something was done."""
        self._facts = None

    def forget(self, ref: ModelRef) -> None:
        """Let what lies on disk of a version be looked at again."""
        self._stored.pop(ref, None)

    def forget_files(self) -> None:
        """Let what lies on disk of any version be looked at again."""
        self._stored.clear()

    def look(self, record: AgentRecord, *, online: bool) -> Facts | None:
        """Return the world as it was at the first look since `expire`, or None when the board cannot look now."""
        try:
            stored = self._look_at_files(record)
            if self._facts is None:
                self._facts = self._gather(record, online)
        except (OSError, Exhausted) as err:
            self._trouble.meet(f"looking at the files: {err}")
            return None
        if self._facts.stored != stored:
            self._facts = replace(self._facts, stored=stored)
        return self._facts

    def space_bytes(self) -> int:
        """Return what is free in both folders that a job writes to: with more than that, a full one is tried again."""
        return self._store.free_bytes() + self._workers.free_bytes()

    def _look_at_files(self, record: AgentRecord) -> dict[ModelRef, StoredVersion]:
        for install in record.all():
            if install.ref not in self._stored:
                self._stored[install.ref] = self._store.look(install.ref)
        return {ref: stored for ref, stored in self._stored.items() if stored is not None}

    def _gather(self, record: AgentRecord, online: bool) -> Facts:
        now_s = self._clock.monotonic()
        return Facts(
            now_s=self._clock.wall(record.time_floor),
            online=online,
            clock_unset=self._clock.is_unset(record.time_floor),
            running_s=now_s - self._began_s,
            boot=self.boot,
            free_bytes=self._store.free_bytes(),
            run_free_bytes=self._workers.free_bytes(),
            jobs=self._actions.kinds(),
            workers=self._workers.facts(now_s),
            successors=self._workers.successors(now_s),
            versions=self._versions,
            links=self._workers.links(),
            shadows=self._workers.shadows(),
            collected=self._actions.collected,
        )
