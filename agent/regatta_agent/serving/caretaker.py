"""What a worker does for its placement beside serving, on a thread of its own: nothing here makes a request wait long.

It holds a standby ready, retries a winner that failed and takes it back when it is sound and fast again, compares with
the next best one when what serves has become slow, checks a runner's outputs, and notices when latency drifts.
Whatever touches what serves is done on the engine's thread, through `on_engine`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Protocol, TypeVar

from regatta_agent.core.retries import RetryLimits, next_retry, of_the_last_day
from regatta_agent.serving.events import Degraded, Drifted, Recovered
from regatta_agent.serving.failover import Failover, Switch
from regatta_agent.serving.guarded import RunnerLost
from regatta_agent.serving.pace import Drift, is_faster
from regatta_agent.serving.seat import Seat, open_seat
from regatta_agent.serving.spec import ServeSpec
from regatta_protocol.errors import RegattaError, Retryable

__all__ = ["Caretaker", "OnEngine"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LOOK_S = 0.5  # between looks at a runner that may have ended while nobody asked
_LONGEST_S = 60.0
_COMPARE_FIRST_S, _COMPARE_CAP_S = 60.0, 3600.0  # between comparisons; longer each time that changes nothing
_DRIFT_S = 600.0  # a few inferences each: no load to speak of
_QUIET_LOAD = 0.5  # of each core: above it a latency tells of the load
_HOLD_FACTOR, _HOLD_SPARE_BYTES = 4, 64 << 20  # an opened model takes two to four times its file (measured: 1.6-3.9)


class OnEngine(Protocol):
    """Does a piece of work on the engine's thread."""

    def __call__(self, work: Callable[[], T]) -> T:
        """Return what the work returned.

        Raises:
            Retryable: when the engine takes no more work, or has not done it in time.
        """


class Caretaker:
    """The thread."""

    def __init__(
        self, spec: ServeSpec, failover: Failover, on_engine: OnEngine, tell: Callable[[Degraded | Drifted], None],
        rng: Random,
    ) -> None:  # fmt: skip
        self._spec = spec
        self._failover = failover
        self._on_engine = on_engine
        self._tell = tell
        self._rng = rng
        limits = spec.limits
        self._limits = RetryLimits(limits.retry_base_s, limits.retry_cap_s, limits.retries_per_day)
        self._retried = spec.retried
        self._degraded: Degraded | None = None
        self._retry_at = 0.0  # monotonic, while degraded: the wall clock may be set by years meanwhile
        self._slow = False
        self._compare_wait_s, self._compare_not_before = _COMPARE_FIRST_S, 0.0
        self._may_hold = True
        self._check_at = time.monotonic() + limits.checkup_s
        self._drift = Drift()
        self._drift_at = time.monotonic() + _DRIFT_S
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="caretaker", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End, after the work at hand when that is soon over. The runners that it started end with it."""
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout_s)

    def slow(self) -> None:
        """What serves has become slow. Any thread may say so."""
        self._slow = True
        self._wake.set()

    def switched(self, switch: Switch) -> Degraded | Recovered:
        """Take note of a change of places, and return what to say of it."""
        if switch.reason is None:
            self._degraded = None
            return Recovered(placement=switch.placement, retried=self._retried)
        since = switch.at if self._degraded is None else self._degraded.since
        self._wait_from(switch.at)
        self._degraded = Degraded(
            winner=switch.winner,
            placement=switch.placement,
            reason=switch.reason,
            since=since,
            retried=self._retried,
        )
        self._wake.set()
        return replace(self._degraded, crashed=switch.crashed)

    def _run(self) -> None:
        tasks = (self._hold_standby, self._retry_winner, self._compare, self._check, self._look_for_drift)
        while not self._stopping:
            for task in tasks:
                try:
                    task()
                except Exception:  # around plug-in code; what it may do wrong must not end the care
                    logger.exception("event=care_failed task=%s", task.__name__.strip("_"))
                if self._stopping:
                    return
            self._wake.wait(self._patience_s())
            self._wake.clear()

    def _patience_s(self) -> float:
        waits = [_LONGEST_S, self._check_at - time.monotonic(), self._drift_at - time.monotonic()]
        if self._degraded is not None:
            waits.append(self._retry_at - time.monotonic())
        if self._failover.serving.is_remote:
            waits.append(_LOOK_S)
        return max(0.01, min(waits))

    def _hold_standby(self) -> None:
        """Open the next best candidate when it would have to answer at once, and memory allows."""
        spec, failover = self._spec, self._failover
        if not self._may_hold or failover.is_degraded or failover.ready is not None or not failover.serving.is_remote:
            return
        self._may_hold = False  # once; it is opened when it is needed otherwise
        for contender in spec.standbys:
            needed = _HOLD_FACTOR * contender.variant_path.stat().st_size + _HOLD_SPARE_BYTES
            available = _available_bytes()
            if available is not None and available < needed:
                logger.info("event=no_standby_held available_bytes=%d needed_bytes=%d", available, needed)
                return
            with suppress(RegattaError):
                standby, _ = open_seat(contender, spec, failover.signature)
                self._on_engine(lambda seat=standby: failover.hold(seat))  # type: ignore[misc]
                return

    def _retry_winner(self) -> None:
        """Open the winner afresh when its time has come; let it serve when it is sound and fast enough."""
        degraded, now = self._degraded, time.time()
        if degraded is None or time.monotonic() < self._retry_at:
            return
        self._retried = (*of_the_last_day(self._retried, now), now)[-self._limits.per_day :]
        self._tell(replace(degraded, retried=self._retried))  # on disk before it may end the board
        try:
            winner, _ = open_seat(self._spec.winner(), self._spec, self._failover.signature)
        except RegattaError as err:
            if isinstance(err, RunnerLost):
                self._tell(replace(degraded, retried=self._retried, crashed=True))
            self._put_off(degraded, str(err))
            return
        try:
            why_not = self._too_slow(winner)
            if why_not is None:
                self._on_engine(lambda: self._failover.take_back(winner))
                return
        except RegattaError as err:
            why_not = str(err)
        winner.close()
        self._put_off(degraded, why_not)

    def _too_slow(self, winner: Seat) -> str | None:
        latency = self._spec.latency
        found_us = winner.time_us(self._spec.golden_path)
        if latency is None or is_faster(found_us, self._spec.max_slowdown * latency.p50_us):
            return None
        now_us = self._on_engine(lambda: self._failover.serving.time_us(self._spec.golden_path))
        if is_faster(found_us, now_us):
            return None
        return f"it takes {found_us:.0f} us, {latency.p50_us:.0f} us in its race, and what serves {now_us:.0f} us"

    def _put_off(self, degraded: Degraded, why: str) -> None:
        self._wait_from(time.time())
        logger.info("event=winner_not_back candidate=%s why=%s", degraded.winner, why)
        if self._degraded is degraded:
            self._degraded = replace(degraded, retried=self._retried)

    def _wait_from(self, now: float) -> None:
        """Let the next retry be due after its wait, which is reckoned from `now` (seconds since 1970)."""
        self._retry_at = time.monotonic() + next_retry(self._retried, now, self._rng, self._limits) - now

    def _compare(self) -> None:
        """Let the next best one serve when what serves is slow and that one is clearly faster now."""
        if not self._slow:
            return
        self._slow = False
        failover, spec, now = self._failover, self._spec, time.monotonic()
        if failover.is_degraded or now < self._compare_not_before:
            return
        self._compare_not_before = now + self._compare_wait_s
        self._compare_wait_s = min(_COMPARE_CAP_S, 2 * self._compare_wait_s)
        standby = failover.ready or self._first_standby()
        if standby is None or spec.latency is None:
            return
        now_us, standby_us = self._on_engine(lambda: failover.compare(standby))
        if now_us > spec.max_slowdown * spec.latency.p50_us and is_faster(standby_us, now_us):
            factor = now_us / spec.latency.p50_us
            reason = (
                f"{failover.serving.id} is slow: {now_us:.0f} us, {factor:.1f} times its race's "
                f"{spec.latency.p50_us:.0f} us; {standby.id} takes {standby_us:.0f} us"
            )
            self._on_engine(lambda: failover.give_way(standby, reason))
            return
        if standby is not failover.ready:
            standby.close()
        logger.warning(
            "event=slow_machine placement=%s now_us=%.0f standby_us=%.0f next_look_s=%.0f",
            failover.serving.id, now_us, standby_us, self._compare_wait_s,
        )  # fmt: skip

    def _first_standby(self) -> Seat | None:
        for contender in self._spec.standbys:
            try:
                return open_seat(contender, self._spec, self._failover.signature)[0]
            except RegattaError as err:
                logger.info("event=standby_not_opened candidate=%s error=%s", contender.candidate_id, err)
        return None

    def _check(self) -> None:
        """Hold a runner's outputs against golden samples now and then, and notice one that is gone."""
        serving = self._failover.serving
        if not serving.is_remote:
            self._check_at = time.monotonic() + _LONGEST_S
            return
        if time.monotonic() < self._check_at and serving.is_alive():
            return
        self._check_at = time.monotonic() + self._spec.limits.checkup_s
        with suppress(Retryable):  # the engine is full: it is asked again next time, and requests notice for themselves
            self._on_engine(self._failover.check)

    def _look_for_drift(self) -> None:
        """Say once when what serves has been slower than in its race, time after time, on a quiet machine."""
        if time.monotonic() < self._drift_at:
            return
        self._drift_at = time.monotonic() + _DRIFT_S
        serving, golden = self._failover.serving, self._spec.golden_path
        latency = serving.contender.latency
        if latency is None or os.getloadavg()[0] > _QUIET_LOAD * (os.cpu_count() or 1):
            return
        with suppress(Retryable):
            found_us = self._on_engine(lambda: serving.time_us(golden))
            if self._drift.add(serving.id, found_us / latency.p50_us):
                self._tell(Drifted(placement=serving.id, expected_us=latency.p50_us, found_us=found_us))


def _available_bytes() -> int | None:
    """Return the memory that can be had without swapping, or None when the kernel does not say."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None
