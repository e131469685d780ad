"""Rollouts over the real database, ingest and decisions, with devices that report what a test says."""

from __future__ import annotations

import pytest

from fleet_parts import DIGITS, SimulatedFleet
from regatta_fleet.core.gates import Outcome
from regatta_fleet.database import devices, models, rollouts
from regatta_fleet.errors import Conflict, NotFound
from regatta_fleet.rollouts import rolling
from regatta_fleet.schemas import RolloutState, WaveState
from regatta_protocol.errors import Rejected
from regatta_protocol.ids import DeviceId
from regatta_protocol.messages import InstallState, ModelReport


@pytest.fixture
def fleet() -> SimulatedFleet:
    """Two devices that run digits:1 with accuracy 0.98."""
    fleet = SimulatedFleet()
    names = fleet.enroll("a", "b")
    fleet.push(1)
    identifier = fleet.start(1, waves=(1.0,))
    for device in names:
        fleet.report(device)
    assert fleet.detail(identifier).state is RolloutState.COMPLETED
    fleet.now += 100
    return fleet


def test_a_good_version_goes_through_both_waves(fleet: SimulatedFleet) -> None:
    """The second wave's device hears of it only once the first one's has committed it."""
    fleet.push(2)
    identifier = fleet.start(2, waves=(0.5, 1.0))
    first, second = (wave.devices[0] for wave in fleet.detail(identifier).waves)
    assert (fleet.assigned(first)[1], fleet.assigned(second)[1]) == (2, 1)

    fleet.report(first, InstallState.RACING)
    assert fleet.assigned(second)[1] == 1
    fleet.report(first)
    assert fleet.assigned(second)[1] == 2
    fleet.report(second)

    detail = fleet.detail(identifier)
    assert detail.state is RolloutState.COMPLETED
    assert [wave.state for wave in detail.waves] == [WaveState.PROMOTED, WaveState.PROMOTED]
    assert "1 of 1 device committed digits:2" in (detail.reason or "")


def test_what_was_found_in_the_shadow_is_told_with_the_device(fleet: SimulatedFleet) -> None:
    """It is the reason of a device that committed the version, and stops no wave."""
    fleet.push(2)
    identifier = fleet.start(2, waves=(1.0,))
    for device in fleet.detail(identifier).waves[0].devices:
        fleet.report(device, agreement="in the shadow of digits:1 it agreed on 12.0 % of 50 live requests")

    with fleet.database.read() as tx:
        row = rollouts.get_rollout(tx, identifier)
    assert row is not None
    assert [trial.outcome for wave in row.rollout.waves for trial in wave.trials] == [Outcome.SUCCEEDED] * 2
    assert all("12.0 % of 50" in (trial.reason or "") for wave in row.rollout.waves for trial in wave.trials)
    assert fleet.detail(identifier).state is RolloutState.COMPLETED


def test_a_device_that_comes_later_gets_what_its_group_runs(fleet: SimulatedFleet) -> None:
    """After a rollout at once; during one what ran before, and the new version once it has passed all its gates."""
    (late,) = fleet.enroll("late")
    assert fleet.assigned(late)[1] == 1
    fleet.report(late)
    fleet.push(2)
    identifier = fleet.start(2, waves=(0.5, 1.0))
    (later,) = fleet.enroll("later")
    assert fleet.assigned(later)[1] == 1
    for _ in range(3):
        for device in fleet.outcomes(identifier):
            if fleet.assigned(device)[1] == 2:
                fleet.report(device)

    assert fleet.detail(identifier).state is RolloutState.COMPLETED
    assert fleet.assigned(later)[1] == 2
    assert "later" not in fleet.outcomes(identifier)


def test_a_device_gets_nothing_that_was_for_others(fleet: SimulatedFleet) -> None:
    """Another group's version, one that was for named devices, one that failed; its own group's goes first."""
    (lab,) = fleet.enroll("lab-1", group="lab")
    fleet.push(2)
    identifier = fleet.start(2, to=("group:lab",), waves=(1.0,))
    fleet.report(lab)
    assert fleet.detail(identifier).state is RolloutState.COMPLETED
    fleet.now += 100
    fleet.push(3)
    identifier = fleet.start(3, to=("a",), waves=(1.0,))
    fleet.report(DeviceId("a"))
    assert fleet.detail(identifier).state is RolloutState.COMPLETED
    fleet.now += 100
    fleet.push(4, accuracy=None)
    fleet.start(4, waves=(1.0,))
    for device in ("a", "b", "lab-1"):
        fleet.report(DeviceId(device), InstallState.ROLLED_BACK, accuracy=0.41, reason="accuracy fell", previous=1)

    assert fleet.assigned(fleet.enroll("c")[0])[1] == 1
    assert fleet.assigned(fleet.enroll("lab-2", group="lab")[0])[1] == 2


def test_a_bad_version_stops_at_the_first_wave_and_goes_back(fleet: SimulatedFleet) -> None:
    """The device went back by itself; the gate says why, and assigns the version before under a higher generation."""
    fleet.push(2, accuracy=None)
    identifier = fleet.start(2, waves=(0.5, 1.0))
    first, second = (wave.devices[0] for wave in fleet.detail(identifier).waves)
    generation, _ = fleet.assigned(first)
    untouched = fleet.assigned(second)

    fleet.report(first, InstallState.ROLLED_BACK, accuracy=0.41, reason="accuracy fell", previous=1)

    detail = fleet.detail(identifier)
    assert detail.state is RolloutState.ROLLED_BACK
    assert detail.reason == "1 of 1 device measured accuracy 0.41, 57 points below digits:1 (0.98); allowed 2"
    assert [(wave.state, wave.failed) for wave in detail.waves] == [(WaveState.FAILED, 1), (WaveState.PENDING, 0)]
    assert fleet.assigned(first) == (generation + 1, 1)
    assert fleet.assigned(second) == untouched
    assert detail.finished_at == fleet.now


def test_a_device_that_never_ran_the_model_is_compared_with_the_registry() -> None:
    """Without a figure of its own, the manifest of the version before stands in; going back means: nothing runs."""
    fleet = SimulatedFleet()
    (new,) = fleet.enroll("new")
    fleet.push(1)
    fleet.push(2, accuracy=None)
    identifier = fleet.start(2, to=("new",), waves=(1.0,))
    fleet.report(new, InstallState.COMMITTED, accuracy=0.90)

    detail = fleet.detail(identifier)
    assert detail.state is RolloutState.ROLLED_BACK
    assert "8 points below digits:1 (0.98)" in (detail.reason or "")
    assert fleet.assigned(new)[1] is None


def test_an_offline_device_is_waited_for_until_the_time_is_up(fleet: SimulatedFleet) -> None:
    """Then the wave fails and says who did not answer."""
    fleet.push(2)
    identifier = fleet.start(2, waves=(1.0,), gate={"timeout_s": 60})
    fleet.report(fleet.detail(identifier).waves[0].devices[0])
    fleet.now += 59
    assert fleet.advance() == set()
    assert fleet.detail(identifier).state is RolloutState.RUNNING
    fleet.now += 2

    assert fleet.advance() == {"a", "b"}
    assert "after 61 s 1 of 2 devices succeeded" in (fleet.detail(identifier).reason or "")


def test_hold_leaves_devices_as_they_are(fleet: SimulatedFleet) -> None:
    """The operator decides: abort sends back, promote goes on."""
    fleet.push(2)
    identifier = fleet.start(2, waves=(0.5, 1.0), gate={"on_failure": "hold"})
    first, second = (wave.devices[0] for wave in fleet.detail(identifier).waves)
    fleet.report(first, InstallState.FAILED, reason="no candidate", accuracy=None)
    assert fleet.detail(identifier).state is RolloutState.HELD
    assert fleet.assigned(first)[1] == 2

    with fleet.database.write() as tx:
        assert rolling.promote_rollout(tx, identifier, fleet.now) == {second}
    fleet.report(second)

    assert fleet.detail(identifier).state is RolloutState.COMPLETED


def test_an_abort_brings_every_device_back(fleet: SimulatedFleet) -> None:
    """Also those of promoted waves; a second abort is a conflict."""
    fleet.push(2)
    identifier = fleet.start(2, waves=(0.5, 1.0))
    fleet.report(fleet.detail(identifier).waves[0].devices[0])

    with fleet.database.write() as tx:
        assert rolling.abort_rollout(tx, identifier, fleet.now) == {"a", "b"}
    for device in fleet.detail(identifier).waves[0].devices + fleet.detail(identifier).waves[1].devices:
        assert fleet.assigned(device)[1] == 1
    with pytest.raises(Conflict, match="aborted already"), fleet.database.write() as tx:
        rolling.abort_rollout(tx, identifier, fleet.now)
    with pytest.raises(NotFound), fleet.database.write() as tx:
        rolling.promote_rollout(tx, "r-none", fleet.now)


def test_a_restart_in_the_middle_of_a_wave_changes_nothing(fleet: SimulatedFleet) -> None:
    """What was reported before counts, generations do not move, and an old report is not taken twice."""
    fleet.push(2)
    identifier = fleet.start(2, waves=(1.0,))
    first, second = fleet.detail(identifier).waves[0].devices
    fleet.report(first)
    before = (fleet.assigned(first), fleet.assigned(second), fleet.detail(identifier))

    fleet.restart()
    assert fleet.advance() == set()
    assert (fleet.assigned(first), fleet.assigned(second), fleet.detail(identifier)) == before
    fleet.report(second)

    assert fleet.detail(identifier).state is RolloutState.COMPLETED


def test_reports_of_another_rollout_do_not_count(fleet: SimulatedFleet) -> None:
    """A device that still speaks of the rollout before is waited for."""
    fleet.push(2)
    identifier = fleet.start(2, waves=(1.0,))
    stale = ModelReport(name=DIGITS, version=2, state=InstallState.COMMITTED, rollout="r-old")
    device = fleet.detail(identifier).waves[0].devices[0]
    fleet.say(device, 99, (stale,))

    assert set(fleet.outcomes(identifier).values()) == {Outcome.PENDING}


def test_a_revoked_device_is_taken_out_of_its_wave(fleet: SimulatedFleet) -> None:
    """The others decide it."""
    fleet.push(2)
    identifier = fleet.start(2, waves=(1.0,))
    first, second = fleet.detail(identifier).waves[0].devices
    with fleet.database.write() as tx:
        devices.revoke_device(tx, first, fleet.now)
        rolling.note_revoked(tx, first)
    fleet.report(second)

    assert fleet.detail(identifier).state is RolloutState.COMPLETED


def test_what_cannot_be_started(fleet: SimulatedFleet) -> None:
    """Unknown or unsigned versions, a second rollout of the model, nobody to send it to."""
    with pytest.raises(NotFound, match="digits:7"):
        fleet.start(7)
    fleet.push(2)
    with fleet.database.read() as tx:
        assert rollouts.find_open(tx, DIGITS) is None
        assert models.latest_version(tx, DIGITS) == 2
    with pytest.raises(Rejected, match="no device is in group"):
        fleet.start(2, to=("group:none",))
    fleet.start(2)
    with pytest.raises(Conflict, match="is not over"):
        fleet.start(1)
