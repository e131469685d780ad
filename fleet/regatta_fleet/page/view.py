"""What the page shows, made of the API's answers. Pure: schemas in, dataclasses for the template out.

Lists are bounded, so that the page of ten thousand devices stays a page: what needs a look comes first, and the
rest is counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from regatta_fleet import verdicts
from regatta_fleet.schemas import (
    BatchDetail,
    BatchOnDevice,
    DeviceDetail,
    DeviceModel,
    DeviceSummary,
    FleetEvent,
    FleetStatus,
    RolloutDetail,
    RolloutState,
)
from regatta_protocol.batch import BatchState
from regatta_protocol.measurement import CandidateResult, Outcome, RaceReport
from regatta_protocol.messages import InstallState
from regatta_protocol.values import Accuracy, Latency, Power
from regatta_runtimes.choice.report import ranked

__all__ = [
    "MAX_BATCHES",
    "MAX_RACED_DEVICES",
    "Bar",
    "BatchView",
    "CandidateRow",
    "FleetView",
    "ModelRow",
    "RaceView",
    "batch_view",
    "fleet_view",
    "model_rows",
    "race_view",
    "race_views",
    "raced_devices",
]

_MAX_ROWS = 200  # of devices; 200 rows are 150 KB of HTML
MAX_RACED_DEVICES = 6
MAX_BATCHES = 5
_MAX_ROLLOUTS = 5
_MAX_EVENTS = 30
_MAX_BATCH_ROWS = 50
_BATCH_ENDS = (
    BatchState.FAILED,
    BatchState.CANCELLED,
    BatchState.DONE,
)  # what all together count as: the first of them
_BATCH_ORDER = {BatchState.FAILED: 0, BatchState.DONE: 2, BatchState.CANCELLED: 3}
# A bar longer than this many times the winner's p50 is cut, else one slow candidate flattens all others.
_LONGEST_BAR = 6.0
_TROUBLE = {InstallState.FAILED, InstallState.ROLLED_BACK}


@dataclass(frozen=True)
class ModelRow:
    """One model on one device, with the figures of its serving or, before that, of its race."""

    device: DeviceSummary
    model: DeviceModel | None
    first: bool  # of the device's rows
    rows: int  # how many the device has
    p50_us: float | None = None
    p99_us: float | None = None
    accuracy: Accuracy | None = None
    power: Power | None = None
    requests: int | None = None
    live: bool = False  # measured while serving, not in the race

    @property
    def trouble(self) -> bool:
        return self.model is not None and self.model.state in _TROUBLE


@dataclass(frozen=True)
class Bar:
    """A latency as lengths in per cent of the chart's width."""

    p50: float
    p99: float
    cut: bool  # longer than is drawn


@dataclass(frozen=True)
class CandidateRow:
    """One candidate of a race."""

    result: CandidateResult
    placed: bool
    measured: bool
    verdict: str
    bar: Bar | None


@dataclass(frozen=True)
class RaceView:
    """One race on one device."""

    device: str
    report: RaceReport
    rows: tuple[CandidateRow, ...]

    @property
    def key(self) -> str:
        """A name for its element that stays the same from one rendering to the next, whatever the model is called."""
        told = f"{self.device}/{self.report.model}/{self.report.version}"
        return hashlib.sha256(told.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class BatchView:
    """A batch with its devices, those that need a look first."""

    detail: BatchDetail
    state: str  # of all devices together: running, failed, cancelled or done
    ended: int  # devices
    records: int  # done, on all devices
    refused: int  # of them
    has_output: bool  # on some device
    rows: tuple[BatchOnDevice, ...]
    devices_left_out: int


@dataclass(frozen=True)
class FleetView:
    """The whole page of a fleet."""

    status: FleetStatus
    up: int
    running: int
    rows: tuple[ModelRow, ...]
    devices_left_out: int
    rollouts: tuple[RolloutDetail, ...]
    rollouts_left_out: int
    events: tuple[FleetEvent, ...]


def fleet_view(status: FleetStatus) -> FleetView:
    """Return what the fleet's page shows of its status."""
    devices = sorted(status.devices, key=_needs_a_look)
    shown: list[ModelRow] = []
    count = 0
    for device in devices:
        rows = model_rows(device)
        if shown and len(shown) + len(rows) > _MAX_ROWS:
            break
        shown += rows
        count += 1
    rollouts = sorted(status.rollouts, key=lambda rollout: rollout.created_at, reverse=True)
    events = sorted(status.events, key=lambda event: event.at, reverse=True)
    return FleetView(
        status=status,
        up=sum(device.up for device in devices),
        running=sum(rollout.state == RolloutState.RUNNING for rollout in rollouts),
        rows=tuple(shown),
        devices_left_out=len(devices) - count,
        rollouts=tuple(rollouts[:_MAX_ROLLOUTS]),
        rollouts_left_out=max(0, len(rollouts) - _MAX_ROLLOUTS),
        events=tuple(events[:_MAX_EVENTS]),
    )


def model_rows(device: DeviceSummary) -> list[ModelRow]:
    """Return the device's rows: what it serves and what is on its way or failed; one empty row when neither."""
    models = verdicts.shown_models(device)
    if not models:
        return [ModelRow(device, None, first=True, rows=1)]
    return [_model_row(device, model, number, len(models)) for number, model in enumerate(models)]


def raced_devices(view: FleetView) -> tuple[DeviceSummary, ...]:
    """Return the devices whose races the fleet's page shows: the first ones that have placed something."""
    found: dict[str, DeviceSummary] = {}
    for row in view.rows:
        if row.model is not None and len(found) < MAX_RACED_DEVICES:
            found.setdefault(row.device.id, row.device)
    return tuple(sorted(found.values(), key=lambda device: device.id))


def race_views(devices: Iterable[DeviceDetail]) -> tuple[RaceView, ...]:
    """Return the newest race of each version on each device."""
    views: dict[str, RaceView] = {}
    for device in devices:
        for report in device.races:  # newest first
            view = race_view(device.id, report)
            views.setdefault(view.key, view)
    return tuple(views.values())


def race_view(device: str, report: RaceReport) -> RaceView:
    """Return a race with its bars on one scale."""
    scale_us = _scale_us(report)
    rows = tuple(
        CandidateRow(
            result=result,
            placed=result.id == report.placement,
            measured=result.outcome == Outcome.MEASURED,
            verdict=verdicts.candidate_verdict(result, report),
            bar=_bar(result.latency, scale_us) if result.latency else None,
        )
        for result in ranked(report)
    )
    return RaceView(device, report, rows)


def batch_view(detail: BatchDetail) -> BatchView:
    """Return what the page shows of a batch."""
    states = {one.state for one in detail.devices}
    ended = [one for one in detail.devices if one.state in _BATCH_ENDS]
    state = "running"
    if len(ended) == len(detail.devices):
        state = next(str(end) for end in _BATCH_ENDS if end in states)
    rows = sorted(detail.devices, key=lambda one: (_BATCH_ORDER.get(one.state, 1), one.device))
    return BatchView(
        detail=detail,
        state=state,
        ended=len(ended),
        records=sum(one.records for one in detail.devices),
        refused=sum(one.summary.refused for one in detail.devices if one.summary is not None),
        has_output=BatchState.DONE in states,
        rows=tuple(rows[:_MAX_BATCH_ROWS]),
        devices_left_out=max(0, len(rows) - _MAX_BATCH_ROWS),
    )


def _needs_a_look(device: DeviceSummary) -> tuple[int, str]:
    """Order devices: failed ones, then those that are down, then the rest; the revoked last."""
    if device.revoked:
        return 3, device.id
    if any(model.state in _TROUBLE for model in verdicts.shown_models(device)):
        return 0, device.id
    return (2 if device.up else 1), device.id


def _model_row(device: DeviceSummary, model: DeviceModel, number: int, rows: int) -> ModelRow:
    served = model.served
    live = served is not None and served.p50_us is not None
    return ModelRow(
        device=device,
        model=model,
        first=number == 0,
        rows=rows,
        p50_us=served.p50_us if served and live else model.latency.p50_us if model.latency else None,
        p99_us=served.p99_us if served and live else model.latency.p99_us if model.latency else None,
        accuracy=served.feedback if served and served.feedback else model.accuracy,
        power=served.power if served and served.power else model.power,
        requests=served.requests if served else None,
        live=live,
    )


def _scale_us(report: RaceReport) -> float:
    """Return the latency at the chart's right end, in microseconds; above 0."""
    found = [result.latency for result in report.candidates if result.latency is not None]
    longest = max((latency.p99_us for latency in found), default=0.0)
    winner = report.placed()
    fastest = winner.latency.p50_us if winner and winner.latency else min((one.p50_us for one in found), default=0.0)
    limit = fastest * _LONGEST_BAR
    return max(min(longest, limit) if limit else longest, 1e-9)


def _bar(latency: Latency, scale_us: float) -> Bar:
    return Bar(
        p50=round(max(0.5, min(100.0, 100 * latency.p50_us / scale_us)), 2),
        p99=round(max(0.5, min(100.0, 100 * latency.p99_us / scale_us)), 2),
        cut=latency.p50_us > scale_us,
    )
