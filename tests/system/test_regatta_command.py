"""The installed program against a server that it starts itself, with its private Mosquitto."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from regatta_fleet.examples.digits import LABELS, MODEL

MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/bin")
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed: apt install mosquitto runs this test"),
]

REGATTA = [sys.executable, "-c", "import sys; from regatta_fleet.cli import main; sys.exit(main())"]
TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fleet") / "home"


def regatta(home: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "REGATTA_HOME": str(home)}
    for name in ("REGATTA_URL", "REGATTA_TOKEN"):
        environment.pop(name, None)
    return subprocess.run([*REGATTA, *args], env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)


@pytest.fixture(scope="module")
def up(home: Path) -> Iterator[dict[str, Any]]:
    """A running server: what `regatta up --json` printed."""
    process = subprocess.Popen(
        [*REGATTA, "up", "--home", str(home), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    deadline = threading.Timer(TIMEOUT_S, process.kill)
    deadline.start()
    line = process.stdout.readline()
    deadline.cancel()
    try:
        assert line, process.communicate(timeout=TIMEOUT_S)[1]
        yield json.loads(line)
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert not (home / "server.json").exists()


def test_init_makes_a_fleet_that_up_keeps(home: Path) -> None:
    """`init` twice is one fleet; without a server, commands say how to start it."""
    first, again = (json.loads(regatta(home, "init", "--json").stdout) for _ in range(2))
    without = regatta(home, "status")

    assert first == again
    assert without.returncode == 75
    assert "`regatta up`" in without.stderr


def test_the_page_is_where_up_says(up: dict[str, Any]) -> None:
    """The printed address opens the page."""
    with requests.Session() as browser:
        page = browser.get(up["page"], timeout=10)

    assert page.status_code == 200
    assert up["server"]["fleet"] in page.text


def test_a_model_file_becomes_a_version(home: Path, up: dict[str, Any], tmp_path: Path) -> None:
    """Pushed, shown, and rolled out to nobody with a clear refusal."""
    pushed = regatta(home, "model", "push", str(MODEL), "--name", "digits", "--labels", str(LABELS), "--json")
    shown = regatta(home, "model", "show", "digits")
    refused = regatta(home, "rollout", "start", "digits:1", "--wait")

    assert pushed.returncode == 0, pushed.stderr
    assert json.loads(pushed.stdout)["version"] == 1
    assert "float32" in shown.stdout
    assert refused.returncode == 65
    assert "regatta device token" in refused.stderr


def test_a_token_is_one_word(home: Path, up: dict[str, Any]) -> None:
    """For `regatta-agent enroll $(regatta device token)`."""
    made = regatta(home, "device", "token", "--device", "cam-1", "--valid", "5m")

    assert made.returncode == 0, made.stderr
    assert len(made.stdout.split()) == 1


def test_a_second_server_is_refused(home: Path, up: dict[str, Any]) -> None:
    """One server a home."""
    second = regatta(home, "up")

    assert second.returncode == 78
    assert "runs already" in second.stderr
