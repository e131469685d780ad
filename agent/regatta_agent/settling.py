"""Plans until nothing more is to be recorded, persists, and then does what the plan says.

Invariants:
- Nothing is done about a change of the record before the change is on disk. While the disk takes none, only steps
  that need no record are carried out: workers, links, cancelling, and deleting what nobody needs.
- Planning must run out of recorded steps: a plan that goes on for ever is a bug, and ends the agent.
- What the board lacks for a while costs the plan of a turn or a step, and no more (trouble.py).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from regatta_agent.actions import Actions
from regatta_agent.clock import FlooredClock
from regatta_agent.concluding import Conclusions
from regatta_agent.core.facts import Advance, Begin, Cancel, Collect, Limits, Revise, Step
from regatta_agent.core.installs import AgentRecord
from regatta_agent.core.planner import plan
from regatta_agent.disk.keeping import Keeper
from regatta_agent.process.trouble import Trouble
from regatta_agent.surroundings import Surroundings
from regatta_agent.workers import WorkerDeath
from regatta_protocol.errors import Exhausted, Misuse

__all__ = ["Settling"]

logger = logging.getLogger(__name__)

_MAX_PLANS = 200  # in one turn; each records at least one step, and no version takes more than about 12


@dataclass(frozen=True, eq=False, repr=False)  # no value: what else it would be given is 5 KB of this process
class Settling:
    """From a record to the one that nothing more follows from now. Holds no state; used by the loop's thread only."""

    surroundings: Surroundings
    keeper: Keeper
    actions: Actions
    conclusions: Conclusions
    trouble: Trouble
    clock: FlooredClock
    limits: Limits

    def settle(self, record: AgentRecord, *, online: bool) -> AgentRecord:
        """Return the record after all that can be done now was done.

        Raises:
            Misuse: when the plan does not come to an end.
        """
        steps: list[Step] = []
        for _ in range(_MAX_PLANS):
            facts = self.surroundings.look(record, online=online)
            if facts is None:
                return record
            steps = plan(record, facts, self.limits)
            recorded = [step for step in steps if isinstance(step, Advance | Revise)]
            if recorded:
                for step in recorded:
                    record = self._applied(record, step)
                continue
            after = self._carried_out(record, steps)
            if after is record:
                return record
            record = after
        raise Misuse(f"the plan does not settle: {[str(step) for step in steps][:5]}; this is a bug of the agent")

    def _applied(self, record: AgentRecord, step: Advance | Revise) -> AgentRecord:
        before = record.find(step.ref)
        if isinstance(step, Revise):
            record = record.changed(step.ref, **step.changes)
        else:
            record = record.advanced(step.ref, step.event, **step.changes)
        after = record.find(step.ref)
        if before is not None and after is not None and before.given_up != after.given_up:
            self.conclusions.distrusted(before, after)
        if isinstance(step, Revise):
            return record
        self.surroundings.forget(step.ref)
        logger.info(
            "event=%s version=%s from=%s to=%s reason=%s",
            step.event,
            step.ref,
            before.state if before is not None else "unknown",
            after.state if after is not None else "unknown",
            step.changes.get("reason", ""),
        )
        return record

    def _carried_out(self, record: AgentRecord, steps: list[Step]) -> AgentRecord:
        """Persist, then do the steps; return another record when one of them changed it, so that it is planned anew."""
        saved = self.keeper.keep(record)
        for step in steps:
            if isinstance(step, Begin) and not saved:
                continue
            if isinstance(step, Collect) and not saved:
                step = replace(step, also=self.keeper.needed())  # a cut now goes back to what the disk knows
            self.surroundings.expire()
            try:
                now_s = self.clock.monotonic()
                result = self.actions.carry_out(step, record, self.clock.wall(record.time_floor), now_s)
            except (OSError, Exhausted) as err:
                # The steps after it may rest on it, as the end of a worker does on the link that leads elsewhere.
                self.trouble.meet(f"{type(step).__name__} of {getattr(step, 'ref', 'all')}: {err}")
                break
            if isinstance(step, Cancel | Collect):
                self.surroundings.forget_files()
            if isinstance(result, WorkerDeath):
                record = self.conclusions.mourned(record, result)
            elif result is not None:
                record = self.conclusions.concluded(record, *result)
        return record
