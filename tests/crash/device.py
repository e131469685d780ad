"""The device that the crash lab kills: the agent's own code on the real file system, beside a fleet in memory.

It is the rig of the scenario tests (device_rig.py: scripted children, a hand-moved clock) that tells all that leaves it
at the moment it does. The seed sets the models' sizes, what the network does to messages, and when things go wrong.
"""

from __future__ import annotations

import itertools
import queue
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Literal
from unittest import mock

from crash.forks import Tell
from device_rig import DEVICE, MODEL, Rig
from regatta_agent import bootstrap
from regatta_agent.disk import partial
from regatta_agent.disk.store import Store
from regatta_agent.events import Event
from regatta_agent.serving.events import WindowClosed
from regatta_agent.telemetry.outbox import Outbox
from regatta_protocol import topics
from regatta_protocol.bus import Will
from regatta_protocol.chunk import DEFAULT_CHUNK_BYTES
from regatta_protocol.codec import decode, decode_zlib, encode
from regatta_protocol.errors import RegattaError
from regatta_protocol.ids import Digest, ModelRef, digest_of_bytes
from regatta_protocol.measurement import CandidateResult, PriorRace, RaceReport
from regatta_protocol.messages import InstallState, RaceItem, Reported, TelemetryBatch, TelemetryItem
from regatta_protocol.plain import to_json
from regatta_protocol.testing import Faults, MemoryBus
from regatta_protocol.values import ServingWindow
from regatta_provisioning.identity import (
    IDENTITY_FILE,
    Identity,
    IdentityFile,
    mend_identity,
    replace_certificate,
)
from regatta_provisioning.sealed import read_sealed, write_sealed

__all__ = ["AFTER_POWER_CUT", "BOOT", "LAST_VERSION", "RACE_KEY", "STARTED", "STATE", "Device", "adjusted", "enrol"]

BOOT, AFTER_POWER_CUT = b"a run of a linux", b"the run after it"  # ids of the kernel's boots
LAST_VERSION = 3
RACE_KEY = Digest("5" * 64)
STATE = "state"  # the state folder's name
STARTED = ("litert/int8/xnnpack/t1", "litert/int8/none/t1")  # the placement that wins a race, and its standby
_NEAR_S = 60.0  # looked at twice a second; what takes longer waits for a deadline
_FAR_STEP_S = 20.0  # less than a worker may be silent, and than an answer may take
_RESTART_S = 300.0  # by systemd, at the latest (regatta-agent.service)
_SYNC_BYTES = 2 * DEFAULT_CHUNK_BYTES  # in place of 4 MiB, so that small models have syncs in mid-download too
_FAULTY = Faults(drop=0.1, truncate=0.05, duplicate=0.1, reorder=0.1, max_delay_s=0.3)
_NEXT_CERTIFICATE = b"its next certificate"
_IDENTITY = {
    "key.pem": b"the device's key", "cert.pem": b"its certificate", "ca.pem": b"ca", "root.json": b"{}",
    IDENTITY_FILE: encode(IdentityFile(
        fleet="fleet", device=DEVICE, broker_host="localhost", broker_port=1, api_url="https://localhost",
        assignment_key="", assignment_key_id="k",
        key="key.pem", certificate="cert.pem", ca="ca.pem", root="root.json",
    )),
}  # fmt: skip


class _TellingBus(MemoryBus):
    """Tells what was published at the moment it left the agent."""

    tell: Tell

    def publish(self, topic: str, payload: bytes, *, qos: Literal[0, 1] = 1, retain: bool = False) -> int:
        token = super().publish(topic, payload, qos=qos, retain=retain)
        kind = topics.parse_up(topic).kind
        if kind is topics.Up.REPORTED:
            report = decode(Reported, payload)
            committed = [model.version for model in report.models if model.state == InstallState.COMMITTED]
            self.tell("reported", report.sequence, max(committed, default=0))
        elif kind is topics.Up.TELEMETRY:
            batch = decode_zlib(TelemetryBatch, payload)
            items = [name for item in batch.items for name in _names_in(item)]
            self.tell("batch", batch.id, digest_of_bytes(encode(batch)), batch.dropped, items)
        return token


class _TellingOutbox(Outbox):
    """Tells what is stored, once it is."""

    tell: Tell

    def put(self, item: RaceItem | ServingWindow) -> None:
        super().put(item)
        for name in _names_in(item):
            self.tell("kept", name)


def _names_in(item: TelemetryItem) -> list[str]:
    """Return what tells an item from every other; windows are merged on their way, and all of them are in the sum."""
    if isinstance(item, RaceItem):
        return [f"race of {item.report.version} at {item.at:.3f}"]
    assert isinstance(item, ServingWindow), "no agent of today tells anything else"
    return [f"window {bucket}" for bucket, count in item.latency_counts.items() for _ in range(count)]


class Device(Rig):
    """One device, played by a scenario.

    Args of the constructor:
        folder: with the state and the run folder, or to be filled.
        seed: of everything that varies.
        tell: hears what leaves the device.
        outbox_bytes: how much telemetry is kept.
        later_s: how far its clock is ahead; a device that comes back does so later.
    """

    def __init__(
        self, folder: Path, seed: int, tell: Tell, *, outbox_bytes: int = 1_000_000, later_s: float = 0.0
    ) -> None:
        self.seed = seed
        self.tell = tell
        self.chance = Random(seed)
        self.fastest = STARTED[0]
        self.capacity_bytes: int | None = None  # of the disk, for models
        self.most_starts = 1
        self.failing = False  # calls, for long
        self.full = False  # the disk, by whatever else is on it
        self.forgiven: Callable[[], AbstractContextManager[None]] = nullcontext  # around what is not the agent's doing
        self._windows = itertools.count(1 + int(later_s))  # in place of a latency, to know each again
        self._done: set[str] = set()
        self._beat_s = 0.0
        self.watch: Callable[[], None] = lambda: None  # called at every look
        self.outbox_bytes = outbox_bytes
        self.told_windows = 0
        super().__init__(folder, faults=_FAULTY if seed % 2 else None)
        self.clock.pass_by(later_s)
        self.manifests = [
            self.fleet.push(version, self.chance.randint(20_000, 150_000)) for version in range(1, LAST_VERSION + 1)
        ]

    def run(self, seconds: float = 60.0, until: Callable[[], bool] | None = None, step_s: float = 0.5) -> bool:
        """Let time go by, in small steps at first; `watch` and `until` are asked at every one."""

        def looked() -> bool:
            self.watch()
            self._beat()
            return until is not None and until()

        near_s = min(seconds, _NEAR_S)
        ended = super().run(near_s, looked, step_s)
        if not ended and seconds > near_s:
            ended = super().run(seconds - near_s, looked, _FAR_STEP_S)
        return ended or until is None

    def begin(self) -> None:
        """Start, and after an error start again as systemd does, `most_starts` times at most."""
        for left in reversed(range(self.most_starts)):
            try:
                self.start()
            except (OSError, RegattaError) as err:
                if left == 0:
                    raise
                self.tell("not started", str(err))
                self.clock.pass_by(_RESTART_S)
                self.watch()
                self.kill()
                self.make()
            else:
                return

    def restart(self) -> None:
        self.kill()
        self.make()
        self.begin()

    def _beat(self) -> None:
        """Let every worker say that it lives; one that is silent for long is killed."""
        if self.clock.monotonic() - self._beat_s < _FAR_STEP_S:
            return
        self._beat_s = self.clock.monotonic()
        for child in self.launcher.alive("worker:"):
            child.say(to_json(WindowClosed(
                model=MODEL, version=1, placement=STARTED[0], start=0, stop=0, requests=0, errors=0
            )))  # fmt: skip

    @property
    def identity_folder(self) -> Path:
        return self.config.state_dir / "identity"

    def start(self) -> Device:
        mend_identity(self.identity_folder)
        super().start()
        return self

    def renew_certificate(self) -> None:
        """Do what the agent's child does with a certificate that the fleet renewed; it tries again another day."""
        try:
            replace_certificate(self.identity_folder, _NEXT_CERTIFICATE)
        except (OSError, RegattaError) as err:
            self.tell("not renewed", str(err))

    def has_identity(self) -> bool:
        """Return whether the identity is whole, once it is mended: the same key, and one of its two certificates."""
        mend_identity(self.identity_folder)
        sealed = read_sealed(self.identity_folder)
        found = {name: (self.identity_folder / name).read_bytes() for name in _IDENTITY}
        return found == sealed and found in (_IDENTITY, {**_IDENTITY, "cert.pem": _NEXT_CERTIFICATE})

    def make_outbox(self) -> Outbox:
        outbox = _TellingOutbox(self.config.state_dir / "outbox.sqlite", self.device, self.outbox_bytes)
        outbox.tell = self.tell
        return outbox

    def want(self, generation: int, version: int | None) -> None:
        """Ask for the version, and for nothing when it is None; the same again when it was asked before."""
        self.fleet.generation = generation - 1
        self.tell("assigned", generation, version)
        self.fleet.assign(version, f"r{generation}")

    def once(self, what: str, now: bool = True) -> bool:
        """Return whether `now` is the first time for `what` in this process."""
        if not now or what in self._done:
            return False
        self._done.add(what)
        return True

    def cut(self) -> None:
        """Break the connection; the device connects again."""
        self.broker.cut(DEVICE)

    def serve_window(self) -> None:
        """Let the serving worker tell of a window."""
        for child in self.launcher.alive("worker:")[:1]:
            at = self.clock.wall()
            window = WindowClosed(
                model=MODEL, version=1, placement=STARTED[0], start=at - 5, stop=at, requests=1, errors=0,
                latency_counts={next(self._windows): 1},
            )  # fmt: skip
            child.say(to_json(window))

    def race(self, model: str, version: int, prior: PriorRace | None) -> RaceReport:
        report = super().race(model, version, prior)
        if self.fastest == STARTED[0]:
            return report
        results = tuple(_hastened(one) if one.id == self.fastest else one for one in report.candidates)
        return report.model_copy(update={"candidates": results, "placement": self.fastest})

    def reason(self, version: int) -> str:
        """Return what the record says of the version, or nothing."""
        install = self.loop.record.find(ModelRef(MODEL, version))
        return (install.reason or "") if install is not None else ""

    def has_sent_all(self) -> bool:
        """Return whether no telemetry waits. To ask is to open the outbox, so while calls fail it is not asked."""
        return not self.failing and self.outbox.waiting() == 0

    def placement(self, version: int) -> str | None:
        """Return what the version is served by, when it serves."""
        install = self.loop.record.find(ModelRef(MODEL, version))
        serves = install is not None and install.successor is None and self.serving() == version
        return install.placement if install is not None and serves else None

    def free_bytes(self) -> int:
        """Return what is left of the disk."""
        if self.full:
            return 0
        if self.capacity_bytes is None:
            return 10**12
        state = self.config.state_dir
        used = sum(path.stat().st_blocks * 512 for name in ("blobs", "partial") for path in (state / name).iterdir())
        return max(0, self.capacity_bytes - used)

    def _bus(self, inbox: queue.Queue[Event], identity: Identity, will: Will) -> MemoryBus:
        bus = _TellingBus(self.broker, identity.device, inbox, topics.device_filters(identity.device), will)
        bus.tell = self.tell
        self.bus = bus
        return bus


def _hastened(result: CandidateResult) -> CandidateResult:
    if result.latency is None:
        return result
    return result.model_copy(update={"latency": replace(result.latency, p50_us=20.0, p90_us=20.0, p99_us=20.0)})


def enrol(state_dir: Path) -> None:
    """Make the state folder of a device that was enrolled and has not run yet."""
    (state_dir / "identity").mkdir(parents=True)
    for name, content in _IDENTITY.items():
        (state_dir / "identity" / name).write_bytes(content)
    write_sealed(state_dir / "identity", _IDENTITY)


@contextmanager
def adjusted(device_of: Callable[[], Device], boot: bytes = BOOT) -> Iterator[None]:
    """Sync more often than a board does, and let a device say how much of its disk is free, and which boot this is."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(partial, "_LEAST_SYNC_BYTES", _SYNC_BYTES))
        stack.enter_context(mock.patch.object(bootstrap, "kernel_boot", lambda _sysroot: boot))
        stack.enter_context(mock.patch.object(Store, "free_bytes", lambda _store: device_of().free_bytes()))
        yield
