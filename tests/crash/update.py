"""The update that the crash lab interrupts, and what must hold after it was killed anywhere.

`install_and_upgrade` takes a device from nothing over version 1 to version 2: the agent's own loop, record, store,
outbox and download on the real file system, with a fleet in memory and scripted children (device_rig.py). The seed
sets the models' sizes, what the network does to messages, and whether the connection breaks in a download.
`come_back` starts the agent again on what a kill left, first without a network, and checks it to the end.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Literal
from unittest import mock

from device_rig import DEVICE, MODEL, Rig
from regatta_agent import partial, record, store
from regatta_agent.core.installs import AgentRecord
from regatta_agent.events import Event
from regatta_protocol import topics
from regatta_protocol.bus import Will
from regatta_protocol.chunk import DEFAULT_CHUNK_BYTES
from regatta_protocol.codec import decode, decode_zlib, encode
from regatta_protocol.errors import RegattaError
from regatta_protocol.ids import digest_of_bytes, digest_of_file
from regatta_protocol.manifest import FileRef, Manifest
from regatta_protocol.messages import InstallState, Reported, TelemetryBatch
from regatta_protocol.testing import Faults, MemoryBus
from regatta_provisioning.identity import Identity

BUGS = ("in-place", "blob-in-place")  # seeded on request, to prove that the lab finds them
_LAST_VERSION = 2
_SYNC_BYTES = 2 * DEFAULT_CHUNK_BYTES  # in place of 128 KiB, so that small models have syncs in mid-download too
_OFFLINE_S = 30.0  # by the fake clock: for starting to serve what is on disk
_CONVERGED_S = 300.0
_SETTLED_S = 15.0


class Violation(Exception):
    """What must hold after a kill does not."""


def demand(holds: object, promise: str) -> None:
    """Raise Violation unless `holds`."""
    if not holds:
        raise Violation(promise)


@dataclass
class Heard:
    """What the fleet knows of the device, over its restarts."""

    generation: int = 0  # last assigned
    committed: int = 0  # the highest version reported so
    sequence: int = 0
    batches: dict[str, str] = field(default_factory=dict)  # id -> digest of what was in it

    def hear(self, line: str) -> None:
        """Take in what the device said; a sequence that goes back and a batch with two contents are violations."""
        kind, value, more = json.loads(line)
        if kind == "assigned":
            self.generation = value
        elif kind == "reported":
            demand(value > self.sequence, f"report {value} came after report {self.sequence}")
            self.sequence = value
            self.committed = max(self.committed, more)
        else:
            demand(self.batches.setdefault(value, more) == more, f"batch {value} came with two contents")


Tell = Callable[[str], None]


class _TellingBus(MemoryBus):
    """Tells what is published at the moment it leaves the agent, before anything else can happen."""

    tell: Tell

    def publish(self, topic: str, payload: bytes, *, qos: Literal[0, 1] = 1, retain: bool = False) -> int:
        kind = topics.parse_up(topic).kind
        if kind is topics.Up.REPORTED:
            report = decode(Reported, payload)
            committed = [model.version for model in report.models if model.state == InstallState.COMMITTED]
            self.tell(json.dumps(["reported", report.sequence, max(committed, default=0)]))
        elif kind is topics.Up.TELEMETRY:
            batch = decode_zlib(TelemetryBatch, payload)
            self.tell(json.dumps(["batch", batch.id, digest_of_bytes(encode(batch))]))
        return super().publish(topic, payload, qos=qos, retain=retain)


class _Device(Rig):
    def __init__(self, folder: Path, seed: int, tell: Tell) -> None:
        self.tell = tell
        self.chance = Random(seed)
        faulty = Faults(drop=0.1, truncate=0.05, duplicate=0.1, reorder=0.1, max_delay_s=0.3)
        super().__init__(folder, faults=faulty if seed % 2 else None)
        self.manifests = [
            self.fleet.push(version, self.chance.randint(4_000, 90_000)) for version in range(1, _LAST_VERSION + 1)
        ]
        self.cuts_at = self.chance.randint(1, 6)  # turns of a download until the connection breaks, every third seed

    def assign_version(self, version: int) -> None:
        """Ask for `version`, whose generation is the same number."""
        self.fleet.generation = version - 1
        self.tell(json.dumps(["assigned", version, 0]))
        self.fleet.assign(version, f"r{version}")

    def _bus(self, inbox: queue.Queue[Event], identity: Identity, will: Will) -> MemoryBus:
        bus = _TellingBus(self.broker, identity.device, inbox, topics.device_filters(identity.device), will)
        bus.tell = self.tell
        self.bus = bus
        return bus


def install_and_upgrade(folder: Path, seed: int, tell: Tell, bug: str | None = None) -> None:
    """Do the whole update; `tell` hears what the fleet would know at every moment."""
    with _seeded(bug):
        device = _Device(folder, seed, tell)
        device.start()
        _update(device, 1, cut=seed % 3 == 0)
        device.kill()


def come_back(folder: Path, seed: int, heard: Heard) -> None:
    """Start again on what is in the folder, and follow it to the end.

    Raises:
        Violation: with the promise that is broken.
    """
    state_dir = folder / "state"
    before = _look(state_dir, heard)
    device = _Device(folder, seed, heard.hear)
    device.broker.kill()
    device.start()
    serves = device.run(_OFFLINE_S, until=device.serves)
    served = before.serving(MODEL)
    demand(serves or served is None, f"no model serves after the restart; the record had {served}")
    device.broker.start()
    if heard.generation:
        device.assign_version(heard.generation)
    _update(device, max(1, heard.generation), cut=False)
    demand(device.state(1) == InstallState.RETIRED, f"version 1 ended {device.state(1)}")
    demand(device.outbox.waiting() == 0, "telemetry stays behind")
    _check_files(state_dir)
    wanted = {file.digest for manifest in device.manifests for file in manifest.files()}
    demand({path.name for path in (state_dir / "blobs").iterdir()} == wanted, "blobs are missing or left over")
    left = [path.name for path in state_dir.rglob("*") if path.name.endswith(".tmp") or path.parent.name == "partial"]
    demand(not left, f"left over: {left}")
    device.kill()


def _update(device: _Device, first: int, *, cut: bool) -> None:
    """Bring the device to the last version, one after the other."""
    turns = itertools.count(1)

    def done() -> bool:
        downloading = device.state(version) == InstallState.DOWNLOADING
        if cut and downloading and next(turns) == device.cuts_at:
            device.broker.cut(DEVICE)
        return device.committed(version)()

    for version in range(first, _LAST_VERSION + 1):
        if device.fleet.generation < version:
            device.assign_version(version)
        demand(device.run(_CONVERGED_S, until=done), f"version {version} ended {device.state(version)}")
    device.run(_SETTLED_S)


def _look(state_dir: Path, heard: Heard) -> AgentRecord:
    """Check the folder as the kill left it; return the record that is in it."""
    file = state_dir / "record.json"
    if file.exists():
        try:
            found = decode(AgentRecord, file.read_bytes())
        except RegattaError as err:
            raise Violation(f"record.json cannot be read: {err}") from err
    else:
        found = AgentRecord()
    demand(
        found.report_sequence >= heard.sequence,
        f"the record's sequence is {found.report_sequence}, and {heard.sequence} was reported",
    )
    installed = [install.version for install in found.all() if install.committed_at is not None]
    demand(max(installed, default=0) >= heard.committed, f"version {heard.committed} was reported and is forgotten")
    _check_files(state_dir)
    return found


def _check_files(state_dir: Path) -> None:
    """Every blob in place has its digest, and every manifest can be read."""
    for path in (state_dir / "blobs").glob("*"):
        demand(digest_of_file(path) == path.name, f"blob {path.name[:12]} has another digest")
    for path in (state_dir / "models").glob("*/*/manifest.json"):
        try:
            decode(Manifest, path.read_bytes())
        except RegattaError as err:
            raise Violation(f"a manifest cannot be read: {err}") from err


@contextlib.contextmanager
def _seeded(bug: str | None) -> Iterator[None]:
    """Sync more often than a board does; and put the bug in place of the right code."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(partial, "_LEAST_SYNC_BYTES", _SYNC_BYTES))
        if bug == "in-place":
            for module in (record, store, partial):
                stack.enter_context(mock.patch.object(module, "write_durably", _write_in_place))
        elif bug == "blob-in-place":
            begin = partial.PartialFile.__init__

            def begin_in_place(
                self: partial.PartialFile, folder: Path, blobs: Path, file: FileRef, chunk_bytes: int
            ) -> None:
                begin(self, blobs, blobs, file, chunk_bytes)

            stack.enter_context(mock.patch.object(partial.PartialFile, "__init__", begin_in_place))
        yield


def _write_in_place(path: Path, data: bytes, mode: int = 0o600) -> None:
    path.write_bytes(data)
