"""The way of requests to one placement: they wait by priority, and go to its engine a few at a time.

The queue is kept on the loop and not in the engine, so that priorities and deadlines hold until the last moment; the
engine has one piece of work in hand and one to go on with, for handing over costs two wake-ups. A piece is one request,
or as many as may be computed together.

Work that has been brief of late is not handed over at all: the loop's thread computes it, in *turns*. The first request
that comes is computed at once; what comes with it waits until all that is there has been read, and is then worked off
by priority for about a millisecond, after which the loop looks for what has come meanwhile. So under load, too, no
request pays for a wake-up, and a health check waits for one turn at most. For a client that asks alone this holds for
work of a few milliseconds, too: with nobody beside it, nothing could be read or answered meanwhile.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

from regatta_agent.serving.engine import Engine, Finished
from regatta_agent.serving.waiting import Waiting

__all__ = ["Batches", "Expired", "Lane", "Ticket"]

_IN_HAND = 2  # pieces of work that the engine's thread is given: one runs, one is next
_MEMORY = 8  # the mean forgets with this many pieces, so one slow piece is soon forgotten
_UNMEASURED_NS = 1_000_000
_FORGIVES_NS = 5_000_000_000  # of having had nothing to do halve what a lane's time is thought to be
_TURN_NS = 1_000_000  # of computing before the loop looks around: some ten requests of a small model share its cost
_ALONE = 8  # requests one after the other that found nobody waiting: that client asks alone
_LONE_FACTOR = 5  # so much longer may its work keep the loop
_IS_BRIEF, _DEADLINE = attrgetter("brief"), attrgetter("deadline_ns")


class Ticket(Protocol):
    """A request that waits."""

    @property
    def priority(self) -> int: ...

    @property
    def deadline_ns(self) -> int | None:
        """time.perf_counter_ns after which it is not computed any more."""

    @property
    def brief(self) -> bool:
        """Whether it may be computed on the loop's thread when such work is brief."""


T = TypeVar("T", bound=Ticket)
R = TypeVar("R")


class Expired(Exception):
    """The deadline of a request passed before its turn came."""


@dataclass(frozen=True)
class Batches:
    """How many requests may be computed together, and how long one may wait for others to join it."""

    most: int
    delay_ns: int = 0


class Lane(Generic[T, R]):
    """The queue of one engine. Used on the loop's thread only."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        engine: Engine,
        compute: Callable[[Sequence[T]], Sequence[R | Exception]],
        finish: Callable[[T, R | Exception, int], None],
        *,
        expected_ns: int | None = None,
        brief_ns: int = 0,
    ) -> None:
        """Keep who computes and who is told.

        Args:
            loop: whose thread uses it.
            engine: for this lane's work alone, but for what its caretaker asks.
            compute: returns what came of each request, in order; called on the engine's thread, or the loop's.
            finish: told on the loop of each request, what came of it (`Expired` included) and when computing began.
            expected_ns: how long a request is thought to take until that is measured.
            brief_ns: a piece that is expected to take less may be computed on the loop's thread, and one of five times
                that for a client that asks alone; 0: none ever is.
        """
        self._loop = loop
        self._engine = engine
        self._compute = compute
        self._finish = finish
        self._least_brief_ns = brief_ns
        self._alone = 0  # requests of late that found nobody here
        self._waiting: Waiting[T] = Waiting()
        self._timer: asyncio.TimerHandle | None = None
        self._in_hand = 0  # pieces that the engine's thread was given
        self._turn_is_due = False  # the loop's thread has computed enough for now, and goes on soon
        self._turn_ends_ns: int | None = None  # while it computes what waits
        self.pending = 0  # requests that wait or are computed
        self._mean_ns = expected_ns or _UNMEASURED_NS  # of a request, exponentially weighted
        self._measured_ns = time.perf_counter_ns()  # when it last was
        self._oldest_ns = 0  # since when the first of those that wait for company has waited
        self.batches: Batches | None = None  # None: one by one

    @property
    def mean_ns(self) -> int:
        """How long a request takes, of late."""
        return self._mean_ns

    def delay_ns(self, more: int = 1) -> float:
        """Return how long `more` requests on top of the pending ones are expected to take until the last is done."""
        return (self.pending + more) * self._mean_ns

    def hoped_ns(self, now_ns: int) -> float:
        """Return how long one request more may take when what was measured long ago has changed since.

        A lane that has nothing to do is not measured, either: one bad moment, and it would never be chosen again. So
        its time is thought to be half as long for every five seconds of that.
        """
        if self.pending:
            return self.delay_ns()
        return float(self._mean_ns * 0.5 ** ((now_ns - self._measured_ns) / _FORGIVES_NS))

    def retry_after_s(self) -> int:
        """Return after how many whole seconds the queue is expected to have been worked off; at least 1."""
        return max(1, math.ceil(self.delay_ns(0) / 1e9))

    def put(self, ticket: T) -> None:
        """Compute `ticket` when its turn comes."""
        self._alone = 0 if self.pending else self._alone + 1
        self.pending += 1
        waits_for_company = self.batches is not None and self.batches.delay_ns > 0
        takes_turn = self._turn_ends_ns is not None  # and an answer of it has let the next request of its client in
        if self._has_room and not (self._waiting or waits_for_company or takes_turn):
            self._give([ticket])
            return
        if not self._waiting:
            self._oldest_ns = time.perf_counter_ns()
        self._waiting.put(ticket, ticket.priority, ticket.deadline_ns)
        if not takes_turn:
            self._go_on()

    def _go_on(self) -> None:
        """Give the engine what it can take, and refuse what came too late."""
        now_ns = time.perf_counter_ns()
        for ticket in self._waiting.expire(now_ns):
            self.pending -= 1
            self._finish(ticket, Expired(), now_ns)
        while self._waiting and self._has_room and self._company_has_come(now_ns):
            self._give(self._waiting.take(1 if self.batches is None else self.batches.most))
        self._set_timer(now_ns)

    @property
    def _brief_ns(self) -> int:
        return self._least_brief_ns * (_LONE_FACTOR if self._alone >= _ALONE else 1)

    @property
    def _has_room(self) -> bool:
        """Whether the engine can be given a piece.

        Of batches its thread has one in hand, for what gathers meanwhile is the next; of brief work too, for the
        loop's thread goes on with it.
        """
        alone = self.batches is not None or self._mean_ns < self._brief_ns
        return self._in_hand < (1 if alone else _IN_HAND) and not self._turn_is_due

    def _company_has_come(self, now_ns: int) -> bool:
        batches = self.batches
        if batches is None or batches.delay_ns == 0 or len(self._waiting) >= batches.most:
            return True
        return now_ns - self._oldest_ns >= batches.delay_ns

    def _set_timer(self, now_ns: int) -> None:
        """Come back when a deadline passes, or when a batch has waited long enough for others."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        times = [] if self._waiting.soonest_ns is None else [self._waiting.soonest_ns]
        if self._waiting and self.batches is not None and self.batches.delay_ns > 0 and self._in_hand == 0:
            times.append(self._oldest_ns + self.batches.delay_ns)
        if times:
            self._timer = self._loop.call_later(max(0, min(times) - now_ns) / 1e9 + 1e-6, self._go_on)

    def _give(self, tickets: list[T]) -> None:
        """Have a piece computed: at once when it is brief and nobody else is at the engine, else by its thread."""
        is_brief = len(tickets) * self._mean_ns < self._brief_ns and all(map(_IS_BRIEF, tickets))
        if is_brief and not self._engine.pending:
            finished = self._engine.perform(partial(self._work, tickets))
            if self._turn_ends_ns is None or finished.ended_ns >= self._turn_ends_ns:
                self._turn_is_due = True
                self._loop.call_soon(self._take_turn)
            self._count(tickets, finished)
            self._tell(tickets, finished)
            return
        self._in_hand += 1
        accepted = self._engine.submit(partial(self._work, tickets), partial(self._done, tickets))
        assert accepted, "the engine has room for what is in hand: this is a bug"

    def _take_turn(self) -> None:
        """Compute what waits, for a while; whatever could be read before has been."""
        self._turn_is_due = False
        if self._waiting:
            self._turn_ends_ns = time.perf_counter_ns() + _TURN_NS
            self._go_on()
            self._turn_ends_ns = None

    def _work(self, tickets: list[T]) -> Sequence[R | Exception]:
        """Return what comes of each request; on the thread that computes."""
        if not any(map(_DEADLINE, tickets)):
            return self._compute(tickets)
        now_ns = time.perf_counter_ns()
        late = [one.deadline_ns is not None and one.deadline_ns <= now_ns for one in tickets]
        timely = [one for one, is_late in zip(tickets, late, strict=True) if not is_late]
        results = iter(self._compute(timely) if timely else ())
        return [Expired() if is_late else next(results) for is_late in late]

    def _done(self, tickets: list[T], finished: Finished[Sequence[R | Exception]]) -> None:
        """Take a piece back from the engine's thread."""
        self._in_hand -= 1
        self._count(tickets, finished)
        if self._waiting:
            self._go_on()  # before answering, which would keep the engine waiting
        self._tell(tickets, finished)

    def _count(self, tickets: list[T], finished: Finished[Sequence[R | Exception]]) -> None:
        self.pending -= len(tickets)
        if all(isinstance(result, Exception) for result in finished.value or ()):
            return  # all were refused, or failed: that says nothing of how long the next will take
        each_ns = (finished.ended_ns - finished.began_ns) // len(tickets)
        rested = finished.ended_ns - self._measured_ns >= _FORGIVES_NS
        self._measured_ns = finished.ended_ns
        if rested and each_ns < self._mean_ns:  # after a rest, better news is believed at once
            self._mean_ns = each_ns
        else:
            self._mean_ns += (each_ns - self._mean_ns) // _MEMORY

    def _tell(self, tickets: list[T], finished: Finished[Sequence[R | Exception]]) -> None:
        failed = None if finished.error is None else [finished.error] * len(tickets)
        results: Sequence[R | Exception] = failed or finished.value or ()
        for ticket, result in zip(tickets, results, strict=True):
            self._finish(ticket, result, finished.began_ns)
