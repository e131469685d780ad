"""The status page in a real browser: it renders, keeps itself current, and obeys its own security policy."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from regatta_fleet.schemas import FleetStatus
from regatta_fleet.testing import FakeFleet
from regatta_fleet.testing_app import fake_app, serve
from sample_fleet import give_batches, harbor

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(BROWSER is None, reason="no chromium is installed: apt install chromium runs this test"),
]

TIMEOUT_S = 90.0
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


class MovingFleet(FakeFleet):
    """Its history grows with every look at it."""

    looks = 0

    def status(self) -> FleetStatus:
        self.looks += 1
        self.say("look", f"the fleet was looked at {self.looks} times {HOSTILE}")
        return super().status()


def dump(url: str, profile: Path, *options: str) -> tuple[str, str]:
    """Return the document after some seconds of the page's time, and what the browser logged."""
    assert BROWSER is not None
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--enable-logging=stderr",
        f"--user-data-dir={profile}",
        "--virtual-time-budget=9000",
        *options,
        "--dump-dom",
        url,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, done.stderr


def test_the_page_renders_and_updates_by_itself(tmp_path: Path) -> None:
    """Devices and batch jobs are there, what happened after the page was loaded, too; hostile text runs nowhere."""
    sample = harbor()
    give_batches(sample)
    running = sample.batches["b-3"]
    hostile = running.devices[1].model_copy(update={"reason": HOSTILE})
    sample.batches["b-3"] = running.model_copy(update={"devices": (running.devices[0], hostile), "input": HOSTILE})
    fleet = MovingFleet(**vars(sample))
    with serve(fake_app(fleet)) as url:
        document, log = dump(f"{url}/?token={fleet.token}", tmp_path / "profile")

    for name in sample.devices:
        assert f">{name}</a>" in document
    assert "1.44× the placed one's p50" in document
    assert "the fleet was looked at 1 times" in document
    assert "the fleet was looked at 2 times" in document  # known only to a later poll
    assert ">live</span>" in document
    assert "0 of 2 devices · 3,120 records" in document and "3 of 3 devices · 15,000 records, 6 refused" in document
    assert ">here</span> 1.24 MB" in document and "33.9 % of 1.24 MB" in document
    assert "<title>harbor · Regatta</title>" in document
    assert "Refused to" not in log
    assert "violates" not in log
    assert "Uncaught" not in log


def test_a_server_that_goes_away_is_said_so(tmp_path: Path) -> None:
    """The page keeps what it has and says that it is not current."""
    fleet = harbor()

    class Ending(FakeFleet):
        looks = 0

        def status(self) -> FleetStatus:
            self.looks += 1
            if self.looks > 1:
                raise RuntimeError("out of order")
            return super().status()

    ending = Ending(**vars(fleet))
    with serve(fake_app(ending)) as url:
        document, _ = dump(f"{url}/?token={fleet.token}", tmp_path / "profile")

    assert "the server does not answer" in document
    assert ">quay-1</a>" in document
