"""A device rig whose children are processes: verifiers, races and serving workers; only the broker is in memory."""

from __future__ import annotations

import http.client
import queue
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from device_rig import MODEL, Rig
from regatta_agent.core.facts import WorkerFacts
from regatta_agent.events import Event
from regatta_agent.testing import ScriptedLauncher
from regatta_agent.work.children import Launcher, ProcessLauncher
from regatta_protocol.codec import encode
from regatta_protocol.ids import ModelRef, digest_of_bytes
from regatta_protocol.manifest import FileRef, Manifest, Variant, target_path
from regatta_protocol.values import TensorSpec
from regatta_provisioning.assignments import AssignmentKey
from regatta_provisioning.repository import MetadataRepository
from regatta_runtimes.worker.golden import write_golden
from tiny_models import build_tiny_model

__all__ = ["RealRig", "push", "push_model"]


class RealRig(Rig):
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

    def workers(self) -> Mapping[ModelRef, WorkerFacts]:
        """Return what the worker of each version is up to."""
        return self.loop._parts.workers.facts(self.clock.monotonic())

    def worker_pid(self) -> int:
        """Return the pid of the worker that serves."""
        assert len(self.workers()) == 1
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


def push(rig: RealRig, folder: Path, version: int) -> None:
    """Let the fleet offer a tiny model as a version."""
    image = TensorSpec(name="image", dtype="float32", shape=(1, 8, 8, 1))
    scores = TensorSpec(name="scores", dtype="float32", shape=(1, 10))
    push_model(rig, folder, version, build_tiny_model(seed=version), (image, scores))


def push_model(
    rig: RealRig,
    folder: Path,
    version: int,
    data: bytes,
    tensors: tuple[TensorSpec, TensorSpec],
    requires: tuple[str, ...] = (),
) -> None:
    """Let the fleet offer a model of one input and one output as a version."""
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
        inputs=tensors[:1],
        outputs=tensors[1:],
        requires=requires,
    )
    manifest = Manifest(
        name=MODEL, version=version, created_at="2026-01-01T00:00:00Z", variants=(variant,), golden=refs["golden"]
    )
    text = encode(manifest)
    rig.repository.add_target(target_path(manifest.ref), text)
    rig.fleet.blobs |= {digest_of_bytes(blob): blob for blob in (*blobs.values(), text)}
