"""A latency table measured by a device of the fleet: probes go there as ordinary signed versions, and are raced.

Every probe is a variant of a version of the model `latency-probes`, so the device measures them as it measures any
model: side by side, with every runtime and delegate that it has. What counts is the setting (runtime, delegate,
threads) that is fastest over all probes. The device serves a probe only until its race is known: the rollout is aborted
then, which sends it back to what it ran before.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from regatta_fleet.bundle import Bundle, file_ref, write_bundle
from regatta_fleet.optimize.model_file import write_model
from regatta_fleet.optimize.nas.latency import LatencyTable, Probe, probes_of, with_measured
from regatta_fleet.optimize.nas.layers import Layer
from regatta_fleet.optimize.nas.tflite import probe_model
from regatta_fleet.schemas import BundleDraft, DeviceDetail, RolloutDetail, RolloutRequest
from regatta_protocol.errors import RegattaError, Rejected, Retryable
from regatta_protocol.ids import DeviceId, Digest, ModelName, ModelRef, parse_model_name
from regatta_protocol.manifest import FileRef, Manifest, TensorSpec, Variant
from regatta_protocol.measurement import RaceReport
from regatta_runtimes.golden import write_golden

__all__ = ["PROBES_MODEL", "Fleet", "device_table", "settings_of"]

PROBES_MODEL: ModelName = parse_model_name("latency-probes")
_VARIANTS = 24  # of a version: a race of 20 s then gives each of some 200 candidates its turns
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
    parts = list(_parts(lacking))
    reports = []
    for at, part in enumerate(parts):
        progress(f"device {device} races layers, part {at + 1} of {len(parts)}", at / len(parts))
        reports.append(_raced(fleet, device, part, timeout_s))
    settings = settings_of(reports)
    names = {name for part in parts for name, _, _ in part}
    whole = {setting: times for setting, times in settings.items() if names <= times.keys()}
    if not whole:
        reasons = sorted({result.reason or "" for report in reports for result in report.candidates} - {""})
        raise Rejected(f"device {device} has no setting that ran every probe: {'; '.join(reasons[:3]) or 'no reason'}")
    if known is not None and known.setting in whole:
        setting = known.setting
    else:
        setting, known = min(whole, key=lambda name: sum(whole[name].values())), None
    table = known or LatencyTable(device=str(device), setting=setting, board=found.board.fingerprint_text())
    return with_measured(table, lacking, whole[setting])


def settings_of(reports: Sequence[RaceReport]) -> dict[str, dict[str, float]]:
    """Return the p50 of each probe by setting, in microseconds, of those that were timed."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for report in reports:
        for result in report.candidates:
            if result.latency is not None:
                options = f"+{result.option_set}" if result.option_set else ""
                setting = f"{result.runtime}/{result.delegate}{options}/t{result.threads}"
                found[setting][result.variant] = result.latency.p50_us
    return dict(found)


def _parts(layers: Mapping[str, Layer]) -> Iterator[tuple[Probe, ...]]:
    """Yield probes for a version at a time: layers of one shape together, each with the probe without a layer."""
    part: dict[str, Layer] = {}
    for key, layer in sorted(layers.items(), key=lambda pair: (pair[1].before, pair[0])):
        if len(probes_of({**part, key: layer})) > _VARIANTS:
            yield probes_of(part)
            part = {}
        part[key] = layer
    if part:
        yield probes_of(part)


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
