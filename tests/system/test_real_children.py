"""The loop with real verifiers, races and serving workers; only the broker is in memory."""

from __future__ import annotations

import http.client
import json
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from device_rig import MODEL, Rig
from regatta_agent.children import Launcher, ProcessLauncher
from regatta_agent.client import Client
from regatta_agent.events import Event
from regatta_agent.testing import ScriptedLauncher
from regatta_protocol.codec import encode
from regatta_protocol.ids import digest_of_bytes
from regatta_protocol.manifest import FileRef, Manifest, TensorSpec, Variant, target_path
from regatta_provisioning.assignments import AssignmentKey
from regatta_provisioning.repository import MetadataRepository
from regatta_runtimes.golden import write_golden
from tiny_model import build_tiny_model

pytestmark = pytest.mark.system


class _RealRig(Rig):
    """A rig whose children are processes, and whose fleet signs with keys."""

    def __init__(self, folder: Path, **settings: object) -> None:
        super().__init__(folder, **settings)  # type: ignore[arg-type]
        authority = folder / "authority"
        authority.mkdir()
        self.repository = MetadataRepository.create(authority / "metadata", clock=self.clock.wall)
        key = AssignmentKey.create(authority / "assignments")
        self.fleet.sign = key.sign
        self.fleet.metadata = self.repository.files_for
        self.identity.root_path.write_text(self.repository.root_json)
        self.identity = replace(self.identity, assignment_key=key.public_key_b64, assignment_key_id=key.key_id)
        self.make()

    def wrap(self, inbox: queue.Queue[Event], scripted: ScriptedLauncher) -> Launcher:
        return ProcessLauncher(inbox)

    def live(self, until: Callable[[], bool], limit_s: float = 60.0) -> bool:
        """Let real time go by until `until` is true."""
        begun = time.monotonic()
        while time.monotonic() - begun < limit_s:
            before = time.monotonic()
            self.loop.turn(0.02)
            self.fleet.answer_all()
            self.clock.pass_by(time.monotonic() - before)
            if until():
                return True
        return False

    def worker_pid(self) -> int:
        """Return the pid of the worker that serves."""
        workers = self.loop.facts().workers
        assert len(workers) == 1
        pool = self.loop._parts.workers
        return next(iter(pool._workers.values())).child.pid

    def status_of(self, path: str) -> int:
        """Return the HTTP status that the model's socket answers."""
        connection = http.client.HTTPConnection("localhost", timeout=5)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(5)
        try:
            connection.sock.connect(str(self.config.run_dir / f"{MODEL}.sock"))
            connection.request("GET", path)
            return connection.getresponse().status
        finally:
            connection.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[_RealRig]:
    made = _RealRig(tmp_path, race_budget_s=4.0, race_threads=[1], telemetry_period_s=1.0)
    made.start()
    yield made
    made.loop.stopping = "the test is over"
    made.loop.stop()
    made.processes.close()


def _push(rig: _RealRig, folder: Path, version: int) -> None:
    data = build_tiny_model(seed=version)
    model = folder / f"tiny-{version}.tflite"
    model.write_bytes(data)
    golden = folder / f"golden-{version}.npz"
    write_golden({"float32": model}, golden, count=4)
    blobs = {"model": data, "golden": golden.read_bytes()}
    refs = {key: FileRef(digest=digest_of_bytes(blob), size_bytes=len(blob)) for key, blob in blobs.items()}
    variant = Variant(
        name="float32",
        file=refs["model"],
        precision="float32",
        inputs=(TensorSpec(name="image", dtype="float32", shape=(1, 8, 8, 1)),),
        outputs=(TensorSpec(name="scores", dtype="float32", shape=(1, 10)),),
    )
    manifest = Manifest(
        name=MODEL, version=version, created_at="2026-01-01T00:00:00Z", variants=(variant,), golden=refs["golden"]
    )
    text = encode(manifest)
    rig.repository.add_target(target_path(manifest.ref), text)
    rig.fleet.blobs |= {digest_of_bytes(blob): blob for blob in (*blobs.values(), text)}


def _state(rig: _RealRig, version: int) -> Callable[[], bool]:
    return lambda: rig.state(version) == "committed" and any(w.ready for w in rig.loop.facts().workers.values())


def test_real_race_and_worker_then_an_upgrade_and_a_crash(rig: _RealRig, tmp_path: Path) -> None:
    """Raced, served over its socket, upgraded without a gap, and started again after a SIGKILL."""
    _push(rig, tmp_path, 1)
    _push(rig, tmp_path, 2)
    rig.fleet.assign(1, trial_s=0.5)
    assert rig.live(_state(rig, 1)), rig.install(1)
    assert rig.install(1).placement
    assert rig.status_of(f"/v2/models/{MODEL}/ready") == 200

    rig.fleet.assign(2, "r2", trial_s=0.5)

    def gapless() -> bool:
        assert rig.status_of("/v2/health/ready") == 200
        return rig.state(2) == "committed" and len(rig.loop.facts().workers) == 1

    assert rig.live(gapless), rig.install(2)

    os.kill(rig.worker_pid(), signal.SIGKILL)
    assert rig.live(lambda: rig.install(2).deaths == 1)
    assert rig.live(_state(rig, 2)), rig.install(2)
    assert rig.status_of("/v2/health/ready") == 200
    report = json.loads((rig.config.state_dir / "races" / f"{MODEL}-2.json").read_text())
    assert report["placement"]


def test_a_killed_worker_costs_clients_a_moment_and_no_request(rig: _RealRig, tmp_path: Path) -> None:
    """SIGKILL under load: the agent starts it again at once, and clients ask again by themselves."""
    _push(rig, tmp_path, 1)
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


def test_a_forged_assignment_and_an_unsigned_manifest_are_refused(rig: _RealRig, tmp_path: Path) -> None:
    """Neither another key's assignment nor a version without signed metadata gets anywhere; the served one stays."""
    _push(rig, tmp_path, 1)
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
