"""Has the outputs of ended batch jobs sent to the fleet, one at a time, as the device's assignment asks.

What is asked for lies in the record's assignment, and how much of it has arrived is known to the fleet: nothing else
needs to survive a restart. The child (batch/sending.py) reads and sends; here it is only started, ended and listened
to. Without leave of the device's operator, and on a metered link by default, it is refused. None is sent beside a race,
which would measure it too. Tries in a row that bring nothing further are bounded.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Literal

from regatta_agent.core.facts import Limits
from regatta_agent.events import ChildEnded, ChildLine, Event
from regatta_agent.work.children import Child, Launcher
from regatta_protocol.batch import ResultsReport, ResultsState, ResultsWanted
from regatta_protocol.codec import decode, encode
from regatta_protocol.errors import Misuse, Rejected, Untrusted
from regatta_protocol.traffic import Amount, Cause, Ledger
from regatta_protocol.wire import Wire

__all__ = ["ResultsSender", "SendingSaid", "SendingSettings", "SendingSpec", "WhenToSend"]

logger = logging.getLogger(__name__)

_FINAL = (Rejected.exit_code, Untrusted.exit_code, Misuse.exit_code)

WhenToSend = Literal["never", "unmetered", "always"]


class SendingSpec(Wire):
    """What the child is given on its standard input."""

    wanted: ResultsWanted
    folder: Path  # the operator's batch_folder
    identity: Path  # the folder of this device's identity
    parent: int  # the agent's process id: the child ends with it


class SendingSaid(Wire):
    """A line of the child: what the fleet has, and what was spent on the wire since the line before."""

    sent_bytes: int
    size_bytes: int
    wire_sent: int = 0
    wire_received: int = 0


@dataclass(frozen=True)
class SendingSettings:
    """What the device's operator allows, and where things are."""

    folder: Path | None
    when: WhenToSend
    metered: bool
    identity: Path

    def refusal(self) -> str | None:
        """Return why nothing is sent from this device, or None."""
        if self.folder is None:
            return "this device lets its fleet run no batch jobs: batch_folder is not set in its agent.toml"
        if self.when == "never":
            return 'this device sends no results: batch_results = "never" in its agent.toml'
        if self.metered and self.when != "always":
            return 'this device is on a metered link: its operator allows it by batch_results = "always" in agent.toml'
        return None


@dataclass(frozen=True)
class _Standing:
    """How one output stands."""

    wanted: ResultsWanted
    state: ResultsState = ResultsState.WANTED
    reason: str | None = None
    attempt: int = 0  # in a row that brought nothing further
    next_s: float = 0.0  # monotonic, not before
    sent_bytes: int = 0  # that the fleet has had, as far as is known here


class ResultsSender:
    """Used by the loop's thread only."""

    def __init__(
        self, launcher: Launcher, settings: SendingSettings, limits: Limits, ledger: Ledger, rng: Random, boot: str
    ) -> None:
        self._launcher = launcher
        self._settings = settings
        self._limits = limits
        self._ledger = ledger
        self._rng = rng
        self._boot = boot
        self._standings: dict[str, _Standing] = {}
        self._count = 0
        self._child: Child | None = None
        self._name = ""
        self._sending: ResultsWanted | None = None  # the child's, or the last child's
        self._doomed = False  # it was killed, and its end has not been heard of yet

    def follow(self, wanted: Sequence[ResultsWanted], now_s: float, *, online: bool, racing: str | None) -> None:
        """Let the child be that of the first output that is due, or let there be none; `now_s` is monotonic."""
        self._standings = {one.job.id: self._known(one) for one in wanted}
        if self._child is not None:
            if not self._doomed and (racing is not None or self._mine() is None):
                self._child.kill()
                self._doomed = True
            return
        refusal = self._settings.refusal()
        for standing in list(self._standings.values()):
            if standing.state is ResultsState.REFUSED:
                continue
            if refusal is not None:
                self._stand(replace(standing, state=ResultsState.REFUSED, reason=refusal))
            elif racing is not None:
                self._stand(replace(standing, reason=f"waiting: {racing} is being raced"))
            elif online and now_s >= standing.next_s:
                self._start(standing, now_s)
                return

    def handle(self, event: Event, now_s: float) -> None:
        """Take in what the child said, or that it ended."""
        if self._child is None or not isinstance(event, ChildLine | ChildEnded) or event.child != self._name:
            return
        if isinstance(event, ChildLine):
            self._hear(event)
        else:
            self._ended(event, now_s)

    def reports(self) -> tuple[ResultsReport, ...]:
        """Return what the fleet is told."""
        return tuple(ResultsReport(id=job, state=one.state, reason=one.reason) for job, one in self._standings.items())

    def cancel(self) -> None:
        """Leave nothing running."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _known(self, wanted: ResultsWanted) -> _Standing:
        standing = self._standings.get(wanted.job.id)
        return standing if standing is not None and standing.wanted == wanted else _Standing(wanted)

    def _mine(self) -> _Standing | None:
        """Return how the output stands that the child is for; None: it is asked for no more, or by another order."""
        return next((one for one in self._standings.values() if one.wanted == self._sending), None)

    def _stand(self, standing: _Standing) -> None:
        self._standings[standing.wanted.job.id] = standing

    def _start(self, standing: _Standing, now_s: float) -> None:
        folder, wanted = self._settings.folder, standing.wanted
        if folder is None:
            raise Misuse(f"the results of {wanted.job.id} are sent without leave: this is a bug of the agent")
        spec = SendingSpec(wanted=wanted, folder=folder, identity=self._settings.identity, parent=os.getpid())
        self._count += 1
        self._name, self._sending = f"sending-{self._boot[:8]}-{self._count}", wanted
        self._doomed = False
        argv = [sys.executable, "-m", "regatta_agent.batch.sending"]
        standing = replace(standing, state=ResultsState.SENDING, reason=None, attempt=standing.attempt + 1)
        try:
            self._child = self._launcher.launch(self._name, argv, encode(spec))
        except OSError as err:
            self._failed(standing, f"its process cannot be started: {err}", now_s)
            return
        logger.info("event=results_begun job=%s attempt=%d", wanted.job.id, standing.attempt)
        self._stand(standing)

    def _hear(self, event: ChildLine) -> None:
        try:
            said = decode(SendingSaid, event.line)
        except Rejected as err:
            logger.warning("event=sending_said_nonsense child=%s error=%s", self._name, err)
            return
        self._ledger.add(Cause.RESULTS, Amount(said.wire_sent, said.wire_received))
        standing = self._mine()
        if standing is not None and said.sent_bytes > standing.sent_bytes:
            self._stand(replace(standing, attempt=1, sent_bytes=said.sent_bytes))

    def _ended(self, event: ChildEnded, now_s: float) -> None:
        self._child = None
        standing = self._mine()
        if standing is None:
            return
        if self._doomed:
            self._stand(replace(standing, state=ResultsState.WANTED, attempt=max(0, standing.attempt - 1)))
        elif event.status == 0:
            # The fleet has it, and its next assignment asks for it no more. Should that fail, it is offered once more.
            next_s = now_s + self._limits.backoff_cap_s
            self._stand(_Standing(standing.wanted, reason="sent: the fleet has it", next_s=next_s))
            logger.info("event=results_sent job=%s bytes=%d", standing.wanted.job.id, standing.sent_bytes)
        elif event.status in _FINAL:
            last = event.errors.strip().splitlines()[-1:]
            self._refuse(standing, last[0][:300] if last else event.describe())
        else:
            self._failed(standing, event.describe(), now_s)

    def _refuse(self, standing: _Standing, why: str) -> None:
        logger.warning("event=results_refused job=%s reason=%s", standing.wanted.job.id, why)
        self._stand(replace(standing, state=ResultsState.REFUSED, reason=why))

    def _failed(self, standing: _Standing, why: str, now_s: float) -> None:
        """Wait for the next try, as for the jobs of a version (core/outcomes.py), or give up."""
        limits = self._limits
        if standing.attempt >= limits.max_attempts:
            self._refuse(standing, f"{why}; given up after {standing.attempt} attempts")
            return
        wait_s = limits.retry_wait_s(standing.attempt, self._rng)
        reason = f"attempt {standing.attempt} of {limits.max_attempts}: {why}; next in {wait_s:.0f} s"
        logger.warning("event=results_not_sent job=%s reason=%s", standing.wanted.job.id, reason)
        self._stand(replace(standing, state=ResultsState.WANTED, reason=reason, next_s=now_s + wait_s))
