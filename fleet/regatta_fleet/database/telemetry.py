"""What devices measured: races, and what placements served. A repeated batch is counted once."""

from __future__ import annotations

import json
from collections.abc import Iterable

from sqlalchemy import Connection, Row, delete, insert, select, update

from regatta_fleet.database.race_results import note_race
from regatta_fleet.database.tables import batches, devices, races, served
from regatta_fleet.schemas import ServingSummary, StageLatency
from regatta_protocol.codec import MAX_PAYLOAD_BYTES, decode, encode
from regatta_protocol.ids import DeviceId, ModelName
from regatta_protocol.measurement import RaceReport
from regatta_protocol.messages import RaceItem, TelemetryBatch
from regatta_protocol.plain import read_json, to_json
from regatta_protocol.sketch import HIGHEST, LOWEST, bucket_of, merge, merge_named, quantile, total
from regatta_protocol.values import Accuracy, Power, ServingWindow

__all__ = ["RACES_KEPT", "forget_old_batches", "list_races", "record_batch", "serving_summaries"]

RACES_KEPT = 5  # of each model on each device
_BATCH_IDS_KEPT_S = 35 * 86_400.0  # longer than a broker keeps a device's session (30 days, wire.md)
_MAX_RACE_BYTES = 1024 * 1024
_STAGES = ("queue", "compute_input", "compute_infer", "compute_output")  # in a request's order; others are not kept


def record_batch(tx: Connection, batch: TelemetryBatch, now: float) -> bool:
    """Store a batch; False (and nothing stored) when it was here before."""
    seen = select(batches.c.id).where(batches.c.device == batch.device, batches.c.id == batch.id)
    if tx.execute(seen).one_or_none() is not None:
        return False
    tx.execute(insert(batches).values(device=batch.device, id=batch.id, received_at=now))
    tx.execute(
        update(devices)
        .where(devices.c.id == batch.device)
        .values(last_seen=now, dropped_items=devices.c.dropped_items + batch.dropped)
    )
    for item in batch.items:
        if isinstance(item, RaceItem):
            _add_race(tx, batch.device, item)
            note_race(tx, batch.device, item, now)
        elif isinstance(item, ServingWindow):
            _add_window(tx, batch.device, item)
    return True


def forget_old_batches(tx: Connection, now: float) -> None:
    """Remove the ids of batches that can no longer be repeated."""
    tx.execute(delete(batches).where(batches.c.received_at < now - _BATCH_IDS_KEPT_S))


def list_races(tx: Connection, device: DeviceId) -> tuple[RaceReport, ...]:
    """Return the device's races that are kept, newest first."""
    query = select(races.c.report).where(races.c.device == device).order_by(races.c.at.desc(), races.c.id.desc())
    return tuple(decode(RaceReport, text.encode(), _MAX_RACE_BYTES) for text in tx.execute(query).scalars())


def serving_summaries(
    tx: Connection, *, device: DeviceId | None = None, name: ModelName | None = None
) -> dict[tuple[DeviceId, ModelName, int], ServingSummary]:
    """Return what each device served of each version, over all its placements."""
    query = select(served)
    if device is not None:
        query = query.where(served.c.device == device)
    if name is not None:
        query = query.where(served.c.model == name)
    groups: dict[tuple[DeviceId, ModelName, int], list[Row[tuple[object, ...]]]] = {}
    for row in tx.execute(query.order_by(served.c.until)):
        groups.setdefault((row.device, row.model, row.version), []).append(row)
    return {key: _summary(rows) for key, rows in groups.items()}


def _add_race(tx: Connection, device: DeviceId, item: RaceItem) -> None:
    report = item.report
    same = (races.c.device == device) & (races.c.model == report.model)
    tx.execute(
        insert(races).values(
            device=device,
            model=report.model,
            version=report.version,
            at=item.at,
            report=encode(report, _MAX_RACE_BYTES).decode(),
        )
    )
    newest = select(races.c.id).where(same).order_by(races.c.at.desc(), races.c.id.desc()).limit(RACES_KEPT)
    kept = tx.execute(newest).scalars().all()
    tx.execute(delete(races).where(same, races.c.id.not_in(kept)))


def _add_window(tx: Connection, device: DeviceId, window: ServingWindow) -> None:
    where = (
        (served.c.device == device)
        & (served.c.model == window.model)
        & (served.c.version == window.version)
        & (served.c.placement == window.placement)
    )
    row = tx.execute(select(served).where(where)).one_or_none()
    power = None if window.power is None else to_json(window.power).decode()
    correct, total = (0, 0) if window.feedback is None else (window.feedback.correct, window.feedback.total)
    if row is None:
        tx.execute(
            insert(served).values(
                device=device,
                model=window.model,
                version=window.version,
                placement=window.placement,
                requests=window.requests,
                errors=window.errors,
                latency_counts=_dump(_held(window.latency_counts)),
                stage_counts=_dump_stages(_held_stages(window)),
                feedback_correct=correct,
                feedback_total=total,
                power=power,
                since=window.start,
                until=window.stop,
            )
        )
        return
    tx.execute(
        update(served)
        .where(where)
        .values(
            requests=row.requests + window.requests,
            errors=row.errors + window.errors,
            latency_counts=_dump(merge([_load(row.latency_counts), _held(window.latency_counts)])),
            stage_counts=_with_stages(row.stage_counts, window),
            feedback_correct=row.feedback_correct + correct,
            feedback_total=row.feedback_total + total,
            power=power or row.power,
            since=min(row.since, window.start),
            until=max(row.until, window.stop),
        )
    )


def _summary(rows: Iterable[Row[tuple[object, ...]]]) -> ServingSummary:
    listed = list(rows)
    counts = merge([_load(row.latency_counts) for row in listed])
    stages = merge_named(_load_stages(row.stage_counts) for row in listed)
    correct, judged = sum(row.feedback_correct for row in listed), sum(row.feedback_total for row in listed)
    power = next((row.power for row in reversed(listed) if row.power), None)
    return ServingSummary(
        requests=sum(row.requests for row in listed),
        errors=sum(row.errors for row in listed),
        p50_us=quantile(counts, 0.5),
        p99_us=quantile(counts, 0.99),
        stages={name: _stage(stages[name]) for name in _STAGES if name in stages},
        feedback=Accuracy(correct=correct, total=judged) if judged else None,
        power=read_json(Power, power.encode(), MAX_PAYLOAD_BYTES) if power else None,
        since=min(row.since for row in listed),
        until=max(row.until for row in listed),
    )


def _stage(counts: dict[int, int]) -> StageLatency:
    p50_us, p99_us = quantile(counts, 0.5), quantile(counts, 0.99)
    return StageLatency(requests=total(counts), p50_us=p50_us, p99_us=p99_us)


def _with_stages(held: str | None, window: ServingWindow) -> str | None:
    """Return the sketches of stages with those of a window; most windows have none, and leave them as they are."""
    if not window.stage_counts:
        return held
    return _dump_stages(merge_named([_load_stages(held), _held_stages(window)]))


def _held_stages(window: ServingWindow) -> dict[str, dict[int, int]]:
    return {name: _held(window.stage_counts[name]) for name in _STAGES if name in window.stage_counts}


def _held(counts: dict[int, int]) -> dict[int, int]:
    """Return a device's sketch within the buckets of possible latencies, so that no row grows without bound."""
    lowest, highest = bucket_of(LOWEST), bucket_of(HIGHEST)
    return merge({min(max(bucket, lowest), highest): count} for bucket, count in counts.items() if count > 0)


def _dump(counts: dict[int, int]) -> str:
    return json.dumps({str(index): count for index, count in sorted(counts.items())}, separators=(",", ":"))


def _dump_stages(stages: dict[str, dict[int, int]]) -> str | None:
    named = {name: {str(index): count for index, count in sorted(found.items())} for name, found in stages.items()}
    return json.dumps(named, separators=(",", ":")) if named else None


def _load_stages(text: str | None) -> dict[str, dict[int, int]]:
    named = json.loads(text or "{}")
    return {name: {int(index): count for index, count in found.items()} for name, found in named.items()}


def _load(text: str) -> dict[int, int]:
    return {int(index): count for index, count in json.loads(text).items()}
