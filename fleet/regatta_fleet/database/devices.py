"""Devices: who is enrolled, what each shall run, and what each last said of itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Row, delete, insert, select, update

from regatta_fleet.core.cohorts import Member
from regatta_fleet.core.policies import Rule, applying, resolve
from regatta_fleet.database.batch import list_results_wanted, list_wanted
from regatta_fleet.database.models import get_version
from regatta_fleet.database.policies import list_rules
from regatta_fleet.database.tables import assignments, device_models, devices
from regatta_fleet.database.update_windows import windows_for
from regatta_protocol.batch import BatchJob, ResultsWanted
from regatta_protocol.codec import decode, encode
from regatta_protocol.ids import DeviceId, ModelName, ModelRef
from regatta_protocol.measurement import BoardFacts
from regatta_protocol.messages import DesiredModel, ModelReport, Presence, Reported
from regatta_protocol.policy import Policy

__all__ = [
    "Desired",
    "DeviceRow",
    "assign",
    "bump_generation",
    "enroll_device",
    "find_assigned",
    "find_future",
    "get_desired",
    "get_device",
    "list_device_reports",
    "list_devices",
    "list_members",
    "mark_all_down",
    "record_presence",
    "record_reported",
    "revoke_device",
]

_MAX_REPORT_BYTES = 64 * 1024
_CLOCK_TOLERANCE_S = 600.0  # as devices allow their own clock before they wait for the right time


@dataclass(frozen=True)
class DeviceRow:
    id: DeviceId
    group: str
    enrolled_at: float
    revoked_at: float | None
    up: bool
    agent_version: str | None
    last_seen: float | None
    board: BoardFacts
    desired_generation: int
    reported_generation: int | None
    reported_sequence: int | None
    bytes_received: int
    dropped_items: int  # of telemetry that the device says it lost

    @property
    def revoked(self) -> bool:
        return self.revoked_at is not None


@dataclass(frozen=True)
class Desired:
    """What a device shall run, as it is signed and published."""

    device: DeviceId
    generation: int
    at: float
    models: dict[ModelName, DesiredModel]
    batch: tuple[BatchJob, ...] = ()
    results: tuple[ResultsWanted, ...] = ()
    update_window: tuple[str, ...] = ()


def enroll_device(tx: Connection, device: DeviceId, *, group: str, board: BoardFacts, now: float) -> None:
    """Add the device, or give one that is known a fresh start: not revoked, nothing reported yet.

    Its generation goes on growing: what was published before stays older than what comes.
    """
    values = {
        "group_name": group,
        "enrolled_at": now,
        "revoked_at": None,
        "up": False,
        "board": encode(board).decode(),
        "reported_generation": None,
        "reported_sequence": None,
        "bytes_received": 0,
    }
    if tx.execute(select(devices.c.id).where(devices.c.id == device)).one_or_none() is None:
        tx.execute(insert(devices).values(id=device, desired_generation=0, desired_at=now, dropped_items=0, **values))
    else:
        tx.execute(update(devices).where(devices.c.id == device).values(**values))
        tx.execute(delete(device_models).where(device_models.c.device == device))
        bump_generation(tx, device, now)


def get_device(tx: Connection, device: DeviceId) -> DeviceRow | None:
    """Return a device, revoked ones too, or None."""
    row = tx.execute(select(devices).where(devices.c.id == device)).one_or_none()
    return None if row is None else _device(row)


def list_devices(tx: Connection) -> tuple[DeviceRow, ...]:
    """Return every device, revoked ones too, by id."""
    return tuple(_device(row) for row in tx.execute(select(devices).order_by(devices.c.id)))


def list_members(tx: Connection) -> tuple[Member, ...]:
    """Return the devices that take part (not revoked)."""
    query = select(devices.c.id, devices.c.group_name).where(devices.c.revoked_at.is_(None)).order_by(devices.c.id)
    return tuple(Member(row.id, row.group_name) for row in tx.execute(query))


def revoke_device(tx: Connection, device: DeviceId, now: float) -> None:
    """Take the device out of the fleet. Its history stays."""
    tx.execute(update(devices).where(devices.c.id == device).values(revoked_at=now, up=False))
    tx.execute(delete(assignments).where(assignments.c.device == device))
    tx.execute(update(device_models).where(device_models.c.device == device).values(serving=False))


def mark_all_down(tx: Connection) -> None:
    """Forget who is connected: after a start, or without a broker, presence must be said anew."""
    tx.execute(update(devices).where(devices.c.up).values(up=False))


def record_presence(tx: Connection, device: DeviceId, presence: Presence, now: float) -> bool:
    """Store whether the device is connected; returns whether that changed."""
    before = tx.execute(select(devices.c.up).where(devices.c.id == device)).scalar_one()
    values: dict[str, object] = {"up": presence.up, "last_seen": now}
    if presence.up:
        values |= {"boot": presence.boot[:128], "agent_version": presence.agent_version[:64]}
    tx.execute(update(devices).where(devices.c.id == device).values(**values))
    return bool(before) != presence.up


def record_reported(tx: Connection, reported: Reported, now: float) -> bool:
    """Store what the device runs; False (and nothing stored) when a newer report is here already."""
    where = devices.c.id == reported.device
    before = tx.execute(select(devices.c.reported_sequence).where(where)).scalar_one()
    if before is not None and reported.sequence <= before:
        return False
    values: dict[str, object] = {
        "last_seen": now,
        "agent_version": reported.agent_version[:64],
        "boot": reported.boot[:128],
        "reported_generation": reported.generation,
        "reported_sequence": reported.sequence,
        "bytes_received": reported.bytes_received,
    }
    if reported.board != BoardFacts():  # a device that does not know keeps what it said when it enrolled
        values["board"] = encode(reported.board, _MAX_REPORT_BYTES).decode()
    tx.execute(update(devices).where(where).values(**values))
    tx.execute(delete(device_models).where(device_models.c.device == reported.device))
    rows = {(report.name, report.version): report for report in reported.models}
    if rows:
        tx.execute(
            insert(device_models),
            [
                {
                    "device": reported.device,
                    "name": report.name,
                    "version": report.version,
                    "serving": report.serving,
                    "report": encode(report, _MAX_REPORT_BYTES).decode(),
                    "updated_at": now,
                }
                for report in rows.values()
            ],
        )
    return True


def list_device_reports(
    tx: Connection, *, device: DeviceId | None = None, name: ModelName | None = None, version: int | None = None
) -> tuple[tuple[DeviceId, ModelReport], ...]:
    """Return what devices last reported of versions, by device, model and version."""
    query = select(device_models.c.device, device_models.c.report)
    if device is not None:
        query = query.where(device_models.c.device == device)
    if name is not None:
        query = query.where(device_models.c.name == name)
    if version is not None:
        query = query.where(device_models.c.version == version)
    ordered = query.order_by(device_models.c.device, device_models.c.name, device_models.c.version)
    return tuple(
        (row.device, decode(ModelReport, row.report.encode(), _MAX_REPORT_BYTES)) for row in tx.execute(ordered)
    )


def assign(tx: Connection, device: DeviceId, name: ModelName, desired: DesiredModel | None, now: float) -> None:
    """Set what the device shall run of a model (None: nothing), under a new generation."""
    where = (assignments.c.device == device) & (assignments.c.name == name)
    tx.execute(delete(assignments).where(where))
    if desired is not None:
        tx.execute(
            insert(assignments).values(
                device=device,
                name=name,
                version=desired.version,
                rollout=desired.rollout,
                trial_s=desired.trial_s,
                ignore_window=desired.ignore_window,
            )
        )
    bump_generation(tx, device, now)


def find_assigned(tx: Connection, *, group: str | None = None, name: ModelName | None = None) -> tuple[DeviceId, ...]:
    """Return the devices that take part and shall run a model (or `name`), of all groups or one."""
    query = select(devices.c.id).join(assignments, assignments.c.device == devices.c.id)
    query = query.where(devices.c.revoked_at.is_(None)).distinct().order_by(devices.c.id)
    if group is not None:
        query = query.where(devices.c.group_name == group)
    if name is not None:
        query = query.where(assignments.c.name == name)
    return tuple(tx.execute(query).scalars())


def bump_generation(tx: Connection, device: DeviceId, now: float) -> None:
    """Make what the device shall run newer than all that was published before."""
    tx.execute(
        update(devices)
        .where(devices.c.id == device)
        .values(desired_generation=devices.c.desired_generation + 1, desired_at=now)
    )


def find_future(tx: Connection, now: float) -> tuple[DeviceId, ...]:
    """Return the devices whose assignment was made at a time that has not come: this machine's clock was ahead then."""
    ahead = (devices.c.desired_at > now + _CLOCK_TOLERANCE_S) & devices.c.revoked_at.is_(None)
    return tuple(tx.execute(select(devices.c.id).where(ahead).order_by(devices.c.id)).scalars())


def get_desired(tx: Connection, device: DeviceId) -> Desired | None:
    """Return what the device shall run, or None when it is unknown or revoked."""
    row = tx.execute(
        select(devices.c.desired_generation, devices.c.desired_at, devices.c.group_name).where(
            devices.c.id == device, devices.c.revoked_at.is_(None)
        )
    ).one_or_none()
    if row is None:
        return None
    wanted: Iterable[Row[tuple[object, ...]]] = tx.execute(
        select(assignments).where(assignments.c.device == device).order_by(assignments.c.name)
    )
    rules = list_rules(tx)
    models = {
        each.name: DesiredModel(
            version=each.version,
            rollout=each.rollout,
            trial_s=each.trial_s,
            ignore_window=each.ignore_window,
            policy=_policy(tx, ModelRef(each.name, each.version), applying(rules, row.group_name, each.name)),
        )
        for each in wanted
    }
    return Desired(
        device,
        row.desired_generation,
        row.desired_at,
        models,
        batch=list_wanted(tx, device),
        results=list_results_wanted(tx, device),
        update_window=windows_for(tx, row.group_name),
    )


def _policy(tx: Connection, ref: ModelRef, rules: Sequence[Rule]) -> Policy | None:
    """Return the policy to assign instead of the bundle's, or None when nothing is set for the device."""
    if not rules:
        return None
    found = get_version(tx, ref)
    return resolve(Policy() if found is None else found.manifest.policy, rules)


def _device(row: Row[tuple[object, ...]]) -> DeviceRow:
    return DeviceRow(
        id=row.id,
        group=row.group_name,
        enrolled_at=row.enrolled_at,
        revoked_at=row.revoked_at,
        up=bool(row.up),
        agent_version=row.agent_version,
        last_seen=row.last_seen,
        board=decode(BoardFacts, row.board.encode(), _MAX_REPORT_BYTES) if row.board else BoardFacts(),
        desired_generation=row.desired_generation,
        reported_generation=row.reported_generation,
        reported_sequence=row.reported_sequence,
        bytes_received=row.bytes_received,
        dropped_items=row.dropped_items,
    )
