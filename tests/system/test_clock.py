"""A device whose clock is off by years, against the real broker with mutual TLS, whose certificates have their time.

The agent, its verifier, its races and workers see the clock that the test sets (board_clock.py); the server and the
broker have the right one. `scenario/test_clock.py` has the cases that need no TLS.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from board_clock import YEARS_S, BoardClock
from mosquitto import require_mosquitto
from polling import wait_until
from regatta_agent.client import Client
from regatta_agent.core.installs import Install
from regatta_agent.disk.record import RecordFile
from regatta_agent.status import AgentStatus, read_status
from regatta_fleet.cli.connection import open_client
from regatta_fleet.schemas import ServingSummary
from regatta_protocol.ids import DeviceId, ModelRef
from running_fleet import DEADLINE_S, DEVICES, MODEL, RunningFleet

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

NAME = DEVICES[0]
DAY_S = 86_400.0


def year(ahead_s: float) -> int:
    """Return which year a clock says that is so far ahead."""
    return time.gmtime(time.time() + ahead_s).tm_year


class ClockedFleet(RunningFleet):
    """A fleet with one device, whose clock is set by hand."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.clock = BoardClock(folder)
        self.environments[NAME] = self.clock.environment

    def status(self) -> AgentStatus:
        """Return what the agent says of itself."""
        said = read_status(self.folder / NAME / "run")
        assert said is not None, self.log(NAME)
        return said

    @property
    def served(self) -> int:
        """The version that serves: the last one that was pushed."""
        return self._versions

    def install(self, version: int) -> Install | None:
        return RecordFile(self.folder / NAME / "state").load().find(ModelRef(MODEL, version))

    def ask(self) -> None:
        """Ask the model something."""
        with Client(self.folder / NAME / "run" / f"{MODEL}.sock", timeout_s=10) as client:
            client.infer(MODEL, [np.zeros((1, 8, 8, 1), np.float32)])

    def await_offline(self, words: str) -> None:
        """Return when the agent says that it is not connected, and these words of why."""
        wait_until(lambda: words in (self.status().offline or ""), DEADLINE_S, f"it is offline: {words}")

    def reason(self, version: int) -> str:
        install = self.install(version)
        return (install.reason or "") if install is not None else ""

    def summary(self, version: int) -> ServingSummary | None:
        """Return what the fleet has heard of the version's service."""
        with open_client(self.home, None) as client:
            models = client.device(DeviceId(NAME)).models
        return next((one.served for one in models if (one.name, one.version) == (MODEL, version)), None)

    def requests(self, version: int) -> int:
        """Return how many requests to the version the fleet has heard of."""
        summary = self.summary(version)
        return summary.requests if summary is not None else 0

    def await_counted(self, version: int, requests: int) -> None:
        """Return when the fleet has counted so many requests, once each, at times that can be."""

        def counted() -> ServingSummary | None:
            summary = self.summary(version)
            return summary if summary is not None and summary.requests >= requests else None

        summary = wait_until(counted, DEADLINE_S, f"{requests} requests are counted", 0.5)
        assert summary is not None and summary.requests == requests
        assert summary.since is not None and summary.until is not None
        assert time.time() - DAY_S < summary.since <= summary.until < time.time() + DAY_S

    def cut(self) -> None:
        """End the connection of the device: the broker is killed, and started again by the server."""
        self.kill_child("server", "mosquitto")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClockedFleet]:
    """A device that serves the first version, with the right time."""
    require_mosquitto()
    fleet = ClockedFleet(tmp_path_factory.mktemp("c"))  # a short name: unix socket paths end at 107 bytes
    try:
        fleet.start("server")
        fleet.enroll(NAME)
        fleet.await_completed(fleet.roll_out(fleet.push()))
        yield fleet
    finally:
        fleet.stop()


@pytest.fixture(autouse=True)
def _right_again(fleet: ClockedFleet) -> Iterator[None]:
    """Leave the next test a device with the right time."""
    yield
    fleet.clock.put_ahead(0)


def converges(fleet: ClockedFleet, rollout: str, version: int) -> None:
    """See the version arrive without an attempt held against it."""
    fleet.await_completed(rollout)
    fleet.await_served(NAME, version)
    install = fleet.install(version)
    assert install is not None
    assert install.attempt == 0, install.reason


def test_without_a_clock_at_boot_it_serves_and_takes_up_its_work_when_the_clock_is_set(fleet: ClockedFleet) -> None:
    """At 1970 no certificate is valid yet: it says so, asks nobody who cannot prove himself, and loses nothing."""
    served = fleet.served
    fleet.kill(NAME)
    fleet.clock.put_at(60.0)
    fleet.start(NAME)

    fleet.await_served(NAME, served)
    fleet.await_offline("this machine's clock says 1970-01-01")
    version = fleet.push()
    rollout = fleet.roll_out(version)
    fleet.ask()
    asked = fleet.requests(served)
    assert fleet.install(version) is None

    fleet.clock.put_ahead(0)
    converges(fleet, rollout, version)
    fleet.await_counted(served, asked + 1)


def test_ten_years_ahead_at_work_it_waits_for_the_right_time(fleet: ClockedFleet) -> None:
    """What the fleet signed counts as expired, and then its certificates do: both say so, and end by themselves."""
    served = fleet.served
    asked = fleet.requests(served)
    fleet.clock.put_ahead(YEARS_S)
    version = fleet.push()
    rollout = fleet.roll_out(version)

    why = f"clock not set: it is {year(YEARS_S)}-"
    wait_until(lambda: fleet.reason(version).startswith(why), DEADLINE_S, "it says why it waits")
    fleet.cut()
    fleet.await_offline(f"this machine's clock says {year(YEARS_S)}-")
    fleet.await_served(NAME, served)
    fleet.ask()

    fleet.clock.put_ahead(0)
    converges(fleet, rollout, version)
    fleet.await_counted(served, asked + 1)


def test_ten_years_back_at_work_it_goes_on_by_the_fleet_s_time(fleet: ClockedFleet) -> None:
    """While it is connected nothing needs the board's clock: its time does not fall below the newest assignment's."""
    fleet.clock.put_ahead(-YEARS_S)
    version = fleet.push()
    converges(fleet, fleet.roll_out(version), version)
    fleet.ask()
    fleet.await_counted(version, 1)
