"""Power while serving: integrated over windows above idle, or unknown with a reason; a hanging sensor stops nothing."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator

import pytest

from polling import wait_until
from regatta_agent.serving.power import PowerMeter
from regatta_protocol.values import Power
from regatta_runtimes.errors import SensorFault
from regatta_runtimes.power.sensor import Clock, PowerSensor, Reading, UnknownPower

DEADLINE_S = 20.0
RACE = Power(method="measured", power_mw=5000, idle_power_mw=2000, energy_per_inference_mj=30)


class Board:
    """A board whose time is ours: each read of its sensor that is allowed is the next tenth of a second."""

    def __init__(self) -> None:
        self.power_mw = 2000.0
        self.now_s = 0.0
        self.closed = False
        self._chance = random.Random(1)
        self._allowed = threading.Semaphore(0)
        self._waiting = threading.Semaphore(0)  # a read has begun, so the one before is with the recorder

    def sensor(self) -> PowerSensor:
        return PowerSensor("probe", "board", "measured", 0.1, self._reading, close=self._close)

    def _close(self) -> None:
        self.closed = True

    def clock(self) -> float:
        return self.now_s

    def _reading(self, _clock: Clock) -> Reading:
        self._waiting.release()
        self._allowed.acquire()
        self.now_s += 0.1
        if self.power_mw < 0:
            raise SensorFault("the bus is dead")
        return Reading(self.now_s - 0.05, self.power_mw + self._chance.gauss(0, 20))

    def pass_s(self, seconds: float) -> None:
        """Let so much time go by, with its readings."""
        for _ in range(round(seconds * 10)):
            assert self._waiting.acquire(timeout=DEADLINE_S)
            self._allowed.release()
        assert self._waiting.acquire(timeout=DEADLINE_S)
        self._waiting.release()

    def let_go(self) -> None:
        """Allow every read that may still come."""
        self._allowed.release(1000)


@pytest.fixture
def board() -> Iterator[Board]:
    made = Board()
    yield made
    made.let_go()


@pytest.fixture
def meter(board: Board) -> Iterator[Callable[[Power | None], PowerMeter]]:
    made: list[PowerMeter] = []

    def make(race: Power | None) -> PowerMeter:
        one = PowerMeter(board.sensor, race, board.clock)
        made.append(one)
        one.start()
        wait_until(lambda: "looked for" not in (one.take(inferences=0).reason or ""), DEADLINE_S, "the sensor is open")
        return one

    yield make
    for one in made:
        one.stop()


def test_no_sensor_gives_its_reason() -> None:
    """A board without a sensor says why in every window, once it has looked."""
    meter = PowerMeter(lambda: UnknownPower("no sensor"))
    before = meter.take(inferences=5)
    meter.start()

    assert "being looked for" in (before.reason or "")
    wait_until(lambda: meter.take(inferences=5).reason == "no sensor", DEADLINE_S, "the reason is told")
    assert meter.take(inferences=5).method == "none"


def test_energy_is_above_the_idle_of_the_last_quiet_time(
    board: Board, meter: Callable[[Power | None], PowerMeter]
) -> None:
    """3 W more than idle for 5 s and 500 inferences is 30 mJ each, whatever the race said of idle."""
    served = meter(RACE)
    board.pass_s(5)
    quiet = served.take(inferences=0)
    board.power_mw = 5000
    board.pass_s(5)
    busy = served.take(inferences=500)

    assert (quiet.method, quiet.reason) == ("none", "nothing was inferred in this window")
    assert busy.power_mw == pytest.approx(5000, rel=0.02)
    assert busy.idle_power_mw == pytest.approx(2000, rel=0.02)
    assert busy.energy_per_inference_mj == pytest.approx(30, rel=0.05)
    assert busy.energy_uncertainty_mj is not None
    assert "the last quiet time" in (busy.reason or "")


def test_idle_is_the_races_until_there_was_a_quiet_time(
    board: Board, meter: Callable[[Power | None], PowerMeter]
) -> None:
    """A worker that is busy from its start; the reason says whose idle it is."""
    served = meter(RACE)
    board.power_mw = 5000
    board.pass_s(5)
    busy = served.take(inferences=500)

    assert busy.energy_per_inference_mj == pytest.approx(30, rel=0.05)
    assert "idle power is from the race" in (busy.reason or "")


def test_without_any_idle_there_is_power_and_no_energy(
    board: Board, meter: Callable[[Power | None], PowerMeter]
) -> None:
    """Unknown is said, and not guessed as 0."""
    served = meter(None)
    board.pass_s(5)
    busy = served.take(inferences=500)

    assert busy.power_mw == pytest.approx(2000, rel=0.02)
    assert (busy.energy_per_inference_mj, busy.idle_power_mw) == (None, None)
    assert "idle power is not known yet" in (busy.reason or "")


def test_windows_shorter_than_20_periods_are_joined(board: Board, meter: Callable[[Power | None], PowerMeter]) -> None:
    """Unknown until there are enough, and then over all of them."""
    served = meter(RACE)
    board.power_mw = 5000
    told = []
    for _ in range(4):
        board.pass_s(1.5)
        told.append(served.take(inferences=150))

    assert [power.method for power in told] == ["none", "measured", "none", "measured"]
    assert "under 20 of its periods" in (told[0].reason or "")
    assert told[1].duration_s == pytest.approx(3)
    assert told[1].energy_per_inference_mj == pytest.approx(30, rel=0.05)


def test_a_sensor_that_fails_is_unknown_with_its_fault(
    board: Board, meter: Callable[[Power | None], PowerMeter]
) -> None:
    """And known again when it is mended."""
    served = meter(RACE)
    board.power_mw = -1
    board.pass_s(3)
    broken = served.take(inferences=10)
    board.power_mw = 5000
    board.pass_s(5)
    mended = served.take(inferences=500)

    assert broken.method == "none"
    assert "the bus is dead" in (broken.reason or "")
    assert mended.energy_per_inference_mj is not None


def test_a_sensor_that_hangs_while_it_is_opened_costs_nothing() -> None:
    """Windows go on, and say that it is being looked for."""
    never = threading.Event()

    def open_sensor() -> UnknownPower:
        never.wait()
        return UnknownPower("at last")

    meter = PowerMeter(open_sensor)
    meter.start()
    told = meter.take(inferences=5)
    meter.stop()
    never.set()

    assert "being looked for" in (told.reason or "")


def test_stop_closes_the_sensor(board: Board, meter: Callable[[Power | None], PowerMeter]) -> None:
    """A smart plug's connection ends with the worker."""
    meter(None).stop()

    assert board.closed
