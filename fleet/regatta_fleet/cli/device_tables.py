"""Devices as tables, with what each runs: one row for a device and model. Pure: schemas in, tables out."""

from __future__ import annotations

from collections.abc import Iterable

from regatta_fleet import figures, verdicts
from regatta_fleet.cli.output import Cell, Column, Style, Table
from regatta_fleet.schemas import DeviceModel, DeviceSummary, VersionDetail
from regatta_protocol.measurement import BoardFacts
from regatta_protocol.messages import InstallState

__all__ = ["board_facts", "device_models", "devices", "model_devices", "stages"]

_FAILED = {InstallState.FAILED, InstallState.ROLLED_BACK}
_MODEL_COLUMNS = (
    Column("MODEL"),
    Column("STATE"),
    Column("PLACEMENT", leave_out=5),
    Column("RACE", leave_out=1),
    Column("P50", right=True),
    Column("P99", right=True, leave_out=3),
    Column("ACCURACY", right=True),
    Column("POWER", right=True, leave_out=4),
    Column("REQUESTS", right=True, leave_out=1),
)


def devices(found: Iterable[DeviceSummary], now: float) -> Table:
    """Return one row for each device and model on it."""
    rows: list[tuple[Cell | str, ...]] = []
    notes: list[str] = []
    for device in found:
        style: Style = "good" if device.up else "bad" if device.revoked else "warn"
        head: tuple[Cell | str, ...] = (device.id, device.group, Cell(verdicts.up_since(device, now), style))
        for number, model in enumerate(verdicts.shown_models(device)):
            rows.append((*(head if number == 0 else ("", "", "")), *_model_cells(model, interval=False)))
            if model.serving and model.degraded is not None:
                notes.append(
                    f"{device.id} serves {model.name}:{model.version} degraded: {figures.one_line(model.degraded)}"
                )
        if not device.models:
            rows.append((*head, *(figures.NOTHING for _ in _MODEL_COLUMNS)))
    return Table(
        (Column("DEVICE"), Column("GROUP", leave_out=2), Column("UP"), *_MODEL_COLUMNS),
        tuple(rows),
        notes=tuple(notes),
        empty="no devices yet: `regatta device token` makes a token for `regatta-agent enroll`",
    )


def device_models(device: DeviceSummary) -> Table:
    """Return what the device reported of each model, with the reasons."""
    rows = tuple((*_model_cells(model), model.degraded or model.reason or "") for model in device.models)
    return Table(
        (*_MODEL_COLUMNS, Column("REASON", wide=True)),
        rows,
        title="Models",
        empty="nothing assigned yet: `regatta rollout start MODEL:V --to all` sends a model",
    )


def stages(device: DeviceSummary) -> Table:
    """Return where the time of requests went, one row for each stage of a model."""
    rows = [
        (
            f"{model.name}:{model.version}" if number == 0 else "",
            stage.replace("_", " "),
            figures.latency(found.p50_us),
            figures.latency(found.p99_us),
            figures.count(found.requests),
        )
        for model in device.models
        if model.served is not None
        for number, (stage, found) in enumerate(model.served.stages.items())
    ]
    columns = (Column("MODEL"), Column("STAGE"), Column("P50", right=True), Column("P99", right=True))
    return Table((*columns, Column("REQUESTS", right=True)), tuple(rows), title="Where the time of requests goes")


def model_devices(detail: VersionDetail) -> Table:
    """Return the devices of a version."""
    rows = tuple(
        (model.device, *_model_cells(model)[1:], model.degraded or model.reason or "") for model in detail.devices
    )
    return Table(
        (Column("DEVICE"), *_MODEL_COLUMNS[1:], Column("REASON", wide=True)),
        rows,
        title="Devices",
        empty=f"on no device yet: `regatta rollout start {detail.manifest.ref} --to all` sends it",
    )


def board_facts(board: BoardFacts) -> tuple[tuple[str, str], ...]:
    """Return what is known of the board, name and value."""
    facts = (
        ("board", board.model),
        ("machine", board.machine),
        ("cpu", board.cpu and f"{board.cpu}" + (f" × {board.cores}" if board.cores else "")),
        ("memory", board.memory_bytes and figures.size(board.memory_bytes)),
        ("kernel", board.kernel),
        ("accelerators", ", ".join(board.accelerators) or "none found"),
        ("power sensor", board.power_sensor or "none found"),
        ("temperature", None if board.temperature_c is None else f"{board.temperature_c:.0f} °C"),
    )
    return tuple((name, value) for name, value in facts if value)


def _model_cells(model: DeviceModel, *, interval: bool = True) -> tuple[Cell | str, ...]:
    """Return model, state, placement, the race's basis, p50, p99, accuracy, power and requests."""
    served = model.served
    live = served is not None and served.p50_us is not None
    p50_us = served.p50_us if served and live else model.latency.p50_us if model.latency else None
    p99_us = served.p99_us if served and live else model.latency.p99_us if model.latency else None
    power = served.power if served and served.power else model.power
    accuracy = served.feedback if served and served.feedback else model.accuracy
    style: Style = "good" if model.serving else "bad" if model.state in _FAILED else ""
    state = "serving" if model.serving else str(model.state).replace("_", " ")
    if model.serving and model.degraded is not None:
        state, style = "degraded", "warn"
    return (
        f"{model.name}:{model.version}",
        Cell(state, style),
        model.placement or figures.NOTHING,
        figures.one_line(model.basis) if model.basis else figures.NOTHING,
        figures.latency(p50_us),
        figures.latency(p99_us),
        figures.accuracy(accuracy, interval=interval),
        figures.power(power),
        figures.count(served.requests) if served else figures.NOTHING,
    )
