"""A latency table measured by a device of the fleet: probes go there as ordinary signed versions, and are raced.

Every probe is a variant of a version of the model `latency-probes`, so the device measures them as it measures any
model: side by side, with every runtime and delegate that it has. What counts is the setting (runtime, delegate,
threads) that is fastest over all layers; what a race did not come to is sent again. The device serves a probe only
until its race is known: the rollout is aborted then, which sends it back to what it ran before.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from regatta_fleet.models.bundle import Bundle, file_ref, write_bundle
from regatta_fleet.optimize.model_file import write_model
from regatta_fleet.optimize.nas.latency import LatencyTable, Probe, layer_latencies, probes_of
from regatta_fleet.optimize.nas.layers import Layer
from regatta_fleet.optimize.nas.tflite import probe_model
from regatta_fleet.schemas import BundleDraft, DeviceDetail, RolloutDetail, RolloutRequest
from regatta_protocol.errors import RegattaError, Rejected, Retryable
from regatta_protocol.ids import DeviceId, Digest, ModelName, ModelRef, parse_model_name
from regatta_protocol.manifest import FileRef, Manifest, Variant
from regatta_protocol.measurement import RaceReport
from regatta_protocol.values import TensorSpec
from regatta_runtimes.worker.golden import write_golden

__all__ = ["PROBES_MODEL", "Fleet", "device_table", "settings_of"]

PROBES_MODEL: ModelName = parse_model_name("latency-probes")
_VARIANTS = 16  # of a version: 160 candidates on two cores; a race of 20 s came to 80 of them on a busy machine
_POLL_S = 0.5
_TRIAL_S = 3600.0  # longer than any race, so that the version is never committed
Progress = Callable[[str, float], None]


class Fleet(Protocol):
    """What is needed of the fleet; FleetClient is one."""

    def device(self, device: DeviceId) -> DeviceDetail: ...

    def has_blob(self, digest: Digest) -> bool: ...

    def upload_blob(self, file: FileRef, path: Path) -> None: ...

    def create_version(self, name: ModelName, draft: BundleDraft) -> Manifest: ...

    def start_rollout(self, request: RolloutRequest) -> RolloutDetail: ...

    def abort_rollout(self, rollout: str) -> RolloutDetail: ...


def device_table(
    fleet: Fleet,
    device: DeviceId,
    layers: Mapping[str, Layer],
    known: LatencyTable | None = None,
    progress: Progress = lambda message, share: None,
    *,
    timeout_s: float = 300.0,
) -> LatencyTable:
    """Return the device's table, measured for those layers that `known` lacks.

    Args:
        timeout_s: for one version of probes, from its push to its race.

    Raises:
        Rejected: when the device is revoked, or no setting ran every probe; its reason is told.
        Retryable: when the device is down, or a race is not known in time.
    """
    lacking = {key: layer for key, layer in layers.items() if known is None or key not in known.layers_us}
    if known is not None and not lacking:
        return known
    found = fleet.device(device)
    if found.revoked:
        raise Rejected(f"device {device} is revoked: name another")
    if not found.up:
        raise Retryable(f"device {device} is down: it must be up to measure. `regatta device list` shows which are")
    measured = _Measured(lacking)
    while measured.pending():
        part = _part(measured.pending())
        share = 1 - len(measured.pending()) / len(lacking)
        progress(f"device {device} races layers, {len(measured.pending())} to go", share)
        report = _raced(fleet, device, probes_of(part), timeout_s)
        if not measured.take(part, report):
            reasons = sorted({result.reason for result in report.candidates if result.reason is not None})
            told = "; ".join(reasons[:3]) or "no reason"
            raise Rejected(f"device {device} timed none of {len(part)} layers with {measured.setting}: {told}")
    setting = measured.setting
    if known is not None and known.setting != setting:
        return device_table(fleet, device, layers, None, progress, timeout_s=timeout_s)
    table = known or LatencyTable(device=str(device), setting=setting, board=found.board.fingerprint_text())
    layers_us = {**table.layers_us, **measured.layers_us[setting]}
    return table.model_copy(update={"call_us": measured.call_us[setting], "layers_us": dict(sorted(layers_us.items()))})


class _Measured:
    """What races have told so far, by setting. The leading setting has the most layers, and is the fastest of those."""

    def __init__(self, layers: Mapping[str, Layer]) -> None:
        self._layers = dict(layers)
        self.layers_us: dict[str, dict[str, float]] = {}
        self.call_us: dict[str, float] = {}

    @property
    def setting(self) -> str:
        """The leading setting."""

        def rank(name: str) -> tuple[int, float]:
            return -len(self.layers_us[name]), sum(self.layers_us[name].values())

        return min(sorted(self.layers_us), key=rank, default="any setting")

    def pending(self) -> dict[str, Layer]:
        """Return the layers that the leading setting lacks: a race has a time limit, and may not come to all."""
        known = self.layers_us.get(self.setting, {})
        return {key: layer for key, layer in self._layers.items() if key not in known}

    def take(self, part: Mapping[str, Layer], report: RaceReport) -> bool:
        """Take in a race, each layer held against the empty probe of the same race; return whether it told anything."""
        before = len(self.pending())
        empty = [name for name, layer, _ in probes_of(part) if layer is None]
        for setting, times in settings_of(report).items():
            self.layers_us.setdefault(setting, {}).update(layer_latencies(part, times))
            least = min((times[name] for name in empty if name in times), default=None)
            if least is not None:
                self.call_us[setting] = round(min(least, self.call_us.get(setting, least)), 4)
        return len(self.pending()) < before


def settings_of(report: RaceReport) -> dict[str, dict[str, float]]:
    """Return the p50 of each probe by setting (runtime, delegate, threads), in microseconds, of those timed."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for result in report.candidates:
        if result.latency is not None:
            options = f"+{result.option_set}" if result.option_set else ""
            setting = f"{result.runtime}/{result.delegate}{options}/t{result.threads}"
            found[setting][result.variant] = result.latency.p50_us
    return dict(found)


def _part(layers: Mapping[str, Layer]) -> dict[str, Layer]:
    """Return the layers of the next version: those of one shape together, for each shape needs an empty probe."""
    part: dict[str, Layer] = {}
    for key, layer in sorted(layers.items(), key=lambda pair: (pair[1].before, pair[0])):
        if part and len(probes_of({**part, key: layer})) > _VARIANTS:
            break
        part[key] = layer
    return part


def _raced(fleet: Fleet, device: DeviceId, probes: tuple[Probe, ...], timeout_s: float) -> RaceReport:
    with tempfile.TemporaryDirectory(prefix="regatta-probes-") as scratch:
        bundle = _bundle(probes, Path(scratch))
        for ref in bundle.files():
            if not fleet.has_blob(ref.digest):
                fleet.upload_blob(ref, bundle.path_of(ref))
        manifest = fleet.create_version(PROBES_MODEL, bundle.draft)
    rollout = fleet.start_rollout(
        RolloutRequest(model=PROBES_MODEL, version=manifest.version, to=(device,), waves=(1.0,), trial_s=_TRIAL_S)
    )
    try:
        return _await_race(fleet, device, manifest.ref, timeout_s)
    finally:
        _withdraw(fleet, rollout.id)


def _await_race(fleet: Fleet, device: DeviceId, ref: ModelRef, timeout_s: float) -> RaceReport:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        detail = fleet.device(device)
        for report in detail.races:
            if report.model == ref.name and report.version == ref.version:
                return report
        for model in detail.models:
            if model.name == ref.name and model.version == ref.version and model.state == "failed":
                raise Rejected(f"device {device} could not install {ref}: {model.reason}")
        time.sleep(_POLL_S)
    raise Retryable(
        f"device {device} told no race of {ref} within {timeout_s:.0f} s: see `regatta device show {device}`"
    )


def _withdraw(fleet: Fleet, rollout: str) -> None:
    try:
        fleet.abort_rollout(rollout)
    except RegattaError as err:
        if "over" not in str(err):  # it failed by itself, which sends the device back too
            raise


def _bundle(probes: tuple[Probe, ...], scratch: Path) -> Bundle:
    files: dict[str, Path] = {}
    variants = []
    for name, layer, before in probes:
        files[name] = scratch / f"{name}.tflite"
        write_model(probe_model(layer, before), files[name])
        after = before if layer is None else layer.after
        shape = (1, after[2]) if layer is not None and layer.kind == "dense" else (1, *after)
        variants.append(
            Variant(
                name=name,
                file=file_ref(files[name]),
                precision="float32",
                inputs=(TensorSpec(name="x", dtype="float32", shape=(1, 1, 1, 1)),),
                outputs=(TensorSpec(name="out", dtype="float32", shape=shape),),
                steps=("a probe of one layer",),
            )
        )
    golden = scratch / "golden.npz"
    write_golden(files, golden, count=2)
    draft = BundleDraft(
        variants=tuple(variants),
        golden=file_ref(golden),
        source="probes of an architecture search",
        lineage=("probes of an architecture search",),
    )
    paths = {variant.file.digest: files[variant.name] for variant in variants}
    return write_bundle(scratch / "bundle", draft, {**paths, draft.golden.digest: golden})
