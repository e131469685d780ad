"""A board that ends whenever its model's worker starts: what is on disk, what the fleet hears, and how it gets out."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_rig import Rig
from regatta_agent import bootstrap
from regatta_agent.disk.quarantine_file import QuarantineFile
from regatta_agent.disk.record import RecordFile
from regatta_protocol.messages import ModelReport

WINNER, STANDBY = "litert/int8/xnnpack/t1", "litert/int8/none/t1"


class _Rebooting(Rig):
    """A device whose power goes, as the agent sees it: killed, and another run of the kernel."""

    run_of_kernel = 1

    def reboot(self) -> None:
        self.run_of_kernel += 1
        self.restart()

    def report(self) -> ModelReport:
        return self.fleet.reports[-1].models[0]


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Rebooting:
    """A device that serves version 1."""
    rig = _Rebooting(tmp_path)
    monkeypatch.setattr(bootstrap, "kernel_boot", lambda _sysroot: bytes((rig.run_of_kernel,) * 16))
    rig.start()
    rig.fleet.push(1)
    rig.fleet.assign(1)
    assert rig.run(until=rig.committed(1)), rig.install(1)
    return rig


def test_the_mark_is_on_disk_before_the_worker_is_started(rig: _Rebooting) -> None:
    """A board that ends with the worker's very first act has been counted all the same."""
    rig.reboot()
    (kept,) = RecordFile(rig.config.state_dir).load().all()

    assert rig.launcher.alive("worker:")
    assert kept.starting is not None
    assert (kept.starting.placement, kept.starting.boot) == (WINNER, "02" * 16)
    assert rig.run(120, until=lambda: rig.install(1).starting is None)


def test_a_winner_that_ends_the_board_gives_way_and_is_retried_while_the_fleet_hears_why(rig: _Rebooting) -> None:
    """Three lost boots; then the next candidate serves, races leave the winner out, and after an hour it is back."""
    for _ in range(3):
        rig.reboot()
        assert rig.install(1).placement == WINNER
    rig.reboot()

    assert rig.run(until=lambda: rig.serving() == 1 and bool(rig.fleet.reports) and rig.report().degraded is not None)
    assert (rig.report().state, rig.report().placement) == ("committed", STANDBY)
    assert (rig.report().degraded or "").startswith(
        f"{WINNER} is given up: the board ended while it was starting, 3 times; {STANDBY} takes over; tried again when"
    )
    assert QuarantineFile(rig.config.state_dir).load().refuses("the pair of xnnpack") is not None
    assert rig.run(2 * 3600.0, until=lambda: rig.install(1).given_up == (), step_s=10.0)
    assert (rig.install(1).placement, rig.install(1).degraded) == (WINNER, None)
    assert QuarantineFile(rig.config.state_dir).load().refuses("the pair of xnnpack") is None


def test_with_every_candidate_given_up_the_device_stays_reachable_and_takes_the_next_version(rig: _Rebooting) -> None:
    """No worker is started any more, the reason is at the fleet, and another version is raced and served."""
    for _ in range(6):
        rig.reboot()
    rig.reboot()

    assert rig.run(until=lambda: bool(rig.fleet.reports) and rig.report().state == "failed")
    assert (rig.report().reason or "").startswith("given up: the board ended while it was starting, 3 times, and no")
    assert not rig.launcher.alive("worker:")
    rig.fleet.push(2)
    rig.fleet.assign(2, "r2")
    assert rig.run(until=rig.committed(2)), rig.install(2)


def test_the_version_before_serves_when_the_newest_is_given_up(rig: _Rebooting) -> None:
    """From the disk, without network and trial, on the boot that gives the newest up; a stop that was asked for costs
    nothing."""
    rig.fleet.push(2)
    rig.fleet.assign(2, "r2")
    assert rig.run(until=rig.committed(2)), rig.install(2)
    rig.reboot()
    rig.loop.stop()
    for _ in range(6):
        rig.reboot()
        assert rig.install(2).state == "committed"
    rig.broker.kill()
    rig.reboot()

    assert (rig.state(2), rig.state(1)) == ("failed", "committed")
    assert rig.run(until=lambda: rig.serving() == 1, seconds=5)
