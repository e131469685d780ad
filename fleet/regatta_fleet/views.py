"""The fleet as the API and the page show it: rows joined into the shapes of schemas.py. Reads only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from sqlalchemy import Connection

from regatta_fleet.database import devices, events, models, rollouts, telemetry
from regatta_fleet.database.devices import DeviceRow
from regatta_fleet.database.engine import Database
from regatta_fleet.errors import NotFound
from regatta_fleet.rollouts import rolling
from regatta_fleet.schemas import (
    DeviceDetail,
    DeviceModel,
    DeviceSummary,
    FleetEvent,
    FleetStatus,
    ModelSummary,
    RolloutDetail,
    ServingSummary,
    VersionDetail,
)
from regatta_protocol.ids import DeviceId, ModelName, ModelRef
from regatta_protocol.messages import ModelReport

__all__ = ["Views"]

_STATUS_EVENTS = 50
_STATUS_ROLLOUTS = 20
MAX_EVENTS_ANSWERED = 1000

Served = dict[tuple[DeviceId, ModelName, int], ServingSummary]


@dataclass(frozen=True)
class Views:
    """Answers of one fleet. Safe to use from several threads."""

    database: Database
    fleet: str
    program: str  # this program's version
    broker: str  # host:port
    broker_up: Callable[[], bool]

    def status(self) -> FleetStatus:
        """Return the whole fleet on one page."""
        with self.database.read() as tx:
            return FleetStatus(
                fleet=self.fleet,
                version=self.program,
                broker=self.broker,
                broker_up=self.broker_up(),
                devices=_devices(tx),
                models=models.list_models(tx),
                rollouts=_rollouts(tx, _STATUS_ROLLOUTS),
                events=events.list_events(tx, limit=_STATUS_EVENTS),
            )

    def devices(self) -> tuple[DeviceSummary, ...]:
        """Return every device."""
        with self.database.read() as tx:
            return _devices(tx)

    def device(self, device: DeviceId) -> DeviceDetail:
        """Return one device with its races.

        Raises:
            NotFound: when there is no such device.
        """
        with self.database.read() as tx:
            row = devices.get_device(tx, device)
            if row is None:
                words = _guess(device, (other.id for other in devices.list_devices(tx)))
                raise NotFound(f"there is no device {device!r}{words or ': see `regatta device list`'}")
            reports = devices.list_device_reports(tx, device=device)
            summary = _summary(row, reports, telemetry.serving_summaries(tx, device=device))
            return DeviceDetail(**dict(summary), races=telemetry.list_races(tx, device))

    def models(self) -> tuple[ModelSummary, ...]:
        """Return every model."""
        with self.database.read() as tx:
            return models.list_models(tx)

    def model(self, name: ModelName) -> ModelSummary:
        """Return one model.

        Raises:
            NotFound: when there is none of that name.
        """
        with self.database.read() as tx:
            found = models.list_models(tx, name)
            if not found:
                words = _guess(name, (other.name for other in models.list_models(tx)))
                raise NotFound(f"there is no model {name!r}{words or ': see `regatta model list`'}")
        return found[0]

    def version(self, ref: ModelRef) -> VersionDetail:
        """Return a version with what the devices made of it.

        Raises:
            NotFound: when there is no such version.
        """
        with self.database.read() as tx:
            found = models.get_version(tx, ref)
            if found is None:
                raise NotFound(f"there is no {ref}: see `regatta status` for what there is")
            reports = devices.list_device_reports(tx, name=ref.name, version=ref.version)
            served = telemetry.serving_summaries(tx, name=ref.name)
            return VersionDetail(
                manifest=found.manifest,
                devices=tuple(_device_model(device, report, served) for device, report in reports),
            )

    def rollouts(self) -> tuple[RolloutDetail, ...]:
        """Return the newest rollouts, newest first."""
        with self.database.read() as tx:
            return _rollouts(tx, 100)

    def rollout(self, identifier: str) -> RolloutDetail:
        """Return one rollout.

        Raises:
            NotFound: when there is none of that id.
        """
        with self.database.read() as tx:
            row = rollouts.get_rollout(tx, identifier)
        if row is None:
            raise NotFound(f"there is no rollout {identifier[:64]!r}: see `regatta status`")
        return rolling.describe(row)

    def events(self, since: float | None) -> tuple[FleetEvent, ...]:
        """Return the history from `since` on, or its newest lines; oldest first."""
        with self.database.read() as tx:
            return events.list_events(tx, since=since, limit=MAX_EVENTS_ANSWERED)


def _devices(tx: Connection) -> tuple[DeviceSummary, ...]:
    served = telemetry.serving_summaries(tx)
    reports: dict[DeviceId, list[tuple[DeviceId, ModelReport]]] = {}
    for device, report in devices.list_device_reports(tx):
        reports.setdefault(device, []).append((device, report))
    return tuple(_summary(row, reports.get(row.id, ()), served) for row in devices.list_devices(tx))


def _rollouts(tx: Connection, limit: int) -> tuple[RolloutDetail, ...]:
    return tuple(rolling.describe(row) for row in rollouts.list_rollouts(tx, limit=limit))


def _summary(row: DeviceRow, reports: Iterable[tuple[DeviceId, ModelReport]], served: Served) -> DeviceSummary:
    return DeviceSummary(
        id=row.id,
        group=row.group,
        up=row.up,
        last_seen=row.last_seen,
        enrolled_at=row.enrolled_at,
        agent_version=row.agent_version,
        board=row.board,
        desired_generation=row.desired_generation,
        reported_generation=row.reported_generation,
        bytes_received=row.bytes_received,
        dropped_items=row.dropped_items,
        revoked=row.revoked,
        models=tuple(_device_model(device, report, served) for device, report in reports),
    )


def _device_model(device: DeviceId, report: ModelReport, served: Served) -> DeviceModel:
    return DeviceModel(
        device=device,
        name=report.name,
        version=report.version,
        state=report.state,
        serving=report.serving,
        reason=report.reason or report.agreement,
        opens_at=report.opens_at,
        placement=report.placement,
        degraded=report.degraded,
        accuracy=report.accuracy,
        latency=report.latency,
        power=report.power,
        basis=report.basis,
        served=served.get((device, report.name, report.version)),
    )


def _guess(name: str, known: Iterable[str]) -> str:
    """Return the words that ask for the known name most like one that there is not; none when none is."""
    found = get_close_matches(name, known, n=1)
    return f", did you mean {found[0]!r}?" if found else ""
