"""When the certificate's renewal is looked at: soon after the start, daily, and with back-off after a failure."""

from __future__ import annotations

import queue
from pathlib import Path
from random import Random
from typing import Any

import pytest

from regatta_agent.events import Event
from regatta_agent.testing import ScriptedChild, ScriptedLauncher
from regatta_agent.work.renewing import Renewing
from regatta_protocol.errors import StorageFull

DAY_S = 86_400.0


class Rig:
    """A Renewing over scripted children; time is a number."""

    def __init__(self) -> None:
        self.inbox: queue.Queue[Event] = queue.Queue()
        self.launcher = ScriptedLauncher(self.inbox, _unused, _unused)
        self.free_bytes = 0
        self.renewing = Renewing(self.launcher, Path("/identity"), Random(3), "boot", lambda: self.free_bytes)
        self.started_s: list[float] = []
        self.now_s = 0.0

    def live(self, seconds: float, step_s: float = 10.0) -> None:
        """Let time go by."""
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            before = len(self.launcher.children)
            self.renewing.tick(self.now_s)
            self.started_s += [self.now_s] * (len(self.launcher.children) - before)
            while not self.inbox.empty():
                self.renewing.handle(self.inbox.get(), self.now_s)
            self.now_s += step_s


def _unused(*_arguments: Any) -> Any:
    raise AssertionError("only renewals are started here")


def test_it_is_looked_at_soon_after_the_start_and_then_daily() -> None:
    """Within ten minutes, at another moment on each device; then every 12 to 24 hours."""
    rig = Rig()
    rig.live(10 * DAY_S, step_s=60.0)

    gaps = [after - before for before, after in zip(rig.started_s, rig.started_s[1:], strict=False)]
    assert rig.started_s[0] <= 660.0
    assert len(gaps) >= 9
    assert all(DAY_S / 2 <= gap <= DAY_S + 120.0 for gap in gaps)
    assert rig.launcher.children[0].argv[2:] == ("regatta_provisioning.renewal", "/identity")


def test_failures_are_retried_with_back_off_and_told(caplog: pytest.LogCaptureFixture) -> None:
    """Within a minute at first, never more often than the cap allows in the long run; the reason is in the log."""
    rig = Rig()
    rig.launcher.renew = lambda child: child.end(75, "no answer from https://fleet:8443")
    rig.live(3 * DAY_S)

    assert rig.started_s[1] - rig.started_s[0] <= 70.0
    assert 12 <= len(rig.started_s) <= 60
    assert "no answer from https://fleet:8443" in caplog.text
    rig.launcher.renew = None
    rig.live(DAY_S)
    settled = len(rig.started_s)
    rig.live(2 * DAY_S)
    assert len(rig.started_s) - settled <= 5


def test_a_child_that_hangs_is_ended(caplog: pytest.LogCaptureFixture) -> None:
    """After two minutes, and that counts as a failure; only one runs at a time."""
    rig = Rig()
    rig.launcher.renew = _hang
    rig.live(1500.0)

    assert len(rig.launcher.alive()) <= 1
    assert rig.launcher.children[0].ended
    assert "event=certificate_not_renewed" in caplog.text


def _hang(_child: ScriptedChild) -> None:
    """Say nothing."""


def test_a_full_disk_is_asked_again_once_an_hour_at_most() -> None:
    """Each try costs the fleet a certificate, and the card a write that fails."""
    rig = Rig()
    rig.launcher.renew = lambda child: child.end(StorageFull.exit_code, "no space left to write cert.pem")
    rig.live(DAY_S)

    gaps = [after - before for before, after in zip(rig.started_s, rig.started_s[1:], strict=False)]
    assert gaps and min(gaps) >= 3600.0


def test_a_disk_that_was_full_is_asked_as_soon_as_there_is_space() -> None:
    """And once: what is found then is not taken for want of space."""
    rig = Rig()
    rig.launcher.renew = lambda child: child.end(StorageFull.exit_code, "no space left to write cert.pem")
    rig.live(700.0)
    assert len(rig.started_s) == 1
    rig.launcher.renew = None
    rig.free_bytes = 65_535
    rig.live(100.0)
    assert len(rig.started_s) == 1
    rig.free_bytes = 65_536
    rig.live(DAY_S / 3)
    assert len(rig.started_s) == 2
