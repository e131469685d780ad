"""A latency table: layers timed here or by a device of the fleet, kept, and added up."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from regatta_fleet.optimize.nas.fleet_table import PROBES_MODEL, device_table
from regatta_fleet.optimize.nas.latency import LatencyTable, local_table
from regatta_fleet.optimize.nas.layers import Layer, build_layers, every_layer
from regatta_fleet.optimize.nas.space import SMALL, Block, SearchSpace
from regatta_fleet.schemas import BundleDraft, DeviceDetail, GateConfig, RolloutDetail, RolloutRequest, RolloutState
from regatta_protocol.errors import Rejected, Retryable
from regatta_protocol.ids import DeviceId, Digest, ModelName
from regatta_protocol.manifest import FileRef, Manifest
from regatta_protocol.measurement import BoardFacts, CandidateResult, Outcome, RaceReport
from regatta_protocol.values import Latency

_TINY = SearchSpace(space=1, blocks=(Block(op=("conv", "separable"), width=(4, 8)), Block(width=(4, 8), stride=(2,))))
_LAYERS = every_layer(_TINY, (8, 8, 1), 3)
_PORCH = DeviceId("porch")


def test_this_machines_table_is_measured_once(tmp_path: Path) -> None:
    told: list[str] = []

    def tell(message: str, share: float) -> None:
        told.append(message)

    table = local_table(_LAYERS, tmp_path, tell)
    first = len(told)
    again = local_table(_LAYERS, tmp_path, tell)

    assert table.layers_us.keys() == _LAYERS.keys()
    assert table.call_us > 0 and sum(table.layers_us.values()) > 0
    assert first > len(_LAYERS) and len(told) == first
    assert again == table
    layers = build_layers(_TINY, _TINY.draw(Random(0)), (8, 8, 1), 3)
    assert table.estimate_us(layers) == pytest.approx(table.call_us + sum(table.layers_us[one.key] for one in layers))


def test_a_layer_that_the_table_lacks_is_named() -> None:
    layers = build_layers(SMALL, SMALL.draw(Random(0)), (8, 8, 1), 10)

    with pytest.raises(Rejected, match="latency table of porch has no figure for conv"):
        LatencyTable(device="porch", setting="litert/xnnpack/t1").estimate_us(layers)


class _Fleet:
    """A fleet whose device times a layer by its work, and at most `at_once` variants a race."""

    def __init__(self, at_once: int = 100, up: bool = True) -> None:
        self.at_once = at_once
        self.up = up
        self.blobs: set[Digest] = set()
        self.races: list[RaceReport] = []
        self.aborted: list[str] = []
        self.drafts: list[BundleDraft] = []

    def device(self, device: DeviceId) -> DeviceDetail:
        races = tuple(reversed(self.races))
        return DeviceDetail(id=device, group="default", up=self.up, last_seen=1, enrolled_at=1, races=races)

    def has_blob(self, digest: Digest) -> bool:
        return digest in self.blobs

    def upload_blob(self, file: FileRef, path: Path) -> None:
        assert path.stat().st_size == file.size_bytes
        self.blobs.add(file.digest)

    def create_version(self, name: ModelName, draft: BundleDraft) -> Manifest:
        assert all(variant.file.digest in self.blobs for variant in draft.variants)
        self.drafts.append(draft)
        facts = {"name": name, "version": len(self.drafts), "created_at": "2026-01-01"}
        return Manifest.model_validate({**draft.model_dump(exclude_none=True), **facts})

    def start_rollout(self, request: RolloutRequest) -> RolloutDetail:
        assert request.model == PROBES_MODEL and request.to == (_PORCH,)
        results = []
        for place, variant in enumerate(self.drafts[request.version - 1].variants):
            for threads, times in ((1, 1.0), (2, 0.5)):
                layer = _LAYERS.get(variant.name.removeprefix("p-"))
                p50_us = times * (10 + (0 if layer is None else layer.macs / 100))
                latency = Latency(samples=5, p50_us=p50_us, p90_us=p50_us, p99_us=p50_us)
                timed = place < (self.at_once if threads == 1 else 2)
                results.append(_result(variant.name, threads, latency if timed else None))
        self.races.append(
            RaceReport(
                model=request.model,
                version=request.version,
                board=BoardFacts(),
                candidates=tuple(results),
                reason="",
                duration_s=1,
            )
        )
        return self._rollout(request.version)

    def abort_rollout(self, rollout: str) -> RolloutDetail:
        self.aborted.append(rollout)
        return self._rollout(len(self.drafts))

    def _rollout(self, version: int) -> RolloutDetail:
        return RolloutDetail(
            id=f"r-{version}",
            model=PROBES_MODEL,
            version=version,
            state=RolloutState.RUNNING,
            waves=(),
            gate=GateConfig(),
            created_at=1,
        )


def _result(variant: str, threads: int, latency: Latency | None) -> CandidateResult:
    return CandidateResult(
        id=f"litert/{variant}/xnnpack/t{threads}",
        runtime="litert",
        variant=variant,
        delegate="xnnpack",
        threads=threads,
        outcome=Outcome.DROPPED,
        reason=None if latency is not None else "not tried",
        latency=latency,
    )


def test_a_device_measures_the_layers_and_is_given_back() -> None:
    """Races that do not come to all layers are followed by others, of those that are left, in the leading setting."""
    fleet = _Fleet(at_once=10)

    table = device_table(fleet, _PORCH, _LAYERS)

    assert table.setting == "litert/xnnpack/t1" and table.device == "porch" and table.call_us == 10
    for key, layer in _LAYERS.items():
        assert table.layers_us[key] == pytest.approx(layer.macs / 100, abs=1e-3)
    assert len(fleet.races) > 1
    assert fleet.aborted == [f"r-{number + 1}" for number in range(len(fleet.races))]


def test_only_what_is_not_known_is_measured() -> None:
    fleet = _Fleet()
    table = device_table(fleet, _PORCH, _LAYERS)
    races = len(fleet.races)
    new = dict(_LAYERS)
    new["conv7"] = Layer("conv", 7, 1, (8, 8, 1), (8, 8, 4))

    same = device_table(fleet, _PORCH, _LAYERS, table)

    assert same == table and len(fleet.races) == races


def test_a_device_that_times_nothing_or_is_down_is_named() -> None:
    with pytest.raises(Rejected, match=r"device porch timed none of .*: not tried"):
        device_table(_Fleet(at_once=0), _PORCH, {key: _LAYERS[key] for key in list(_LAYERS)[:2]})
    with pytest.raises(Retryable, match="device porch is down"):
        device_table(_Fleet(up=False), _PORCH, _LAYERS)
