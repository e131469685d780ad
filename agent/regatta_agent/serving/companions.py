"""Other placements that serve beside the winner, where the policy asks for several (`pool_size`).

Each runs in a runner, so that whatever it does costs one request a moment and never the worker, and has a lane of its
own. What a companion cannot compute goes to the winner's lane, and from there on by failover. One whose runner is gone,
that failed several times in a row, or that could not be opened takes no requests until it is opened anew, after a wait
that grows with each time (core/retries.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

from regatta_agent.core.retries import RetryLimits, next_retry, of_the_last_day
from regatta_agent.serving.engine import Engine, Finished
from regatta_agent.serving.inferring import Inferences
from regatta_agent.serving.interface import ModelInterface
from regatta_agent.serving.placed import PlacedModel
from regatta_agent.serving.seat import Seat, Signature, open_seat
from regatta_agent.serving.spec import Contender, ServeSpec
from regatta_agent.serving.tensors import Array
from regatta_protocol.values import TensorSpec

__all__ = ["Companions"]

logger = logging.getLogger(__name__)

_ENGINE_QUEUE = 4  # two pieces of its lane, closing and opening


class _Seated:
    """A seat as a session that can compute several requests together."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._seat.signature.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._seat.signature.outputs

    @property
    def delegated_nodes(self) -> int:
        return self._seat.session.delegated_nodes

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        return self._seat.run(inputs)

    def run_together(self, inputs: Sequence[Array], rows: int) -> list[Array]:
        return self._seat.run_rows(inputs, rows)

    def run_each(self, stacks: Sequence[Array]) -> list[Array]:
        return self._seat.run_each(stacks)

    def close(self) -> None:
        self._seat.close()


@dataclass
class _Companion:
    """One of them: serving when it has a seat, being opened when it has neither a seat nor a time."""

    contender: Contender
    engine: Engine
    seat: Seat | None = None
    retry_at: float | None = None  # monotonic
    retried: tuple[float, ...] = ()  # seconds since 1970, of the last day

    @property
    def id(self) -> str:
        return self.contender.candidate_id


class Companions:
    """The companions of one worker. Used on the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, spec: ServeSpec, inferences: Inferences, rng: Random) -> None:
        self._loop = loop
        self._spec = spec
        self._inferences = inferences
        self._rng = rng
        limits = spec.limits
        self._limits = RetryLimits(limits.retry_base_s, limits.retry_cap_s, limits.retries_per_day)
        self._signature: Signature | None = None
        self._interface: ModelInterface | None = None
        self._all: list[_Companion] = []

    def start(self, signature: Signature, interface: ModelInterface) -> None:
        """Begin to open each; it serves when it is open and did well on the golden samples.

        Args:
            signature: the tensors that clients see.
            interface: of the winner, which answers for all.
        """
        self._signature, self._interface = signature, interface
        for contender in self._spec.companions:
            one = _Companion(contender, Engine(self._loop, _ENGINE_QUEUE, name="companion"))
            one.engine.start()
            self._all.append(one)
            self._open(one)

    def close(self, timeout_s: float) -> None:
        """End their runners, after the work at hand when that is soon over."""
        ended = [one.engine.stop(timeout_s) for one in self._all]
        if all(ended):
            for one in self._all:
                if one.seat is not None:
                    one.seat.close()

    def sweep(self) -> None:
        """Let go of those that are gone, and open those anew whose time has come. To be called twice a second."""
        for one in self._all:
            if one.seat is not None:
                if not one.seat.is_alive():
                    self._inferences.dismiss(one.id, "its runner has ended")
                if not self._inferences.has(one.id):
                    self._let_go(one, one.seat)
            elif one.retry_at is not None and time.monotonic() >= one.retry_at:
                now = time.time()
                one.retried = (*of_the_last_day(one.retried, now), now)[-self._limits.per_day :]
                one.retry_at = None
                self._open(one)

    def _open(self, one: _Companion) -> None:
        one.engine.submit(
            lambda: open_seat(one.contender, self._spec, self._signature, guarded=True)[0], partial(self._opened, one)
        )

    def _opened(self, one: _Companion, finished: Finished[Seat]) -> None:
        seat = finished.value
        if seat is None:
            logger.warning("event=no_companion candidate=%s error=%s", one.id, finished.error)
            self._wait(one)
            return
        assert self._interface is not None
        one.seat = seat
        latency = one.contender.latency
        expected_ns = None if latency is None else int(latency.p50_us * 1000)
        placed = PlacedModel(_Seated(seat), self._interface)
        self._inferences.add(one.id, placed, one.engine, expected_ns=expected_ns)
        logger.info("event=companion candidate=%s", one.id)

    def _let_go(self, one: _Companion, seat: Seat) -> None:
        one.seat = None
        one.engine.submit(seat.close, lambda _: None)  # behind the requests that it still has
        self._wait(one)

    def _wait(self, one: _Companion) -> None:
        now = time.time()
        one.retry_at = time.monotonic() + next_retry(one.retried, now, self._rng, self._limits) - now
