"""A device outside of its update window: it downloads, waits with the reason, serves, and goes on when it opens."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest

from device_rig import Rig

_HOUR_S = 3600.0


def window(rig: Rig, after_s: float, length_s: float = _HOUR_S) -> str:
    """Return a window that opens so long after now by the rig's clock."""
    times = (rig.clock.wall() + after_s, rig.clock.wall() + after_s + length_s)
    start, stop = (datetime.fromtimestamp(time, timezone.utc) for time in times)
    return f"{start:%H:%M}-{stop:%H:%M} UTC"


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """A device that serves version 1 and may be given version 2."""
    rig = Rig(tmp_path, max_attempts=3).start()
    for version in (1, 2, 3):
        rig.fleet.push(version)
    rig.fleet.assign(1)
    assert rig.run(until=rig.committed(1))
    return rig


def test_it_downloads_waits_with_the_reason_and_goes_on_by_the_clock(rig: Rig) -> None:
    """The fleet is told when; a restart changes nothing; nothing is fetched or raced twice; the old version serves."""
    night = window(rig, 6 * _HOUR_S)
    rig.fleet.assign(2, "r2", window=(night,))
    rig.run(60)
    fetched, waiting = rig.fleet.gets, rig.install(2)

    assert (rig.state(2), rig.serving(), rig.races) == ("verified", 1, [1])
    assert waiting.reason == f"waits: window opens {night[:5]} UTC"
    told = next(one for one in rig.fleet.reports[-1].models if one.version == 2)
    assert (told.reason, told.opens_at) == (waiting.reason, waiting.opens_at)
    rig.restart()
    assert not rig.run(5 * _HOUR_S, step_s=60.0, until=lambda: rig.state(2) != "verified")
    assert rig.run(_HOUR_S, step_s=20.0, until=rig.committed(2))
    assert (rig.races, rig.fleet.gets, rig.install(2).attempt) == ([1, 2], fetched, 0)
    assert rig.clock.wall() >= (waiting.opens_at or 0.0)


def test_a_change_of_the_window_is_looked_at_at_once(rig: Rig) -> None:
    """The fleet takes it away, or the device's own setting comes before it at the next start."""
    rig.fleet.assign(2, "r2", window=(window(rig, 6 * _HOUR_S),))
    rig.run(20)
    assert rig.state(2) == "verified"
    rig.fleet.assign(2, "r2")
    assert rig.run(until=rig.committed(2))

    rig.fleet.assign(3, "r3", window=(window(rig, 6 * _HOUR_S),))
    rig.run(20)
    assert rig.state(3) == "verified"
    rig.config = replace(rig.config, update_window=("00:00-24:00",))
    rig.restart()
    assert rig.run(until=rig.committed(3))


def test_what_is_urgent_does_not_wait_and_a_newer_wish_ends_a_wait(rig: Rig) -> None:
    """The override is part of what is signed."""
    night = (window(rig, 6 * _HOUR_S),)
    rig.fleet.assign(2, "r2", window=night)
    rig.run(20)
    rig.fleet.assign(3, "r3", window=night, ignore_window=True)

    assert rig.run(until=rig.committed(3))
    assert rig.state(2) == "retired"


def test_a_trial_outside_of_the_window_still_leads_back_at_once(rig: Rig) -> None:
    """Begun before the window closed: its worker ends, the old version answers, and the next window is waited for."""
    soon = (window(rig, 0.0, 120.0),)
    rig.clock.pass_by(60.0)
    rig.fleet.assign(2, "r2", trial_s=600, window=soon)
    assert rig.run(30, until=lambda: rig.state(2) == "on_trial" and rig.serving() == 2)
    rig.run(45)  # the window has closed
    assert (rig.state(2), rig.serving()) == ("on_trial", 2)

    rig.launcher.alive("worker:digits-2-")[0].end(1)
    assert rig.run(2, until=lambda: rig.serving() == 1)
    assert (rig.state(2), (rig.install(2).reason or "")[:12]) == ("placed", "waits: windo")
    rig.launcher.alive("worker:digits-1-")[0].end(1)
    assert rig.run(2, until=lambda: rig.serving() == 1)


def test_a_board_that_serves_nothing_yet_begins_at_once(tmp_path: Path) -> None:
    """There is nothing to disturb."""
    rig = Rig(tmp_path).start()
    rig.fleet.push(1)
    rig.fleet.assign(1, window=(window(rig, 6 * _HOUR_S),))

    assert rig.run(until=rig.committed(1))
