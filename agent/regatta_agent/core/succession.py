"""How a better placement takes over from the one that serves: by a second worker, and once that is ready. Pure.

Which placement that is, a new race says (rerace.py), or the wait after one was given up (boots.py). The worker that
serves is not touched before.
"""

from __future__ import annotations

from regatta_agent.core import boots
from regatta_agent.core.due import due_later
from regatta_agent.core.facts import Advance, Facts, Step, WorkerFacts
from regatta_agent.core.installs import Install, RaceSummary
from regatta_agent.core.standbys import start_of
from regatta_agent.core.states import Event

__all__ = ["succeeded"]


def succeeded(facts: Facts, install: Install, race: RaceSummary, worker: WorkerFacts) -> list[Step]:
    """Start the worker of a better placement beside the one that serves, and let it take over when it is ready."""
    fresh = {"race": race, "placement": race.placement, "degraded": None, "guarded": False, "retried": ()}
    both = (worker, facts.successors.get(install.ref))
    other = next((one for one in both if one is not None and one.candidate == race.placement), None)
    if other is None:
        serves = worker.ready and not worker.stopping and not due_later(install, facts)
        if not serves or both[1] is not None or _is_on_proof(install, race.placement):
            return []
        return boots.marked(install, race.placement, facts) or [
            start_of(install.model_copy(update=fresh), race.placement)
        ]
    if not other.ready or other.stopping:
        return []
    return [Advance(install.ref, Event.PLACED_ANEW, {**fresh, "successor": None, "deaths": 0})]


def _is_on_proof(install: Install, successor: str) -> bool:
    """Return whether what serves has not yet served for long, so that a board's end would be put down to both."""
    return install.starting is not None and install.starting.placement != successor
