"""Which ways of running a model crashed too often to be tried again, until library, runtime or model changes.

Pure. A *pair* is what a crash is about: the delegate's library (by content) with its options,
the runtime with its version, and the model file (by content). Any change of these makes another pair, so nothing has
to expire: a new driver is tried as a matter of course. An inference that succeeds clears its pair.
"""

from __future__ import annotations

import hashlib
import json

from pydantic import Field

from regatta_protocol.measurement import CandidateResult, Outcome
from regatta_protocol.wire import Wire
from regatta_runtimes.candidate import Candidate

__all__ = ["MAX_STRIKES", "Ledger", "Quarantine", "Strikes", "pair_of"]

MAX_STRIKES = 2  # one crash may be chance: another program took the memory, a cable was loose
MAX_PAIRS = 256  # remembered; the oldest are forgotten first, and are then tried again
_STRIKING = frozenset({Outcome.CRASHED, Outcome.HUNG})  # a memory limit ends a worker cleanly, and may be raised
_CLEARING = frozenset({Outcome.MEASURED, Outcome.DROPPED, Outcome.INACCURATE})  # it ran, and ended well


class Strikes(Wire):
    """How often a pair crashed in a row, and the last time in words."""

    count: int = Field(ge=1)
    candidate: str
    reason: str = Field(max_length=300)


class Quarantine(Wire):
    """Every pair that crashed and has not run since, the oldest first."""

    schema_version: int = 1
    pairs: dict[str, Strikes] = Field(default_factory=dict)

    def refuses(self, pair: str) -> str | None:
        """Return why the pair is not tried, or None."""
        strikes = self.pairs.get(pair)
        if strikes is None or strikes.count < MAX_STRIKES:
            return None
        return (
            f"quarantined after {strikes.count} crashes with this model (the last, of {strikes.candidate}: "
            f"{strikes.reason}); it is tried again when the library, the runtime or the model changes, or after "
            "`regatta-agent quarantine clear`"
        )

    def struck(self, pair: str, candidate: str, reason: str) -> Quarantine:
        """Return the quarantine after the pair crashed once more."""
        before = self.pairs.get(pair)
        count = 1 if before is None else before.count + 1
        others = {key: strikes for key, strikes in self.pairs.items() if key != pair}
        kept = dict(list(others.items())[-(MAX_PAIRS - 1) :])
        return self.model_copy(
            update={"pairs": {**kept, pair: Strikes(count=count, candidate=candidate, reason=reason[:300])}}
        )

    def cleared(self, pair: str) -> Quarantine:
        """Return the quarantine after the pair ran well."""
        if pair not in self.pairs:
            return self
        return self.model_copy(update={"pairs": {key: one for key, one in self.pairs.items() if key != pair}})

    def after(self, results: tuple[CandidateResult, ...]) -> Quarantine:
        """Return the quarantine after a race; of the candidates of one pair a crash outweighs a success."""
        crashed = {result.pair for result in results if result.outcome in _STRIKING}
        quarantine = self
        for result in results:
            if result.pair is None:
                continue
            if result.outcome in _STRIKING:
                quarantine = quarantine.struck(result.pair, result.id, result.reason or str(result.outcome))
            elif result.outcome in _CLEARING and result.pair not in crashed:
                quarantine = quarantine.cleared(result.pair)
        return quarantine


def pair_of(candidate: Candidate, library: str | None, runtime_version: str, model_digest: str) -> str:
    """Return the name of the pair: the SHA-256 of what makes it, in hex.

    Args:
        library: digest of the delegate's library; None where the runtime brings the delegate itself.
    """
    parts = {
        "delegate": candidate.delegate if library is None else library,
        "options": dict(sorted(candidate.plugin.options.items())) if candidate.plugin is not None else {},
        "runtime": f"{candidate.runtime} {runtime_version}",
        "model": model_digest,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Ledger:
    """The quarantine during one race: a pair that crashes twice in it is not tried a third time."""

    def __init__(self, quarantine: Quarantine) -> None:
        self._quarantine = quarantine

    def refuses(self, pair: str | None) -> str | None:
        """Return why the pair is not tried, or None."""
        return None if pair is None else self._quarantine.refuses(pair)

    def note(self, pair: str | None, candidate: str, outcome: Outcome, reason: str) -> None:
        """Take down how a candidate of the pair ended."""
        if pair is not None and outcome in _STRIKING:
            self._quarantine = self._quarantine.struck(pair, candidate, reason)
