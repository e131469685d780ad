"""Update windows of groups: which hold for a device, who hears of a change, and waves that wait with their devices."""

from __future__ import annotations

import pytest

from fleet_parts import DIGITS, SimulatedFleet
from regatta_fleet.core.gates import Outcome, Trial, Verdict, judge, window_s
from regatta_fleet.database import devices
from regatta_fleet.database.devices import Desired
from regatta_fleet.errors import NotFound
from regatta_fleet.rollouts import windowing
from regatta_fleet.schemas import GateConfig, RolloutState, WaveState
from regatta_protocol.ids import DeviceId, ModelRef
from regatta_protocol.messages import InstallState
from regatta_protocol.update_window import LONGEST_WAIT_S

NIGHT, DAY, ALWAYS = ("02:00-05:00",), ("mon-fri 09:00-17:00", "sat 09:00-12:00"), ("00:00-24:00",)
WAITS = "waits: window opens 02:00 CET"


@pytest.fixture
def fleet() -> SimulatedFleet:
    """A device of the group sea and one of the group lab, which run digits:1."""
    fleet = SimulatedFleet()
    fleet.enroll("buoy", group="sea")
    fleet.enroll("bench", group="lab")
    fleet.push(1)
    fleet.start(1, waves=[1.0])
    for device in ("buoy", "bench"):
        fleet.report(DeviceId(device))
    fleet.push(2)
    return fleet


def assigned(fleet: SimulatedFleet, device: str) -> Desired:
    with fleet.database.read() as tx:
        wanted = devices.get_desired(tx, DeviceId(device))
    assert wanted is not None
    return wanted


def set_windows(fleet: SimulatedFleet, group: str, windows: tuple[str, ...]) -> set[DeviceId]:
    with fleet.database.write() as tx:
        return windowing.set_windows(tx, group, windows, fleet.now)


def test_a_group_s_windows_take_the_place_of_those_for_all(fleet: SimulatedFleet) -> None:
    """Those whom a change touches get a new generation with it, the others none."""
    assert set_windows(fleet, "all", NIGHT) == {"buoy", "bench"}
    assert set_windows(fleet, "sea", DAY) == {"buoy"}
    before = assigned(fleet, "buoy").generation
    assert set_windows(fleet, "all", ALWAYS) == {"bench"}

    assert assigned(fleet, "buoy").update_window == DAY
    assert assigned(fleet, "bench").update_window == ALWAYS
    assert assigned(fleet, "buoy").generation == before
    with fleet.database.read() as tx:
        shown = windowing.describe_windows(tx)
    assert [(one.group, one.windows, one.devices) for one in shown] == [("all", ALWAYS, 1), ("sea", DAY, 1)]
    with fleet.database.write() as tx:
        assert windowing.clear_windows(tx, "sea", 2.0) == {"buoy"}
        assert windowing.clear_windows(tx, "all", 3.0) == {"buoy", "bench"}
        with pytest.raises(NotFound, match="group sea: no update window is set"):
            windowing.clear_windows(tx, "sea", 4.0)
    assert assigned(fleet, "buoy").update_window == ()
    assert assigned(fleet, "buoy").generation == before + 2


def test_an_urgent_rollout_and_every_way_back_ignore_the_window(fleet: SimulatedFleet) -> None:
    """It is part of what is signed for the device; an ordinary rollout after it is ordinary again."""
    ordinary = fleet.start(2, to=("group:sea",), waves=[1.0])
    assert not assigned(fleet, "buoy").models[DIGITS].ignore_window
    assert not fleet.detail(ordinary).ignore_window
    fleet.report(DeviceId("buoy"), InstallState.ROLLED_BACK, accuracy=0.4, reason="accuracy fell", previous=1)
    back = assigned(fleet, "buoy").models[DIGITS]
    assert (back.version, back.ignore_window) == (1, True)

    fleet.push(3)
    fleet.now += 10
    urgent = fleet.start(3, to=("group:sea",), waves=[1.0], ignore_window=True)
    assert assigned(fleet, "buoy").models[DIGITS].ignore_window
    assert fleet.detail(urgent).ignore_window
    fleet.report(DeviceId("buoy"))
    (late,) = fleet.enroll("late", group="sea")
    assert assigned(fleet, late).models[DIGITS].ignore_window


def test_a_wave_waits_with_its_devices_and_tells_for_what(fleet: SimulatedFleet) -> None:
    """Twelve hours to the window and the gate's hour after it: nothing fails before, and what is late then does."""
    identifier = fleet.start(2, waves=[1.0], gate={"timeout_s": 3600})
    opens_at = fleet.now + 12 * 3600
    fleet.report(DeviceId("bench"))
    fleet.report(DeviceId("buoy"), InstallState.VERIFIED, reason=WAITS, opens_at=opens_at)
    (wave,) = fleet.detail(identifier).waves

    assert (wave.state, wave.succeeded, wave.waiting) == (WaveState.OBSERVING, 1, 1)
    assert wave.reason == f"1 of 2 devices in no update window yet: buoy ({WAITS})"
    fleet.now = opens_at + 3599
    fleet.restart()
    fleet.advance()
    assert fleet.detail(identifier).state is RolloutState.RUNNING
    fleet.report(DeviceId("buoy"), InstallState.RACING)
    (wave,) = fleet.detail(identifier).waves
    assert (wave.waiting, wave.reason) == (0, None)
    fleet.now += 1
    fleet.advance()
    assert fleet.detail(identifier).state is RolloutState.ROLLED_BACK


def test_a_device_that_goes_on_in_its_window_completes_the_rollout(fleet: SimulatedFleet) -> None:
    """As if it had not waited."""
    identifier = fleet.start(2, waves=[1.0], gate={"timeout_s": 3600})
    fleet.report(DeviceId("bench"))
    fleet.report(DeviceId("buoy"), InstallState.VERIFIED, reason=WAITS, opens_at=fleet.now + 86_400)
    fleet.now += 86_400 + 60
    fleet.report(DeviceId("buoy"))

    assert fleet.detail(identifier).state is RolloutState.COMPLETED


@pytest.mark.parametrize(
    ("outcome", "opens_at", "expected_s"),
    [
        (Outcome.PENDING, None, 0.0),
        (Outcome.PENDING, 900.0, 0.0),  # it opened before the wave began
        (Outcome.PENDING, 4600.0, 3600.0),
        (Outcome.PENDING, 1e12, LONGEST_WAIT_S),  # a clock that is years ahead
        (Outcome.SUCCEEDED, 4600.0, 0.0),
        (Outcome.FAILED, 4600.0, 0.0),
    ],
)
def test_the_time_of_a_wave_until_its_last_window(outcome: Outcome, opens_at: float | None, expected_s: float) -> None:
    """Only an undecided device's counts, and none for longer than windows can be apart."""
    trials = [Trial(DeviceId("a"), outcome, opens_at=opens_at), Trial(DeviceId("b"))]

    assert window_s(trials, 1000.0) == expected_s


def test_a_failure_decides_whoever_waits() -> None:
    """Waiting devices are not counted as failed, and do not keep a failed wave open."""
    waiting = Trial(DeviceId("a"), opens_at=1e9, waits=True)
    failed = Trial(DeviceId("b"), Outcome.FAILED)
    ref = ModelRef(DIGITS, 2)

    assert judge(ref, [waiting], GateConfig(), 7200, 7200).verdict is Verdict.WAIT
    assert judge(ref, [waiting, failed], GateConfig(), 10, 7200).verdict is Verdict.FAIL
    assert judge(ref, [waiting, failed], GateConfig(min_success_ratio=0.5), 10, 7200).verdict is Verdict.WAIT
