"""One device and its fleet in memory: the real loop, the in-memory broker, scripted children, a hand-moved clock.

The fleet's side is small on purpose: it answers metadata requests and sends chunks from a dictionary. `Rig.restart`
drops the loop without a goodbye and makes a new one from the folder, as a SIGKILL and a restart would.
"""

from __future__ import annotations

import contextlib
import json
import queue
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Literal

from regatta_agent.bootstrap import assemble
from regatta_agent.config import read_settings
from regatta_agent.core.installs import Install
from regatta_agent.events import Event
from regatta_agent.loop import Loop
from regatta_agent.telemetry.outbox import Outbox
from regatta_agent.testing import FakeClock, ScriptedLauncher
from regatta_agent.work.children import Launcher
from regatta_protocol import topics
from regatta_protocol.batch import BatchJob, ResultsWanted
from regatta_protocol.bus import Bus, Connected, Disconnected, Message, Will
from regatta_protocol.chunk import Chunk, chunk_count, pack_chunk
from regatta_protocol.codec import decode, decode_zlib, encode, encode_zlib
from regatta_protocol.errors import Rejected
from regatta_protocol.ids import DeviceId, Digest, ModelName, ModelRef, digest_of_bytes
from regatta_protocol.manifest import FileRef, Manifest, Variant, target_path
from regatta_protocol.measurement import (
    BoardFacts,
    CandidateResult,
    Outcome,
    PriorRace,
    RaceOrigin,
    RaceReport,
)
from regatta_protocol.messages import (
    Assignment,
    DesiredModel,
    Get,
    Reported,
    Request,
    Response,
    SignedAssignment,
    TelemetryBatch,
)
from regatta_protocol.policy import Policy
from regatta_protocol.testing import Faults, MemoryBroker, MemoryBus
from regatta_protocol.values import Accuracy, Latency, TensorSpec
from regatta_provisioning.identity import Identity
from regatta_provisioning.notify import Notifier
from regatta_provisioning.verifying import AssignmentJob, MetadataJob, VerifiedTarget, VerifyResult

DEVICE = DeviceId("pi-one")
MODEL = ModelName("digits")
SIGNATURE = "good"


@dataclass
class Fleet:
    """The other side: what it has signed, and what it sends."""

    broker: MemoryBroker
    device: DeviceId = DEVICE
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)  # target path -> bytes
    tamper: Callable[[Get, bytes], bytes] = lambda get, data: data
    mute: bool = False
    expired: bool = False
    clock_s: float | None = None  # what its answers say of the time
    gets: int = 0
    sent_bytes: int = 0
    reports: list[Reported] = field(default_factory=list)
    batches: list[TelemetryBatch] = field(default_factory=list)
    generation: int = 0
    sign: Callable[[Assignment], SignedAssignment] = lambda assignment: SignedAssignment(
        payload=encode(assignment).decode(), key_id="k", signature=SIGNATURE
    )
    metadata: Callable[[str, int], dict[str, str]] = lambda target, _root: {"timestamp.json": target}
    answer_race: Callable[[Request], bytes | None] = lambda request: encode_zlib(  # None: silence
        Response(id=request.id, error="nobody has raced it yet")
    )
    hear: Callable[[Message], None] = lambda _message: None  # told all that the device says
    inbox: queue.Queue[Event] = field(default_factory=lambda: queue.Queue(100_000))
    bus: Bus | None = None

    def start(self) -> None:
        self.bus = MemoryBus(self.broker, "regatta-server", self.inbox, topics.SERVER_FILTERS)
        self.bus.start()

    def push(self, version: int, size_bytes: int = 40_000, *, model: ModelName = MODEL) -> Manifest:
        """Store a version of random content."""
        weights = Random(f"{model}{version}").randbytes(size_bytes)
        golden = Random(f"golden {model}{version}").randbytes(3000)
        for data in (weights, golden):
            self.blobs[digest_of_bytes(data)] = data
        tensor = TensorSpec(name="x", dtype="int8", shape=(1, 64))
        variant = Variant(
            name="int8",
            file=FileRef(digest=digest_of_bytes(weights), size_bytes=len(weights)),
            precision="int8",
            inputs=(tensor,),
            outputs=(tensor,),
        )
        golden_ref = FileRef(digest=digest_of_bytes(golden), size_bytes=len(golden))
        manifest = Manifest(
            name=model, version=version, created_at="2026-01-01T00:00:00Z", variants=(variant,), golden=golden_ref
        )
        data = encode(manifest)
        self.manifests[target_path(manifest.ref)] = data
        self.blobs[digest_of_bytes(data)] = data
        return manifest

    def assign(
        self, version: int | None, rollout: str | None = "r1", trial_s: float = 5.0, policy: Policy | None = None,
        batch: tuple[BatchJob, ...] = (), results: tuple[ResultsWanted, ...] = (), window: tuple[str, ...] = (),
        ignore_window: bool = False, **more: int,
    ) -> None:  # fmt: skip
        """Sign and publish a desired state of the next generation."""
        self.generation += 1
        wanted = {"rollout": rollout, "trial_s": trial_s, "policy": policy, "ignore_window": ignore_window}
        models = {} if version is None else {MODEL: DesiredModel.model_validate({"version": version, **wanted})}
        models |= {ModelName(name): DesiredModel(version=other, rollout=rollout) for name, other in more.items()}
        assignment = Assignment(
            fleet="fleet", device=self.device, generation=self.generation, issued_at=1_789_000_000.0, models=models,
            batch=batch, results=results, update_window=window,
        )  # fmt: skip
        self.publish(self.sign(assignment))

    def publish(self, signed: SignedAssignment) -> None:
        self.say(topics.desired(self.device), encode(signed), retain=True)

    def say(self, topic: str, payload: bytes, *, qos: Literal[0, 1] = 1, retain: bool = False) -> None:
        assert self.bus is not None
        self.bus.publish(topic, payload, qos=qos, retain=retain)

    def answer_all(self) -> bool:
        """Answer what has come; return whether there was anything."""
        busy = False
        while not self.inbox.empty():
            event = self.inbox.get_nowait()
            if isinstance(event, Message):
                busy = True
                self._answer(event)
        return busy

    def _answer(self, message: Message) -> None:
        kind = topics.parse_up(message.topic).kind
        self.hear(message)
        if kind is topics.Up.REPORTED:
            self.reports.append(decode(Reported, message.payload))
        elif kind is topics.Up.TELEMETRY:
            self.batches.append(decode_zlib(TelemetryBatch, message.payload))
        elif kind is topics.Up.REQUEST and not self.mute:
            request = decode(Request, message.payload)
            if request.method == "race":
                answer = self.answer_race(request)
                if answer is not None:
                    self.say(topics.response(self.device), answer)
                return
            try:
                files = self.metadata(str(request.params["target"]), int(request.params["root_version"]))
                response = Response(id=request.id, files=files, at=self.clock_s)
            except Rejected as err:
                response = Response(id=request.id, error=str(err))
            self.say(topics.response(self.device), encode_zlib(response))
        elif kind is topics.Up.GET and not self.mute:
            with contextlib.suppress(Rejected):  # truncated on its way
                self._send(decode(Get, message.payload))

    def _send(self, get: Get) -> None:
        self.gets += 1
        data = self.blobs[get.digest]
        for start, stop in get.ranges:
            for index in range(start, min(stop, chunk_count(len(data), get.chunk_bytes))):
                payload = data[index * get.chunk_bytes : (index + 1) * get.chunk_bytes]
                self.sent_bytes += len(payload)
                packed = pack_chunk(Chunk(get.transfer, index, self.tamper(get, payload)))
                self.say(topics.chunk(self.device, get.transfer), packed, qos=0)

    def verify(self, job: AssignmentJob | MetadataJob) -> VerifyResult:
        """What a verifier would say."""
        if isinstance(job, AssignmentJob):
            if job.signed.signature != SIGNATURE:
                return VerifyResult(ok=False, family="untrusted", reason="the signature is not the fleet's")
            assignment = decode(Assignment, job.signed.payload.encode())
            if assignment.generation < job.min_generation:
                return VerifyResult(ok=False, family="untrusted", reason="an older generation is replayed")
            return VerifyResult(ok=True, assignment=assignment)
        if self.expired:
            return VerifyResult(ok=False, family="untrusted", reason="the timestamp metadata has expired")
        targets = {}
        for path in job.targets:
            data = self.manifests[path]
            targets[path] = VerifiedTarget(length=len(data), sha256=digest_of_bytes(data))
        return VerifyResult(ok=True, targets=targets, versions={"timestamp": 3, "snapshot": 2}, root_version=1)


class Rig:
    """A device beside its fleet."""

    def __init__(
        self, folder: Path, *, faults: Faults | None = None, device: DeviceId = DEVICE, **settings: object
    ) -> None:
        self.folder = folder
        self.device = device
        self.clock = FakeClock()
        self.broker = MemoryBroker(faults)
        self.fleet = self.make_fleet(device)
        self.fleet.start()
        self.accuracy: dict[int, float] = {}
        self.unplaced: set[int] = set()
        given = {"state_dir": folder / "state", "run_dir": folder / "run", "disk_reserve_bytes": 0, **settings}
        self.config = read_settings(json.loads(json.dumps(given, default=str)), "the rig")  # as a file says it
        self.config.state_dir.mkdir(parents=True, exist_ok=True)
        identity_dir = self.config.state_dir / "identity"
        identity_dir.mkdir(exist_ok=True)
        self.identity = Identity(
            fleet="fleet", device=device, broker_host="localhost", broker_port=1, api_url="https://localhost",
            key_path=identity_dir / "key.pem", certificate_path=identity_dir / "cert.pem",
            ca_path=identity_dir / "ca.pem", root_path=identity_dir / "root.json",
            assignment_key="", assignment_key_id="k",
        )  # fmt: skip
        self.bus: Bus
        self.starts = 0
        self.races: list[int] = []
        self.confirmations: list[int] = []
        self.race_key: Digest | None = None
        self.make()

    def make_fleet(self, device: DeviceId) -> Fleet:
        """Return the other side."""
        return Fleet(self.broker, device)

    def make(self) -> None:
        """Build the agent from what is in the folder, and start it."""
        self.starts += 1
        self.inbox: queue.Queue[Event] = queue.Queue(100_000)
        self.launcher = ScriptedLauncher(self.inbox, self.fleet.verify, self.race)
        self.launcher.race_key = self.race_key
        self.processes: Launcher = self.wrap(self.inbox, self.launcher)
        self.outbox = self.make_outbox()
        self.outbox.open()
        self.loop: Loop = assemble(
            self.config,
            self.identity,
            inbox=self.inbox,
            launcher=self.processes,
            outbox=self.outbox,
            make_bus=self._bus,
            board=BoardFacts(model="test board"),
            clock=self.clock,
            rng=Random(self.starts),
            boot=f"{self.starts:08x}",
            notifier=Notifier(None, None),
        )

    def wrap(self, inbox: queue.Queue[Event], scripted: ScriptedLauncher) -> Launcher:
        """Return what starts children; a test may put real ones in place of some."""
        return scripted

    def make_outbox(self) -> Outbox:
        return Outbox(self.config.state_dir / "outbox.sqlite", self.device, 1_000_000)

    def start(self) -> Rig:
        self.loop.start()
        return self

    def kill(self) -> None:
        """Drop the agent as SIGKILL does: children and connection are gone, nothing is said."""
        self.broker.cut(self.device, reconnect=False)
        if isinstance(self.bus, MemoryBus):
            self.broker.leave(self.bus)
        self.outbox.close()

    def restart(self) -> None:
        self.kill()
        self.make()
        self.start()

    def race(self, model: str, version: int, prior: PriorRace | None) -> RaceReport:
        """What a race would report; a prior is confirmed."""
        (self.races if prior is None else self.confirmations).append(version)
        accuracy = self.accuracy.get(version)
        results = tuple(
            CandidateResult(
                id=f"litert/int8/{delegate}/t1", runtime="litert", variant="int8", delegate=delegate, threads=1,
                outcome=Outcome.MEASURED, latency=Latency(samples=9, p50_us=p50, p90_us=p50, p99_us=p50),
                accuracy=Accuracy(correct=round(accuracy * 100), total=100) if accuracy is not None else None,
                pair=f"the pair of {delegate}",
            )
            for delegate, p50 in (("xnnpack", 50.0), ("none", 80.0))
        )  # fmt: skip
        placed = version not in self.unplaced
        return RaceReport(
            model=model,
            version=version,
            board=BoardFacts(),
            candidates=results,
            placement=results[0].id if placed else None,
            reason="fastest" if placed else "its operator Foo is supported by none",
            duration_s=1.0,
            basis="full" if prior is None else "confirmed",
            prior=None if prior is None else RaceOrigin(device=prior.device, at=prior.at, placement=results[0].id),
        )

    def run(self, seconds: float = 60.0, until: Callable[[], bool] | None = None, step_s: float = 0.5) -> bool:
        """Let time go by; return whether `until` came true."""
        passed = 0.0
        while passed <= seconds:
            for _ in range(200):
                self.loop.turn(0.0)
                self.broker.deliver(self.clock.monotonic())
                if not self.fleet.answer_all() and self.inbox.empty():
                    break
            if until is not None and until():
                return True
            self.clock.pass_by(step_s)
            passed += step_s
        return until is None

    def install(self, version: int, model: ModelName = MODEL) -> Install:
        found = self.loop.record.find(ModelRef(model, version))
        assert found is not None, f"{model}:{version} is unknown"
        return found

    def state(self, version: int) -> str:
        found = self.loop.record.find(ModelRef(MODEL, version))
        return found.state if found is not None else "unknown"

    def serving(self) -> int | None:
        """Return the version whose live worker the model's socket leads to."""
        link = self.config.run_dir / f"{MODEL}.sock"
        if not link.is_symlink():
            return None
        name = link.readlink().name
        for child in self.launcher.alive("worker:"):
            spec = json.loads(Path(child.argv[3]).read_text())
            if Path(spec["socket_path"]).name == name:
                return int(spec["version"])
        return None

    def serves(self) -> bool:
        return self.serving() is not None

    def committed(self, version: int) -> Callable[[], bool]:
        return lambda: self.state(version) == "committed" and self.serving() == version

    def _bus(self, inbox: queue.Queue[Event], identity: Identity, will: Will) -> Bus:
        self.bus = MemoryBus(
            self.broker, identity.device, inbox, topics.device_filters(identity.device), will
        )  # fmt: skip
        return self.bus


def installed(folder: Path, version: int = 1, **settings: object) -> Rig:
    """Return a rig that serves `version`."""
    rig = Rig(folder, **settings).start()  # type: ignore[arg-type]
    rig.fleet.push(version)
    rig.fleet.assign(version)
    assert rig.run(until=rig.committed(version)), rig.install(version)
    return rig


__all__ = ["DEVICE", "MODEL", "Connected", "Digest", "Disconnected", "Fleet", "Rig", "installed"]
