"""Boards without a clock battery: at 1970, ten years off, set while at work. Waits have reasons, and end."""

from __future__ import annotations

from pathlib import Path
from random import Random
from unittest import mock

import pytest

from device_rig import DEVICE, Rig
from planning import IDLE, LIMITS, an_install
from regatta_agent.clock import FlooredClock
from regatta_agent.core.rerace import rerace_reason
from regatta_agent.serving.caretaker import Caretaker
from regatta_agent.serving.failover import Switch
from regatta_agent.testing import FakeClock
from regatta_protocol.messages import Assignment, InstallState
from regatta_protocol.policy import Policy
from regatta_provisioning.verifying import AssignmentJob, MetadataJob, VerifyResult

YEARS_S = 10 * 365.25 * 86_400.0
EXPIRES_S = 1_790_000_000.0 + 7 * 86_400.0  # a week after the rig's clock


class Signed:
    """Signed metadata that expire by the agent's clock, of a fleet whose clock was right at the start."""

    def __init__(self, rig: Rig) -> None:
        self._verify = rig.fleet.verify
        self.asked = 0
        rig.fleet.clock_s = rig.clock.wall()
        rig.launcher.verify = self.verify

    def verify(self, job: AssignmentJob | MetadataJob) -> VerifyResult:
        if isinstance(job, MetadataJob):
            self.asked += 1
            if job.now > EXPIRES_S:
                return VerifyResult(ok=False, family="expired", reason="the signed metadata are not valid any more")
        return self._verify(job)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """A device that serves version 1 and may be given version 2."""
    rig = Rig(tmp_path, max_attempts=3).start()
    for version in (1, 2):
        rig.fleet.push(version)
    rig.fleet.assign(1)
    assert rig.run(until=rig.committed(1))
    return rig


def test_a_clock_ten_years_ahead_waits_for_the_right_time_and_fails_nothing(rig: Rig) -> None:
    """Expired by this clock alone: a reason with both times, no attempt, a bounded number of questions."""
    signed = Signed(rig)
    rig.clock.jump(YEARS_S)
    rig.fleet.assign(2, "r2")
    rig.run(3600, step_s=5)

    reason = rig.install(2).reason or ""
    assert "clock not set: it is 2036-" in reason and "and 2026-" in reason
    assert (rig.state(2), rig.install(2).attempt) == ("assigned", 0)
    assert rig.run(120, until=lambda: rig.serving() == 1)  # the rig's workers say nothing, and are started again
    assert signed.asked < 3600 / 30, "it asks again and again"
    rig.clock.jump(-YEARS_S)
    assert rig.run(until=rig.committed(2), seconds=400)


def test_a_fleet_that_stopped_signing_is_not_taken_for_a_wrong_clock(rig: Rig) -> None:
    """Where both clocks agree, expired is expired: the version fails within its attempts, with that reason."""
    Signed(rig)
    rig.clock.pass_by(8 * 86_400.0)
    rig.fleet.clock_s = rig.clock.wall()
    rig.fleet.assign(2, "r2")

    assert rig.run(until=lambda: rig.state(2) == "failed", seconds=200)
    assert "not valid any more" in (rig.install(2).reason or "")


@pytest.mark.parametrize("jump_s", [YEARS_S, -YEARS_S])
def test_a_clock_set_by_years_in_the_middle_of_a_trial_and_of_a_back_off_changes_nothing(
    rig: Rig, jump_s: float
) -> None:
    """Trials go by monotonic time; a wait ends after the time that it was meant to take, or at once."""
    rig.fleet.assign(2, "r2", trial_s=30)
    assert rig.run(until=lambda: rig.state(2) == "on_trial")
    rig.clock.jump(jump_s)
    assert not rig.run(until=rig.committed(2), seconds=25)
    assert rig.run(until=rig.committed(2), seconds=10)

    for _ in range(7):  # the last of these deaths are answered with a wait
        rig.launcher.alive("worker:digits-2-")[0].end(1)
        rig.run(0.0)
        rig.clock.jump(jump_s / 10)
        assert rig.run(until=rig.committed(2), seconds=70)


def test_at_1970_a_board_serves_what_it_has_and_its_waits_end(rig: Rig) -> None:
    """The clock stands below the floor for days: back-offs end all the same, and the reason says what is missing."""
    rig.broker.kill()
    rig.clock.jump(-rig.clock.wall())
    rig.restart()

    assert rig.run(until=rig.committed(1), seconds=2)
    for _ in range(6):
        rig.launcher.alive("worker:")[0].end(1)
        assert rig.run(until=rig.serves, seconds=70), rig.install(1)
    rig.broker.start()
    rig.fleet.mute = True
    rig.fleet.assign(2, "r2")
    rig.run(1)
    rig.broker.kill()
    rig.run(1)
    assert "clock is not set" in (rig.install(2).reason or "")
    assert rig.install(2).attempt == 0
    rig.fleet.mute = False
    rig.broker.start()
    assert rig.run(until=rig.committed(2), seconds=400)


def test_a_server_whose_clock_was_years_ahead_does_not_leave_the_device_there(rig: Rig) -> None:
    """The floor is what the newest assignment says: once the server's clock is right, metadata count as valid again."""
    signed = Signed(rig)
    sign = rig.fleet.sign

    def ahead(assignment: Assignment) -> object:
        return sign(assignment.model_copy(update={"issued_at": rig.clock.wall() + YEARS_S}))

    rig.fleet.sign = ahead  # type: ignore[assignment]
    rig.fleet.assign(1)
    rig.run(2)
    assert rig.loop.wall() > EXPIRES_S
    rig.fleet.sign = sign
    rig.fleet.assign(2, "r2")

    assert rig.run(until=rig.committed(2), seconds=200)
    assert signed.asked == 1


def test_a_time_that_the_fleet_did_not_sign_moves_no_floor(rig: Rig) -> None:
    """Who reaches the broker without the fleet's key says 2036 in vain; what the fleet said once is no newer word."""
    floor = rig.loop.record.time_floor
    signed = rig.fleet.sign(
        Assignment(fleet="fleet", device=DEVICE, generation=9, issued_at=rig.clock.wall() + YEARS_S, models={})
    )
    rig.fleet.publish(signed.model_copy(update={"signature": "forged"}))
    rig.run(5)
    assert (rig.loop.record.time_floor, rig.loop.record.generation) == (floor, 1)

    rig.fleet.publish(signed)  # by a server whose clock is ahead
    rig.run(5)
    assert rig.loop.record.time_floor > EXPIRES_S
    rig.fleet.generation = 9
    rig.fleet.assign(1)
    rig.run(5)
    assert rig.loop.record.time_floor == floor
    rig.fleet.publish(signed)
    rig.run(5)
    assert rig.loop.record.time_floor == floor, "the years ahead can be replayed"


def test_the_floored_clock_goes_on_while_the_board_s_stands_below() -> None:
    """It never falls below the floor, moves with monotonic time, and follows the board's clock once that is set."""
    board = FakeClock(wall_s=0.0)
    clock = FlooredClock(board)

    assert clock.wall(1000.0) == 1000.0
    board.pass_by(60.0)
    assert (clock.wall(1000.0), clock.is_unset(1000.0)) == (1060.0, True)
    board.jump(5000.0)
    assert (clock.wall(1000.0), clock.is_unset(1000.0)) == (5060.0, False)


def test_a_new_race_is_not_put_off_by_one_that_lies_in_the_future() -> None:
    """A policy that changed is raced although the clock jumped back since the last race for it."""
    install = an_install(1, InstallState.COMMITTED, policy=Policy(objective="energy"), rerace="its policy was changed")

    for reraced_at, due in ((IDLE.now_s - 10.0, False), (IDLE.now_s + YEARS_S, True)):
        reason = rerace_reason(install.model_copy(update={"reraced_at": reraced_at}), IDLE, LIMITS)
        assert (reason is not None) is due


def test_a_winner_is_retried_in_its_time_whatever_the_clock_is_set_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's wait is monotonic: a clock put back by ten years does not put the retry off."""
    limits = mock.Mock(checkup_s=60.0, retry_base_s=2.0, retry_cap_s=2.0, retries_per_day=24)
    caretaker = Caretaker(mock.Mock(limits=limits, retried=()), mock.Mock(), mock.Mock(), mock.Mock(), Random(1))
    caretaker.switched(Switch("a", "b", "hung", 1_790_000_000.0))
    monkeypatch.setattr("time.time", lambda: 1_790_000_000.0 - YEARS_S)

    assert caretaker._patience_s() <= 2.0
