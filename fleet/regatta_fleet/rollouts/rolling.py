"""Carrying rollouts out: facts from the database to core/rollout.py, and its changes and effects back.

Every function works inside the caller's transaction, so a decision, what it assigns and its line in the history are
stored together or not at all; a server that is killed in between decides the same again. Only the controller's
thread calls those that change something.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from sqlalchemy import Connection

from regatta_fleet.core import rollout as core
from regatta_fleet.core.cohorts import is_for_group, resolve
from regatta_fleet.core.gates import Baseline, Outcome, Trial, waiting_for_window, window_words
from regatta_fleet.core.waves import plan_waves
from regatta_fleet.database import devices, models, rollouts
from regatta_fleet.database.events import add_event
from regatta_fleet.database.rollouts import RolloutRow
from regatta_fleet.errors import Conflict, NotFound
from regatta_fleet.figures import counted
from regatta_fleet.schemas import RolloutDetail, RolloutRequest, RolloutState, WaveDetail, WaveState
from regatta_protocol.errors import Rejected
from regatta_protocol.ids import DeviceId, ModelRef
from regatta_protocol.messages import DesiredModel, InstallState, ModelReport, Reported

__all__ = [
    "Decision",
    "abort_rollout",
    "advance_all",
    "describe",
    "may_advance",
    "note_reported",
    "note_revoked",
    "promote_rollout",
    "start_rollout",
    "welcome",
]

_REASON_CHARS = 300

Decision = Callable[[Connection, str, float], set[DeviceId]]
"""What an operator decides about a rollout by its id, at a time: `abort_rollout` or `promote_rollout`."""


def start_rollout(tx: Connection, identifier: str, request: RolloutRequest, now: float) -> RolloutRow:
    """Store a new rollout with its waves planned; `advance_all` starts the first.

    Raises:
        NotFound: when the version is not in the registry.
        Conflict: when another rollout of the model is open.
        Rejected: when it is for no device, or the shares of its waves are none.
    """
    ref = ModelRef(request.model, request.version)
    if models.get_version(tx, ref) is None:
        raise NotFound(f"{ref} is not in the registry: push it first, or see `regatta status` for what is")
    open_one = rollouts.find_open(tx, request.model)
    if open_one is not None:
        raise Conflict(f"rollout {open_one} of {request.model} is not over: wait for it, or abort it first")
    members = devices.list_members(tx)
    cohort = resolve(request.to, members)
    waves = tuple(
        core.Wave(number, WaveState.PENDING, tuple(Trial(device) for device in wave))
        for number, wave in enumerate(plan_waves(cohort, request.waves, identifier), start=1)
    )
    rollout = core.Rollout(identifier, ref, RolloutState.RUNNING, request.gate, waves)
    row = RolloutRow(rollout, request.trial_s, now, request.to, request.ignore_window)
    rollouts.add_rollout(tx, row)
    text = f"rollout of {ref} to {counted(len(cohort), 'device')} in {counted(len(waves), 'wave')}"
    add_event(tx, now, "rollout_started", text, rollout=identifier)
    return row


def welcome(tx: Connection, device: DeviceId, group: str, now: float) -> None:
    """Give a device that was enrolled what its group runs: of each model the last version that was rolled out to it."""
    wanted = devices.get_desired(tx, device)
    here = set() if wanted is None else set(wanted.models)
    for name in (one.name for one in models.list_models(tx)):
        row = next((one for one in rollouts.list_completed(tx, name) if is_for_group(one.to, group)), None)
        if row is not None and name not in here:
            devices.assign(tx, device, name, _wanted(row), now)


def note_reported(tx: Connection, reported: Reported) -> None:
    """Store what a device's report says of the waves that it is in."""
    for identifier, ref, trial in rollouts.list_observed(tx, reported.device):
        for report in reported.models:
            outcome = core.outcome_of(report, identifier, ref)
            if outcome is not None:
                rollouts.save_trial(tx, identifier, _judged(trial, outcome, report))


def note_revoked(tx: Connection, device: DeviceId) -> None:
    """Take a device that was revoked out of the waves that are not decided."""
    for row in rollouts.list_rollouts(tx, only_open=True):
        for wave in row.rollout.waves:
            for trial in wave.trials:
                if trial.device == device and wave.state in (WaveState.PENDING, WaveState.OBSERVING):
                    removed = replace(trial, outcome=Outcome.REMOVED, reason="revoked")
                    rollouts.save_trial(tx, row.rollout.id, removed)


def may_advance(tx: Connection, now: float) -> bool:
    """Say whether `advance_all` would change something."""
    return any(core.advance(row.rollout, now) for row in rollouts.list_rollouts(tx, only_open=True))


def advance_all(tx: Connection, now: float) -> set[DeviceId]:
    """Carry every rollout as far as its facts allow; returns the devices that shall run something else now."""
    changed: set[DeviceId] = set()
    for row in rollouts.list_rollouts(tx, only_open=True):
        current = row
        while (change := core.advance(current.rollout, now)) is not None:
            changed |= _store(tx, current, change, now)
            current = _get(tx, current.rollout.id)
    return changed


def abort_rollout(tx: Connection, identifier: str, now: float) -> set[DeviceId]:
    """End a rollout and send its devices back; returns them.

    Raises:
        NotFound: when there is none of that id.
        Conflict: when it is over.
    """
    row = _get(tx, identifier)
    return _store(tx, row, _allowed(core.abort, row, now), now)


def promote_rollout(tx: Connection, identifier: str, now: float) -> set[DeviceId]:
    """Pass the current wave without its gate; returns the devices that shall run something else now.

    Raises:
        NotFound: when there is none of that id.
        Conflict: when it is over, or its wave has not started.
    """
    row = _get(tx, identifier)
    return _store(tx, row, _allowed(core.promote, row, now), now) | advance_all(tx, now)


def describe(row: RolloutRow) -> RolloutDetail:
    """Return the rollout as the API shows it."""
    rollout = row.rollout
    return RolloutDetail(
        id=rollout.id,
        model=rollout.ref.name,
        version=rollout.ref.version,
        state=rollout.state,
        reason=rollout.reason,
        waves=tuple(_describe_wave(wave) for wave in rollout.waves),
        gate=rollout.gate,
        created_at=row.created_at,
        finished_at=rollout.finished_at,
        ignore_window=row.ignore_window,
    )


def _describe_wave(wave: core.Wave) -> WaveDetail:
    outcomes = [trial.outcome for trial in wave.trials]
    waiting = waiting_for_window(wave.trials)
    return WaveDetail(
        number=wave.number,
        state=wave.state,
        devices=wave.devices,
        succeeded=outcomes.count(Outcome.SUCCEEDED),
        failed=outcomes.count(Outcome.FAILED),
        waiting=len(waiting),
        reason=wave.reason or window_words(wave.trials),
    )


def _get(tx: Connection, identifier: str) -> RolloutRow:
    row = rollouts.get_rollout(tx, identifier)
    if row is None:
        raise NotFound(f"there is no rollout {identifier[:64]!r}: see `regatta status`")
    return row


def _allowed(decide: core.Decide, row: RolloutRow, now: float) -> core.Change:
    try:
        return decide(row.rollout, now)
    except Rejected as err:
        raise Conflict(str(err)) from err


def _store(tx: Connection, row: RolloutRow, change: core.Change, now: float) -> set[DeviceId]:
    rollouts.save_rollout(tx, change.rollout)
    add_event(tx, now, f"rollout_{change.rollout.state}", change.text, rollout=change.rollout.id)
    changed: set[DeviceId] = set()
    for effect in change.effects:
        apply = _assign_new if effect.kind is core.EffectKind.ASSIGN else _assign_previous
        changed |= apply(tx, row, _still_here(tx, effect.devices), now)
    if change.rollout.state is RolloutState.COMPLETED:
        changed |= _assign_latecomers(tx, row, now)
    return changed


def _assign_latecomers(tx: Connection, row: RolloutRow, now: float) -> set[DeviceId]:
    """Give the version, once it has passed every gate, to devices that were enrolled after its waves were planned."""
    planned = {device for wave in row.rollout.waves for device in wave.devices}
    late = {one.device for one in devices.list_members(tx) if is_for_group(row.to, one.group)} - planned
    for device in late:
        devices.assign(tx, device, row.rollout.ref.name, _wanted(row), now)
    return late


def _wanted(row: RolloutRow) -> DesiredModel:
    """Return the rollout's version, as for a device that is in none of its waves."""
    return DesiredModel(version=row.rollout.ref.version, trial_s=row.trial_s, ignore_window=row.ignore_window)


def _assign_new(tx: Connection, row: RolloutRow, wave: Iterable[DeviceId], now: float) -> set[DeviceId]:
    ref = row.rollout.ref
    fallback = _registry_baseline(tx, ref)
    wanted = _wanted(row).model_copy(update={"rollout": row.rollout.id})
    changed = set(wave)
    for device in changed:
        report = _running(tx, device, ref)
        assigned = devices.get_desired(tx, device)
        previous = report.version if report is not None else None
        if previous is None and assigned is not None and ref.name in assigned.models:
            previous = assigned.models[ref.name].version
        baseline = _baseline(tx, ref, previous, report) if previous is not None else fallback
        rollouts.set_previous(tx, row.rollout.id, device, previous, baseline)
        devices.assign(tx, device, ref.name, wanted, now)
    return changed


def _assign_previous(tx: Connection, row: RolloutRow, tried: Iterable[DeviceId], now: float) -> set[DeviceId]:
    changed = set(tried)
    for device, version in rollouts.previous_versions(tx, row.rollout.id, tuple(changed)).items():
        # It ran before and was committed then, so it is not tried again; and a way back waits for no window.
        wanted = None if version is None else DesiredModel(version=version, trial_s=0, ignore_window=True)
        devices.assign(tx, device, row.rollout.ref.name, wanted, now)
    return changed


def _still_here(tx: Connection, wave: Iterable[DeviceId]) -> list[DeviceId]:
    members = {member.device for member in devices.list_members(tx)}
    return [device for device in wave if device in members]


def _running(tx: Connection, device: DeviceId, ref: ModelRef) -> ModelReport | None:
    """Return the report of the version of the model that the device serves and has committed."""
    reports = devices.list_device_reports(tx, device=device, name=ref.name)
    return next((report for _, report in reports if report.serving and report.state is InstallState.COMMITTED), None)


def _baseline(tx: Connection, ref: ModelRef, version: int, report: ModelReport | None) -> Baseline:
    accuracy = report.accuracy.value if report is not None and report.accuracy is not None else None
    p99_us = report.latency.p99_us if report is not None and report.latency is not None else None
    if accuracy is not None:
        return Baseline(version, accuracy, p99_us, "device")
    found = models.get_version(tx, ModelRef(ref.name, version))
    return Baseline(version, None if found is None else models.fleet_accuracy(found.manifest), p99_us, "manifest")


def _registry_baseline(tx: Connection, ref: ModelRef) -> Baseline | None:
    """Return what the manifest of the version before says, for devices that never ran one."""
    for version in range(ref.version - 1, 0, -1):
        found = models.get_version(tx, ModelRef(ref.name, version))
        if found is not None:
            accuracy = models.fleet_accuracy(found.manifest)
            return None if accuracy is None else Baseline(version, accuracy, None, "manifest")
    return None


def _judged(trial: Trial, outcome: Outcome, report: ModelReport) -> Trial:
    return replace(
        trial,
        outcome=outcome,
        reason=(report.reason or report.agreement or f"is {report.state}")[:_REASON_CHARS],
        accuracy=None if report.accuracy is None else report.accuracy.value,
        p99_us=None if report.latency is None else report.latency.p99_us,
        opens_at=report.opens_at if report.opens_at is not None else trial.opens_at,
        waits=report.opens_at is not None,
    )
