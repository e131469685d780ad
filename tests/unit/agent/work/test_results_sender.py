"""When outputs are sent to the fleet: with leave, one at a time, beside no race, and with back-off after a failure."""

from __future__ import annotations

import queue
from pathlib import Path
from random import Random
from typing import Literal, NoReturn

import pytest

from regatta_agent.core.facts import Limits
from regatta_agent.events import Event
from regatta_agent.testing import ScriptedChild, ScriptedLauncher
from regatta_agent.work.results_sender import ResultsSender, SendingSaid, SendingSettings, SendingSpec
from regatta_protocol.batch import BatchJob, ResultsReport, ResultsState, ResultsWanted
from regatta_protocol.codec import encode
from regatta_protocol.ids import ModelName
from regatta_protocol.traffic import Cause, Ledger

_S = ResultsState


def wanted(*numbers: int) -> tuple[ResultsWanted, ...]:
    jobs = (BatchJob(id=f"b-{one}", model=ModelName("m"), input="/in", output=f"{one}.csv") for one in numbers)
    return tuple(ResultsWanted(job=job, max_bytes=1000) for job in jobs)


class Rig:
    """A sender over scripted children, and a clock."""

    def __init__(
        self,
        when: Literal["never", "unmetered", "always"] = "unmetered",
        *,
        metered: bool = False,
        folder: Path | None = Path("/out"),
    ) -> None:
        self.inbox: queue.Queue[Event] = queue.Queue()
        self.launcher = ScriptedLauncher(self.inbox, _unused, _unused)
        self.ledger = Ledger()
        self.begun: list[str] = []
        self.launcher.sending = lambda _child, spec: self.begun.append(spec.wanted.job.id)
        settings = SendingSettings(folder, when, metered, Path("/identity"))
        limits = Limits(max_attempts=3, backoff_base_s=2.0, backoff_cap_s=300.0)
        self.sender = ResultsSender(self.launcher, settings, limits, self.ledger, Random(3), "boot")
        self.now_s = 0.0

    def turn(self, asked: tuple[ResultsWanted, ...], racing: str | None = None, online: bool = True) -> None:
        while not self.inbox.empty():
            self.sender.handle(self.inbox.get(), self.now_s)
        self.sender.follow(asked, self.now_s, online=online, racing=racing)

    def child(self) -> ScriptedChild:
        (found,) = self.launcher.alive("sending-")
        return found

    def told(self) -> dict[str, ResultsReport]:
        return {one.id: one for one in self.sender.reports()}


def _unused(*_arguments: object) -> NoReturn:
    raise AssertionError("only outputs are sent here")


def test_outputs_are_sent_in_turn_and_what_they_cost_is_counted() -> None:
    """One after the other; a sent one waits for the fleet's word, and is forgotten with the next assignment."""
    rig = Rig()
    rig.turn(wanted(1, 2))
    assert rig.begun == ["b-1"] and rig.told()["b-1"].state is _S.SENDING
    rig.child().say(encode(SendingSaid(sent_bytes=9, size_bytes=9, wire_sent=2000, wire_received=700)))
    rig.child().end(0)
    rig.turn(wanted(1, 2))

    assert rig.begun == ["b-1", "b-2"]
    assert "the fleet has it" in (rig.told()["b-1"].reason or "")
    assert rig.ledger.totals()[Cause.RESULTS] == (2000, 700)
    rig.child().end(0)
    rig.turn(())
    assert rig.told() == {}


@pytest.mark.parametrize(
    ("rig", "words"),
    [
        (Rig(folder=None), "batch_folder is not set"),
        (Rig("never"), 'batch_results = "never"'),
        (Rig(metered=True), "metered"),
    ],
)
def test_without_leave_nothing_is_read(rig: Rig, words: str) -> None:
    """The refusal names the key of agent.toml."""
    rig.turn(wanted(1))

    assert rig.begun == []
    told = rig.told()["b-1"]
    assert told.state is _S.REFUSED and words in (told.reason or "")


def test_a_metered_link_is_used_where_the_operator_says_so() -> None:
    """And no link while there is none."""
    rig = Rig("always", metered=True)
    rig.turn(wanted(1), online=False)
    assert rig.begun == []

    rig.turn(wanted(1))

    assert rig.begun == ["b-1"]


def test_a_race_or_a_withdrawal_ends_it_and_costs_no_attempt() -> None:
    """Killed for a race it waits and goes on after it; withdrawn it is forgotten."""
    rig = Rig()
    rig.turn(wanted(1))
    first = rig.child()
    rig.turn(wanted(1), racing="m:2")
    assert first.ended
    rig.turn(wanted(1), racing="m:2")
    assert rig.told()["b-1"].reason == "waiting: m:2 is being raced"
    rig.turn(wanted(1))
    assert rig.begun == ["b-1", "b-1"]

    second = rig.child()
    rig.turn(())
    assert second.ended
    rig.turn(())
    assert rig.told() == {} and rig.launcher.alive("sending-") == []


def test_failures_are_tried_again_later_and_not_for_ever() -> None:
    """With full jitter under a doubling cap; tries that bring something further do not count."""
    rig = Rig()

    def fail(child: ScriptedChild, spec: SendingSpec) -> None:
        rig.begun.append(spec.wanted.job.id)
        child.say(encode(SendingSaid(sent_bytes=5, size_bytes=9)))
        if len(rig.begun) == 2:
            child.say(encode(SendingSaid(sent_bytes=7, size_bytes=9)))
        child.end(75, "no answer")

    rig.launcher.sending = fail
    for _ in range(200):
        rig.turn(wanted(1))
        rig.now_s += 1.0

    told = rig.told()["b-1"]
    assert len(rig.begun) == 4  # the second came further, so three more in a row are allowed: it counts as the first
    assert told.state is _S.REFUSED and "no answer; given up after 3 attempts" in (told.reason or "")


def test_another_order_is_begun_anew() -> None:
    """Refused before, it is tried again; on its way, it is left: also without an assignment between the two orders."""
    rig = Rig()
    rig.launcher.sending = lambda child, _spec: child.end(65, "it was removed")
    rig.turn(wanted(1))
    rig.turn(wanted(1))
    assert rig.told()["b-1"].state is _S.REFUSED
    rig.launcher.sending = lambda _child, spec: rig.begun.append(spec.wanted.job.id)
    again = tuple(one.model_copy(update={"asked": 7}) for one in wanted(1))
    rig.turn(again)
    assert rig.begun == ["b-1"]

    first = rig.child()
    rig.turn(wanted(1))
    assert first.ended
    rig.turn(wanted(1))
    assert rig.begun == ["b-1", "b-1"]


def test_what_cannot_succeed_fails_the_first_time() -> None:
    """With the last line that the child wrote."""
    rig = Rig()
    rig.launcher.sending = lambda child, _spec: child.end(65, "Traceback\nit was removed or replaced")
    rig.turn(wanted(1))
    rig.turn(wanted(1))

    told = rig.told()["b-1"]
    assert (told.state, told.reason) == (_S.REFUSED, "it was removed or replaced")
