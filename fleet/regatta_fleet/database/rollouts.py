"""Rollouts with their waves and the devices' part in them. Decisions are in core/rollout.py."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from regatta_fleet.core.gates import Baseline, Outcome, Trial
from regatta_fleet.core.rollout import Rollout, Wave
from regatta_fleet.database.tables import rollout_devices, rollout_waves, rollouts
from regatta_fleet.schemas import GateConfig, RolloutState, WaveState
from regatta_protocol.codec import decode, encode
from regatta_protocol.ids import DeviceId, ModelName, ModelRef

__all__ = [
    "RolloutRow",
    "add_rollout",
    "find_open",
    "get_rollout",
    "list_completed",
    "list_observed",
    "list_rollouts",
    "previous_versions",
    "save_rollout",
    "save_trial",
    "set_previous",
]

OPEN_STATES = (RolloutState.RUNNING, RolloutState.HELD)


@dataclass(frozen=True)
class RolloutRow:
    """A rollout with what its decisions do not need."""

    rollout: Rollout
    trial_s: float
    created_at: float
    to: tuple[str, ...] = ()  # whom it is for, as asked; () when that is not known
    ignore_window: bool = False  # devices wait for no update window


def add_rollout(tx: Connection, row: RolloutRow) -> None:
    """Store a new rollout with all its waves."""
    rollout = row.rollout
    tx.execute(
        insert(rollouts).values(
            id=rollout.id,
            model=rollout.ref.name,
            version=rollout.ref.version,
            state=str(rollout.state),
            reason=rollout.reason,
            gate=encode(rollout.gate).decode(),
            targets=json.dumps(row.to),
            trial_s=row.trial_s,
            ignore_window=row.ignore_window,
            created_at=row.created_at,
            finished_at=rollout.finished_at,
        )
    )
    tx.execute(
        insert(rollout_waves),
        [{"rollout": rollout.id, "number": wave.number, "state": str(wave.state)} for wave in rollout.waves],
    )
    tx.execute(
        insert(rollout_devices),
        [
            {"rollout": rollout.id, "device": trial.device, "wave": wave.number, "outcome": str(trial.outcome)}
            for wave in rollout.waves
            for trial in wave.trials
        ],
    )


def get_rollout(tx: Connection, rollout: str) -> RolloutRow | None:
    """Return a rollout, or None."""
    row = tx.execute(select(rollouts).where(rollouts.c.id == rollout)).one_or_none()
    if row is None:
        return None
    trials: dict[int, list[Trial]] = {}
    members = select(rollout_devices).where(rollout_devices.c.rollout == rollout).order_by(rollout_devices.c.device)
    for each in tx.execute(members):
        trials.setdefault(each.wave, []).append(_trial(each))
    waves = tuple(
        Wave(each.number, WaveState(each.state), tuple(trials.get(each.number, ())), each.started_at, each.reason)
        for each in tx.execute(
            select(rollout_waves).where(rollout_waves.c.rollout == rollout).order_by(rollout_waves.c.number)
        )
    )
    return RolloutRow(
        Rollout(
            row.id,
            ModelRef(row.model, row.version),
            RolloutState(row.state),
            decode(GateConfig, row.gate.encode()),
            waves,
            row.reason,
            row.finished_at,
        ),
        row.trial_s,
        row.created_at,
        tuple(json.loads(row.targets)),
        row.ignore_window,
    )


def list_completed(tx: Connection, model: ModelName) -> Iterator[RolloutRow]:
    """Yield the model's completed rollouts, the last one first."""
    query = (
        select(rollouts.c.id)
        .where(rollouts.c.model == model, rollouts.c.state == str(RolloutState.COMPLETED))
        .order_by(rollouts.c.finished_at.desc(), rollouts.c.id)
    )
    for identifier in tx.execute(query).scalars().all():
        row = get_rollout(tx, identifier)
        if row is not None:
            yield row


def list_rollouts(tx: Connection, *, only_open: bool = False, limit: int = 100) -> tuple[RolloutRow, ...]:
    """Return rollouts, newest first."""
    query = select(rollouts.c.id).order_by(rollouts.c.created_at.desc(), rollouts.c.id).limit(limit)
    if only_open:
        query = query.where(rollouts.c.state.in_([str(state) for state in OPEN_STATES]))
    found = [get_rollout(tx, identifier) for identifier in tx.execute(query).scalars().all()]
    return tuple(row for row in found if row is not None)


def list_observed(tx: Connection, device: DeviceId) -> tuple[tuple[str, ModelRef, Trial], ...]:
    """Return the device's part in the waves under observation (or held after a failure): rollout, version, trial."""
    states = [str(WaveState.OBSERVING), str(WaveState.FAILED)]
    query = (
        select(rollout_devices, rollouts.c.model, rollouts.c.version)
        .join(rollouts, rollouts.c.id == rollout_devices.c.rollout)
        .join(
            rollout_waves,
            (rollout_waves.c.rollout == rollout_devices.c.rollout) & (rollout_waves.c.number == rollout_devices.c.wave),
        )
        .where(
            rollout_devices.c.device == device,
            rollouts.c.state.in_([str(state) for state in OPEN_STATES]),
            rollout_waves.c.state.in_(states),
        )
    )
    return tuple((row.rollout, ModelRef(row.model, row.version), _trial(row)) for row in tx.execute(query))


def find_open(tx: Connection, model: ModelName) -> str | None:
    """Return the id of the model's rollout that is running or held, or None. There is at most one."""
    query = select(rollouts.c.id).where(
        rollouts.c.model == model, rollouts.c.state.in_([str(state) for state in OPEN_STATES])
    )
    return tx.execute(query).scalars().first()


def save_rollout(tx: Connection, rollout: Rollout) -> None:
    """Store what a transition changed: the states, reasons and times of the rollout and its waves."""
    tx.execute(
        update(rollouts)
        .where(rollouts.c.id == rollout.id)
        .values(state=str(rollout.state), reason=rollout.reason, finished_at=rollout.finished_at)
    )
    for wave in rollout.waves:
        tx.execute(
            update(rollout_waves)
            .where(rollout_waves.c.rollout == rollout.id, rollout_waves.c.number == wave.number)
            .values(state=str(wave.state), reason=wave.reason, started_at=wave.started_at)
        )


def save_trial(tx: Connection, rollout: str, trial: Trial) -> None:
    """Store how a version fares on one device."""
    tx.execute(
        update(rollout_devices)
        .where(rollout_devices.c.rollout == rollout, rollout_devices.c.device == trial.device)
        .values(
            outcome=str(trial.outcome),
            reason=trial.reason,
            accuracy=trial.accuracy,
            p99_us=trial.p99_us,
            opens_at=trial.opens_at,
            waits=trial.waits,
        )
    )


def set_previous(
    tx: Connection, rollout: str, device: DeviceId, previous_version: int | None, baseline: Baseline | None
) -> None:
    """Store, as its wave starts, what the device goes back to and is compared with."""
    values: dict[str, object] = {"previous_version": previous_version}
    if baseline is not None:
        values |= {
            "baseline_version": baseline.version,
            "baseline_accuracy": baseline.accuracy,
            "baseline_p99_us": baseline.p99_us,
            "baseline_source": baseline.source,
        }
    where = (rollout_devices.c.rollout == rollout) & (rollout_devices.c.device == device)
    tx.execute(update(rollout_devices).where(where).values(**values))


def previous_versions(tx: Connection, rollout: str, devices: Sequence[DeviceId]) -> dict[DeviceId, int | None]:
    """Return what each of `devices` goes back to; None: it had no version."""
    query = select(rollout_devices.c.device, rollout_devices.c.previous_version).where(
        rollout_devices.c.rollout == rollout
    )
    wanted = set(devices)
    return {row.device: row.previous_version for row in tx.execute(query) if row.device in wanted}


def _trial(row: Row[Any]) -> Trial:
    baseline = None
    if row.baseline_version is not None:
        baseline = Baseline(row.baseline_version, row.baseline_accuracy, row.baseline_p99_us, row.baseline_source)
    outcome = Outcome(row.outcome)
    return Trial(row.device, outcome, row.reason, row.accuracy, row.p99_us, baseline, row.opens_at, row.waits)
