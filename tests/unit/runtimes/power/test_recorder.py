"""Reading beside a load: a sensor that fails, vanishes or hangs is told, and stops nothing."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from polling import wait_until
from power_rig import plant
from regatta_runtimes.errors import CounterReset, SensorFault
from regatta_runtimes.power.deadline import within
from regatta_runtimes.power.finder import find_sensor
from regatta_runtimes.power.recorder import Recorder, why_silent
from regatta_runtimes.power.sensor import Clock, PowerSensor, Reading, stamped

DEADLINE_S = 10.0
CHIP = "sys/class/hwmon/hwmon0"


def sensor_of(read: Callable[[Clock], Reading], timeout_s: float = 2.0) -> PowerSensor:
    return PowerSensor("probe", "board", "measured", 0.02, read, timeout_s=timeout_s)


def readings(recorder: Recorder) -> tuple[Reading, ...]:
    return recorder.span(0.0, recorder.now_s()).readings


def test_readings_come_in_order_and_can_be_forgotten() -> None:
    """A span holds what was read within it."""
    with Recorder(sensor_of(stamped(lambda: 2000.0))) as recorder:
        wait_until(lambda: len(readings(recorder)) >= 5, DEADLINE_S, "five readings came")
        got = readings(recorder)
        recorder.forget(got[3].at_s)

        assert [reading.at_s for reading in got] == sorted({reading.at_s for reading in got})
        assert readings(recorder)[0] == got[3]
        assert recorder.span(got[4].at_s, got[4].at_s).readings == (got[4],)
        assert (recorder.fault, recorder.hangs) == (None, False)


def test_a_figure_that_the_sensor_repeats_is_kept_once() -> None:
    """A smart plug's newest message is read many times."""
    reads: list[int] = []

    def same(_clock: Clock) -> Reading:
        reads.append(1)
        return Reading(1.0, 2000.0)

    with Recorder(sensor_of(same)) as recorder:
        wait_until(lambda: len(reads) >= 5, DEADLINE_S, "it was read five times")

        assert readings(recorder) == (Reading(1.0, 2000.0),)


def test_a_sensor_that_vanishes_is_told_and_comes_back(tmp_path: Path) -> None:
    """What was read before stays; the fault names the file."""
    plant(tmp_path, {f"{CHIP}/name": "ina226", f"{CHIP}/power1_input": "2000000"})
    sensor = find_sensor(tmp_path)
    assert isinstance(sensor, PowerSensor)
    with Recorder(sensor) as recorder:
        wait_until(lambda: readings(recorder), DEADLINE_S, "a reading came")
        (tmp_path / CHIP / "power1_input").unlink()
        wait_until(lambda: recorder.fault, DEADLINE_S, "the fault is told")
        before = len(readings(recorder))
        plant(tmp_path, {f"{CHIP}/power1_input": "2000000"})

        assert "power1_input is gone" in (recorder.fault or "")
        wait_until(lambda: len(readings(recorder)) > before, DEADLINE_S, "readings come again")


def test_a_counter_that_was_set_back_makes_what_was_before_void() -> None:
    """Its difference over the jump would be a lie."""
    figures: list[float | None] = [1.0, 2.0, None, 3.0]

    def read(clock: Clock) -> Reading:
        figure = figures.pop(0) if len(figures) > 1 else figures[0]
        if figure is None:
            raise CounterReset("it jumped")
        return Reading(clock(), figure)

    with Recorder(sensor_of(read)) as recorder:
        wait_until(lambda: len(figures) == 1 and readings(recorder), DEADLINE_S, "it reads after the jump")

        assert {reading.figure for reading in readings(recorder)} == {3.0}
        assert recorder.fault == "it jumped"


def test_a_read_that_hangs_is_told_and_nothing_waits_for_it(tmp_path: Path) -> None:
    """A pipe without a writer in the file's place, as a driver that never answers."""
    plant(tmp_path, {f"{CHIP}/name": "ina226", f"{CHIP}/power1_input": "2000000"})
    sensor = find_sensor(tmp_path)
    assert isinstance(sensor, PowerSensor)
    path = tmp_path / CHIP / "power1_input"
    path.unlink()
    os.mkfifo(path)
    recorder = Recorder(sensor_of(sensor.read, timeout_s=0.1))
    recorder.start()
    wait_until(lambda: recorder.hangs, DEADLINE_S, "the hang is seen")

    begun_s = time.monotonic()
    recorder.stop()
    fault, took_s = recorder.fault, time.monotonic() - begun_s
    _let_go(path, "power")

    assert fault == "a read of probe hangs: no answer within 0.1 s"
    assert took_s < 5


def _let_go(pipe: Path, name: str) -> None:
    """Give the reader that hangs its end of file, so that its thread ends with the test."""

    def gone() -> bool:
        with contextlib.suppress(OSError):
            os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        return all(thread.name != name for thread in threading.enumerate())

    wait_until(gone, DEADLINE_S, "the thread has ended")


def test_within_gives_what_the_call_gives_or_raises() -> None:
    """A value, an error, or the word that it hangs."""
    never = threading.Event()

    def fail() -> None:
        raise ValueError("no")

    assert within(5.0, "it", lambda: 7) == 7
    with pytest.raises(ValueError, match="no"):
        within(5.0, "it", fail)
    with pytest.raises(SensorFault, match=r"it hangs: no answer within 0.05 s"):
        within(0.05, "it", never.wait)
    never.set()


def test_a_meter_can_be_tried() -> None:
    """None when it gives a figure, else its fault."""

    def fail(_clock: Clock) -> Reading:
        raise SensorFault("nothing is plugged in")

    assert why_silent(sensor_of(stamped(lambda: 2000.0)), DEADLINE_S) is None
    assert why_silent(sensor_of(fail), 0.1) == "nothing is plugged in"
