"""The session that a worker serves from: the winner, and the next best one the moment that the winner fails.

A request that the serving candidate fails is computed by a standby and answered; only then do they change places, so
that a request which no candidate can compute degrades nothing. Slow things (opening, retrying, comparing) are
caretaker.py's. When what serves is gone and there is no standby, the session is `lost`, and the worker ends for
another to begin. Everything here but `stuck_s` and `lost` is called on the engine's thread alone, one call at a time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from regatta_agent.serving.events import SelfTest
from regatta_agent.serving.guarded import RunnerLost
from regatta_agent.serving.seat import Seat, Signature, is_guarded, open_seat
from regatta_agent.serving.spec import Contender, ServeSpec
from regatta_agent.serving.tensors import Array
from regatta_protocol.errors import Misuse, RegattaError
from regatta_protocol.values import TensorSpec
from regatta_runtimes.errors import InvokeFailed
from regatta_runtimes.worker.session import samples_of

__all__ = ["Failover", "Opened", "Switch", "open_failover"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Switch:
    """A change of places. `reason` is None when the winner serves again."""

    winner: str
    placement: str
    reason: str | None
    at: float  # seconds since 1970
    crashed: bool = False  # the winner's runner crashed or hung


@dataclass(frozen=True)
class Opened:
    """How the session that serves first did on the golden samples, and why it is not the winner's if it is not."""

    self_test: SelfTest
    degraded: str | None
    crashed: bool = False  # the winner's runner crashed or hung while it was opened


class Failover:
    """A Session over the winner and its standbys."""

    def __init__(
        self, spec: ServeSpec, serving: Seat, on_switch: Callable[[Switch], None], on_slow: Callable[[], None]
    ) -> None:
        """Serve from `serving`.

        Args:
            spec: of the worker.
            serving: the winner, or the standby that serves from the start.
            on_switch: told of every change of places, on the thread where it happens.
            on_slow: told when what serves has become slow.
        """
        self._spec = spec
        self._on_switch = on_switch
        self._on_slow = on_slow
        self.serving = serving
        self.ready: Seat | None = None  # a standby that is held ready
        self.lost: str | None = None  # why nothing can serve any more in this process

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.serving.signature.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.serving.signature.outputs

    @property
    def signature(self) -> Signature:
        """The tensors that clients see, whoever serves."""
        return self.serving.signature

    @property
    def delegated_nodes(self) -> int:
        return self.serving.session.delegated_nodes

    @property
    def is_degraded(self) -> bool:
        """Whether another than the winner serves."""
        return self.serving.id != self._spec.candidate_id

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Return the outputs, of the next best candidate when the serving one fails; see Session.

        Raises:
            InvokeFailed: when no candidate can compute them; none changed places then, unless what serves is gone.
        """
        seat = self.serving
        try:
            outputs = seat.run(inputs)
        except InvokeFailed as err:
            return self._run_elsewhere(inputs, err)
        if seat.pace.add(seat.compute_ns, time.monotonic_ns()):
            self._on_slow()
        return outputs

    def run_together(self, inputs: Sequence[Array], rows: int) -> list[Array]:
        """Return the outputs for the inputs of several requests joined, of what serves and of nobody else.

        Raises:
            InvokeFailed: when it fails; nobody changes places then, and each request is to be run alone.
        """
        return self.serving.run_rows(inputs, rows)

    def run_each(self, stacks: Sequence[Array]) -> list[Array]:
        """Return each output of many samples, [n, …], computed one after another; see Seat.run_each and run.

        Raises:
            InvokeFailed: when no candidate can compute one of them.
        """
        seat = self.serving
        try:
            outputs = seat.run_each(stacks)
        except InvokeFailed as err:
            logger.warning("event=stack_failed samples=%d error=%s", len(stacks[0]), err)
            answers = [self.run(sample) for sample in samples_of(stacks)]
            return [np.concatenate(column) for column in zip(*answers, strict=True)]
        if seat.pace.add(seat.compute_ns, time.monotonic_ns()):
            self._on_slow()
        return outputs

    def give_way(self, standby: Seat, reason: str) -> None:
        """Let `standby` serve from now on."""
        before, self.serving = self.serving, standby
        if self.ready is standby:
            self.ready = None
        crashed = before.id == self._spec.candidate_id and not before.is_alive()
        before.close()
        self._tell(reason, crashed)

    def take_back(self, winner: Seat) -> None:
        """Let the winner serve again; who stood in for it is held ready."""
        if self.ready is not None:
            self.ready.close()
        self.ready, self.serving = self.serving, winner
        self._tell(None)

    def hold(self, standby: Seat) -> None:
        """Keep a standby ready."""
        if self.ready is not None or self.serving.id == standby.id:
            standby.close()
            return
        self.ready = standby

    def check(self) -> None:
        """Compare what serves with golden samples, and let the next best one serve when it is wrong or gone."""
        seat = self.serving
        try:
            tested = seat.self_test(self._spec.golden_path)
            reason = None if tested.passed else f"{seat.id} answers wrongly: {tested.reason}"
        except RegattaError as err:
            reason = str(err)
        if reason is not None:
            self._leave(seat, reason)

    def compare(self, standby: Seat) -> tuple[float, float]:
        """Return how long an inference takes now, in microseconds: of what serves, and of `standby`."""
        return self.serving.time_us(self._spec.golden_path), standby.time_us(self._spec.golden_path)

    def hang_s(self, cap_s: float) -> float:
        """Return after how long an inference in this process is called hanging; at most `cap_s`."""
        return min(cap_s, self.serving.hang_s())

    def stuck_s(self, cap_s: float) -> float:
        """Return by how much an inference in this process is over its limit; 0 when none is. Any thread may ask."""
        seat = self.serving
        since_ns = seat.running_since_ns
        if since_ns is None:
            return 0.0
        return max(0.0, (time.perf_counter_ns() - since_ns) / 1e9 - min(cap_s, seat.hang_s()))

    def close(self) -> None:
        """Release every model."""
        self.serving.close()
        if self.ready is not None:
            self.ready.close()

    def _run_elsewhere(self, inputs: Sequence[Array], error: InvokeFailed) -> list[Array]:
        for contender in self._others():
            seat = self._open(contender)
            if seat is None:
                continue
            try:
                outputs = seat.run(inputs)
            except InvokeFailed:
                self._drop(seat)
                continue
            self.give_way(seat, str(error))
            return outputs
        if not self.serving.is_alive():  # the request may be at fault, but what served is gone all the same
            self._leave(self.serving, str(error))
        raise error

    def _leave(self, seat: Seat, reason: str) -> None:
        for contender in self._others():
            standby = self._open(contender)
            if standby is not None:
                self.give_way(standby, reason)
                return
        logger.error("event=no_standby placement=%s reason=%s", seat.id, reason)
        if not seat.is_alive():
            self.lost = reason

    def _others(self) -> list[Contender]:
        """Return who may take over: the standby that is ready first, then the others, best first."""
        failed = {self.serving.id, self._spec.candidate_id}
        others = [one for one in self._spec.standbys if one.candidate_id not in failed]
        ready = self.ready.id if self.ready is not None else None
        return sorted(others, key=lambda one: (one.candidate_id != ready, is_guarded(one.candidate_id, False)))

    def _open(self, contender: Contender) -> Seat | None:
        if self.ready is not None and self.ready.id == contender.candidate_id:
            return self.ready
        try:
            seat, _ = open_seat(contender, self._spec, self.signature)
        except RegattaError as err:
            logger.warning("event=standby_not_opened candidate=%s error=%s", contender.candidate_id, err)
            return None
        return seat

    def _drop(self, seat: Seat) -> None:
        if self.ready is seat:
            if seat.is_alive():
                return
            self.ready = None
        seat.close()

    def _tell(self, reason: str | None, crashed: bool = False) -> None:
        told = reason if self.is_degraded else None
        self._on_switch(Switch(self._spec.candidate_id, self.serving.id, told, time.time(), crashed))


def open_failover(
    spec: ServeSpec, on_switch: Callable[[Switch], None], on_slow: Callable[[], None]
) -> tuple[Failover, Opened]:
    """Return the session opened on the winner, or on the best standby where the winner rests or cannot be opened.

    Raises:
        RegattaError: when neither the winner nor a standby can be opened; the first one's error.
    """
    contenders = spec.standbys if spec.resting is not None else (spec.winner(), *spec.standbys)
    first: RegattaError | None = None
    for contender in contenders:
        try:
            seat, tested = open_seat(contender, spec, None)
        except RegattaError as err:
            logger.warning("event=not_opened candidate=%s error=%s", contender.candidate_id, err)
            first = first or err
            continue
        reason = spec.resting or (str(first) if first is not None else None)
        crashed = spec.resting is None and isinstance(first, RunnerLost)  # the winner's error comes first
        return Failover(spec, seat, on_switch, on_slow), Opened(tested, reason, crashed)
    raise first or Misuse(f"{spec.candidate_id} rests and no standby is given: this is a bug of the agent")
