"""The loop with real verifiers, races and serving workers; only the broker is in memory."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from device_rig import MODEL
from real_rig import RealRig, push
from regatta_agent.client import Client
from regatta_protocol.ids import ModelName
from regatta_provisioning.assignments import AssignmentKey

pytestmark = pytest.mark.system


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[RealRig]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = "{}:{}".format(*probe.getsockname())
    made = RealRig(
        tmp_path, race_budget_s=2.0, race_threads=[1], telemetry_period_s=1.0, serving={"tcp": {MODEL: address}}
    )
    made.start()
    yield made
    made.loop.stopping = "the test is over"
    made.loop.stop()
    made.processes.close()


def _state(rig: RealRig, version: int) -> Callable[[], bool]:
    return lambda: rig.state(version) == "committed" and any(w.ready for w in rig.workers().values())


def _status_over_tcp(rig: RealRig) -> int:
    """Return the status of a request to the model's TCP address, over a new connection."""
    connection = http.client.HTTPConnection(rig.config.serving.tcp[ModelName(MODEL)], timeout=10)
    try:
        connection.request("GET", f"/v2/models/{MODEL}/ready")
        return connection.getresponse().status
    finally:
        connection.close()


def test_real_race_and_worker_then_an_upgrade_a_crash_and_a_hang(
    rig: RealRig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Raced, served over socket and TCP, upgraded without a gap; started again after a SIGKILL, and when it hangs."""
    push(rig, tmp_path, 1)
    push(rig, tmp_path, 2)
    rig.fleet.assign(1, trial_s=0.5)
    assert rig.live(_state(rig, 1)), rig.install(1)
    assert rig.install(1).placement
    assert rig.status_of(f"/v2/models/{MODEL}/ready") == 200

    rig.fleet.assign(2, "r2", trial_s=0.5)

    def gapless() -> bool:
        assert rig.status_of("/v2/health/ready") == 200
        assert _status_over_tcp(rig) == 200
        return rig.state(2) == "committed" and len(rig.workers()) == 1

    assert rig.live(gapless), rig.install(2)

    os.kill(rig.worker_pid(), signal.SIGKILL)
    assert rig.live(lambda: rig.install(2).deaths == 1)
    assert rig.live(_state(rig, 2)), rig.install(2)
    assert rig.status_of("/v2/health/ready") == 200

    hung = rig.worker_pid()
    os.kill(hung, signal.SIGSTOP)
    rig.clock.pass_by(70.0)  # three windows and a minute: for so long a worker may be silent
    assert rig.live(lambda: _state(rig, 2)() and rig.worker_pid() != hung), rig.install(2)
    assert rig.status_of("/v2/health/ready") == 200
    assert any("event=worker_died" in line and "silent for" in line for line in caplog.messages)
    assert _status_over_tcp(rig) == 200
    report = json.loads((rig.config.state_dir / "races" / f"{MODEL}-2.json").read_text())
    assert report["placement"]


@pytest.mark.alone
def test_a_killed_worker_costs_clients_a_moment_and_no_request(rig: RealRig, tmp_path: Path) -> None:
    """SIGKILL under load: the agent starts it again at once, and clients ask again by themselves."""
    push(rig, tmp_path, 1)
    rig.fleet.assign(1, trial_s=0.2)
    assert rig.live(_state(rig, 1)), rig.install(1)
    answered: list[float] = []
    errors: list[BaseException] = []
    ended = threading.Event()

    def ask() -> None:
        try:
            with Client(rig.config.run_dir / f"{MODEL}.sock") as client:
                while not ended.is_set():
                    client.infer(MODEL, np.zeros((1, 8, 8, 1), np.float32))
                    answered.append(time.monotonic())
        except BaseException as err:  # noqa: BLE001 - the test asserts that there is none
            errors.append(err)

    clients = [threading.Thread(target=ask, daemon=True) for _ in range(3)]
    for client in clients:
        client.start()
    assert rig.live(lambda: len(answered) > 50)
    killed_at = time.monotonic()
    os.kill(rig.worker_pid(), signal.SIGKILL)
    assert rig.live(lambda: rig.install(1).deaths == 1)
    assert rig.live(lambda: bool(answered) and answered[-1] > killed_at + 2.0)
    ended.set()
    for client in clients:
        client.join(30.0)

    assert errors == []
    times = sorted(answered)
    assert max(after - before for before, after in pairwise(times)) < 3.0  # 0.5 s on a machine that does nothing else


def test_a_forged_assignment_and_an_unsigned_manifest_are_refused(rig: RealRig, tmp_path: Path) -> None:
    """Neither another key's assignment nor a version without signed metadata gets anywhere; the served one stays."""
    push(rig, tmp_path, 1)
    rig.fleet.assign(1, trial_s=0.2)
    assert rig.live(_state(rig, 1)), rig.install(1)
    true_sign = rig.fleet.sign
    rig.fleet.sign = AssignmentKey.create(tmp_path / "other-key").sign
    rig.fleet.assign(2, "forged")
    assert rig.live(lambda: rig.loop._parts.desired.refused is not None)
    assert rig.loop.record.generation == 1

    rig.fleet.sign = true_sign
    rig.fleet.assign(7, "r7")
    assert rig.live(lambda: rig.state(7) == "failed")
    assert "no signed target" in (rig.install(7).reason or "")
    assert rig.status_of("/v2/health/ready") == 200
