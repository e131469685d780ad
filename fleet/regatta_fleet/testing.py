"""A fleet's server without devices, broker or database: the operator API in memory, for tests of its clients.

`FakeFleet` is the state, and testing_app.py answers the same endpoints over it with the same shapes as the server;
tests/contract holds both to one suite.
It signs nothing and sends nothing: devices appear with `add_device`, a rollout moves when a test calls `decide`.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field

from regatta_fleet.schemas import (
    BatchDetail,
    BatchOnDevice,
    BatchRequest,
    BundleDraft,
    DeviceDetail,
    DeviceSummary,
    FleetEvent,
    FleetStatus,
    GroupPolicy,
    GroupWindows,
    ModelSummary,
    Problem,
    ResultsOnDevice,
    ResultsRequest,
    RolloutDetail,
    RolloutRequest,
    RolloutState,
    TokenRequest,
    VersionDetail,
    WaveDetail,
    WaveState,
)
from regatta_protocol.batch import BatchState, ResultsState
from regatta_protocol.ids import DeviceId, digest_of_bytes
from regatta_protocol.manifest import FileRef, Manifest

__all__ = ["FakeFleet", "FakeProblem"]


class FakeProblem(Exception):
    """What the server would refuse a call with."""

    def __init__(self, code: int, error: str, hint: str | None = None) -> None:
        super().__init__(error)
        self.code = code
        self.problem = Problem(error=error, hint=hint)


@dataclass
class FakeFleet:
    """The state behind the fake API; tests look at it and change it."""

    token: str = field(default_factory=secrets.token_urlsafe)
    devices: dict[str, DeviceDetail] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    versions: dict[str, list[Manifest]] = field(default_factory=dict)
    rollouts: dict[str, RolloutDetail] = field(default_factory=dict)
    events: list[FleetEvent] = field(default_factory=list)
    tokens: list[TokenRequest] = field(default_factory=list)
    policies: dict[tuple[str, str | None], GroupPolicy] = field(default_factory=dict)
    windows: dict[str, GroupWindows] = field(default_factory=dict)
    batches: dict[str, BatchDetail] = field(default_factory=dict)
    outputs: dict[tuple[str, str], bytes] = field(default_factory=dict)  # what devices would send, by batch and device
    late: set[str] = field(default_factory=set)  # devices that are asked, and send nothing yet
    broker_up: bool = True

    def add_device(self, device: DeviceDetail) -> None:
        """Put a device, or a newer state of it, into the fleet."""
        self.devices[device.id] = device

    def say(self, kind: str, text: str, device: str | None = None) -> None:
        """Add a line to the history."""
        at = max(time.time(), self.events[-1].at + 1e-6 if self.events else 0.0)
        self.events.append(FleetEvent(at=at, kind=kind, text=text, device=device))

    def decide(
        self, rollout: str, state: RolloutState, reason: str, wave: int = 1, wave_state: WaveState = WaveState.PROMOTED
    ) -> RolloutDetail:
        """Move a rollout on as a gate would: `wave` becomes `wave_state` with the reason."""
        old = self.rollouts[rollout]
        waves = tuple(
            one.model_copy(update={"state": wave_state, "reason": reason, "succeeded": len(one.devices)})
            if one.number == wave
            else one
            for one in old.waves
        )
        done = state not in (RolloutState.RUNNING, RolloutState.HELD)
        self.rollouts[rollout] = old.model_copy(
            update={
                "state": state,
                "reason": reason,
                "waves": waves,
                "finished_at": time.time() if done else None,
            }
        )
        return self.rollouts[rollout]

    def status(self) -> FleetStatus:
        """Return the whole fleet."""
        return FleetStatus(
            fleet="harbor",
            version="0.1.0",
            broker="127.0.0.1:8883",
            broker_up=self.broker_up,
            devices=tuple(self.devices.values()),
            models=tuple(self.model(name) for name in self.versions),
            rollouts=tuple(self.rollouts.values()),
            events=tuple(self.events[-100:]),
        )

    def model(self, name: str) -> ModelSummary:
        """Return one model."""
        serving = sum(any(m.serving and m.name == name for m in d.models) for d in self.devices.values())
        versions = tuple(manifest.version for manifest in self.known(name))
        return ModelSummary.model_validate({"name": name, "versions": versions, "devices_serving": serving})

    def known(self, name: str) -> list[Manifest]:
        """Return the versions of a model."""
        if name not in self.versions:
            known = ", ".join(self.versions) or "none yet"
            raise FakeProblem(404, f"there is no model {name}", f"the fleet has {known}")
        return self.versions[name]

    def device(self, device: DeviceId) -> DeviceDetail:
        """Return one device with its races."""
        if device not in self.devices:
            raise FakeProblem(404, f"there is no device {device}", "`regatta device list` shows them all")
        return self.devices[device]

    def create_version(self, name: str, draft: BundleDraft) -> Manifest:
        """Store the next version of a model."""
        refs: list[FileRef] = [variant.file for variant in draft.variants]
        refs += [ref for ref in (draft.golden, draft.evaluation, draft.labels) if ref is not None]
        missing = [ref.digest for ref in refs if ref.digest not in self.blobs]
        if missing:
            raise FakeProblem(409, f"{len(missing)} files of the bundle are not uploaded", missing[0])
        manifest = Manifest.model_validate(
            {
                **draft.model_dump(),
                "name": name,
                "version": len(self.versions.get(name, ())) + 1,
                "created_at": "2026-01-01T00:00:00Z",
            }
        )
        self.versions.setdefault(name, []).append(manifest)
        self.say("model", f"{manifest.ref} was pushed")
        return manifest

    def version(self, name: str, version: int) -> VersionDetail:
        """Return a version and what its devices made of it."""
        known = self.known(name)
        if not 1 <= version <= len(known):
            raise FakeProblem(404, f"there is no {name}:{version}", f"the newest is {name}:{len(known)}")
        found = tuple(
            model
            for device in self.devices.values()
            for model in device.models
            if model.name == name and model.version == version
        )
        return VersionDetail(manifest=known[version - 1], devices=found)

    def start(self, request: RolloutRequest) -> RolloutDetail:
        """Begin a rollout over the chosen devices, in order of their ids."""
        self.version(request.model, request.version)
        chosen = sorted(device.id for device in self.devices.values() if _is_chosen(device, request.to))
        if not chosen:
            raise FakeProblem(409, f"{', '.join(request.to)} names no device", "`regatta device list` shows them all")
        waves, done = [], 0
        for number, share in enumerate(request.waves, start=1):
            upto = max(done + 1, round(share * len(chosen)))
            waves.append(
                WaveDetail(
                    number=number,
                    state=WaveState.OBSERVING if number == 1 else WaveState.PENDING,
                    devices=tuple(chosen[done:upto]),
                )
            )
            done = min(upto, len(chosen))
        rollout = RolloutDetail(
            id=f"r-{len(self.rollouts) + 1}",
            model=request.model,
            version=request.version,
            state=RolloutState.RUNNING,
            waves=tuple(wave for wave in waves if wave.devices),
            gate=request.gate,
            created_at=time.time(),
            ignore_window=request.ignore_window,
        )
        self.rollouts[rollout.id] = rollout
        self.say("rollout", f"{rollout.id} of {request.model}:{request.version} began")
        return rollout

    def rollout(self, rollout: str) -> RolloutDetail:
        """Return one rollout."""
        if rollout not in self.rollouts:
            raise FakeProblem(404, f"there is no rollout {rollout}", "`regatta rollout list` shows them all")
        return self.rollouts[rollout]

    def finish(self, rollout: str, state: RolloutState, reason: str) -> RolloutDetail:
        """End or resume a rollout at the operator's word."""
        old = self.rollout(rollout)
        if old.state not in (RolloutState.RUNNING, RolloutState.HELD):
            raise FakeProblem(409, f"rollout {rollout} is {old.state} already", "start a new one")
        self.rollouts[rollout] = old.model_copy(update={"state": state, "reason": reason})
        return self.rollouts[rollout]

    def start_batch(self, request: BatchRequest) -> BatchDetail:
        """Give a job to the chosen devices."""
        self.known(request.model)
        chosen = sorted(device.id for device in self.devices.values() if _is_chosen(device, request.on))
        if not chosen:
            raise FakeProblem(422, f"{', '.join(request.on)} names no device", "`regatta device list` shows them all")
        identifier = f"b-{len(self.batches) + 1}"
        self.batches[identifier] = BatchDetail(
            id=identifier,
            model=request.model,
            input=request.input,
            output=request.output or f"{identifier}.{request.format}",
            limit=request.limit,
            created_at=time.time(),
            devices=tuple(BatchOnDevice(device=one, state=BatchState.QUEUED, updated_at=time.time()) for one in chosen),
        )
        return self.batches[identifier]

    def batch(self, batch: str) -> BatchDetail:
        """Return one batch."""
        if batch not in self.batches:
            raise FakeProblem(404, f"there is no batch {batch}", "`regatta batch list` shows them all")
        return self.batches[batch]

    def cancel_batch(self, batch: str) -> BatchDetail:
        """End a batch at once."""
        old = self.batch(batch)
        ended = {"state": BatchState.CANCELLED, "reason": "cancelled before it ended"}
        self.batches[batch] = old.model_copy(
            update={"devices": tuple(one.model_copy(update=ended) for one in old.devices)}
        )
        return self.batches[batch]

    def ask_results(self, batch: str, request: ResultsRequest) -> BatchDetail:
        """Take what devices would send from `outputs` at once."""
        old = self.batch(batch)
        strangers = set(request.on) - {one.device for one in old.devices}
        if strangers:
            raise FakeProblem(
                404, f"batch {batch} is not on {', '.join(strangers)}", f"see `regatta batch show {batch}`"
            )
        chosen = [one for one in old.devices if not request.on or one.device in request.on]
        for one in chosen:
            data = self.outputs.get((batch, one.device))
            if one.state is not BatchState.DONE:
                continue
            if one.device in self.late:
                found = ResultsOnDevice(state=ResultsState.WANTED, reason="waiting: digits:2 is being raced")
            elif data is None:
                found = ResultsOnDevice(state=ResultsState.REFUSED, reason="a metered link")
            else:
                size_bytes, digest = len(data), digest_of_bytes(data)
                found = ResultsOnDevice(
                    state=ResultsState.HERE, size_bytes=size_bytes, received_bytes=size_bytes, digest=digest
                )
            self._stand(batch, one.device, found)
        return self.batches[batch]

    def _stand(self, batch: str, device: str, results: ResultsOnDevice | None) -> None:
        old = self.batches[batch]
        devices = tuple(
            one.model_copy(update={"results": results}) if one.device == device else one for one in old.devices
        )
        self.batches[batch] = old.model_copy(update={"devices": devices})

    def output(self, batch: str, device: str) -> bytes:
        """Return what a device has sent."""
        stands = {one.device: one.results for one in self.batch(batch).devices}.get(DeviceId(device))
        if stands is None or stands.state is not ResultsState.HERE:
            raise FakeProblem(404, f"the output of batch {batch} on {device} is not here")
        return self.outputs[batch, device]

    def forget_results(self, batch: str) -> BatchDetail:
        """Have no output here any more."""
        for one in self.batch(batch).devices:
            self._stand(batch, one.device, None)
        return self.batches[batch]


def _is_chosen(device: DeviceSummary, to: tuple[str, ...]) -> bool:
    return not device.revoked and bool({"all", f"group:{device.group}", str(device.id)} & set(to))
