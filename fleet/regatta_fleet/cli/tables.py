"""The fleet's answers as tables. Pure: schemas in, tables out; printing is output.py's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from regatta_fleet import figures, verdicts
from regatta_fleet.cli.output import Cell, Column, Style, Table
from regatta_fleet.schemas import (
    BatchDetail,
    BundleDraft,
    DeviceDetail,
    DeviceModel,
    DeviceSummary,
    FleetEvent,
    GroupPolicy,
    GroupWindows,
    ModelSummary,
    RolloutDetail,
    RolloutState,
    VersionDetail,
    WaveState,
)
from regatta_protocol.batch import BatchState, BatchSummary
from regatta_protocol.manifest import Manifest
from regatta_protocol.measurement import BoardFacts, Outcome, RaceReport
from regatta_protocol.messages import InstallState
from regatta_runtimes.policy_options import options_text
from regatta_runtimes.report import ranked

if TYPE_CHECKING:
    from regatta_fleet.optimize.report import OptimizeReport, VariantReport

__all__ = [
    "batch_devices",
    "batch_summary",
    "batches",
    "board_facts",
    "device_models",
    "devices",
    "events",
    "few",
    "lineage",
    "model_devices",
    "models",
    "optimized",
    "policies",
    "race",
    "races",
    "rollouts",
    "variants",
    "waves",
    "windows",
]

_SHORT = 12  # characters of a digest
_FAILED = {InstallState.FAILED, InstallState.ROLLED_BACK}
_ROLLOUT_STYLES: dict[RolloutState, Style] = {
    RolloutState.RUNNING: "",
    RolloutState.HELD: "warn",
    RolloutState.COMPLETED: "good",
    RolloutState.ROLLED_BACK: "bad",
    RolloutState.ABORTED: "bad",
}
_WAVE_STYLES: dict[WaveState, Style] = {
    WaveState.PENDING: "dim",
    WaveState.OBSERVING: "",
    WaveState.PROMOTED: "good",
    WaveState.FAILED: "bad",
}


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


def race(report: RaceReport) -> Table:
    """Return every candidate with its figures and why it lost."""
    rows = []
    for result in ranked(report):
        placed = result.id == report.placement
        style: Style = "good" if placed else "" if result.outcome in (Outcome.MEASURED, Outcome.DROPPED) else "dim"
        rows.append(
            (
                Cell(result.id, style),
                figures.latency(result.latency.p50_us if result.latency else None),
                figures.latency(result.latency.p99_us if result.latency else None),
                figures.latency(result.first_us),
                figures.accuracy(result.accuracy, interval=False),
                figures.lost(result.accuracy_drop),
                figures.energy(result.power) if result.power.method != "none" else "unknown",
                figures.size(result.peak_rss_bytes),
                Cell(verdicts.candidate_verdict(result, report), style),
            )
        )
    return Table(
        (
            Column("CANDIDATE"),
            Column("P50", right=True),
            Column("P99", right=True),
            Column("FIRST", right=True, leave_out=2),
            Column("ACCURACY", right=True),
            Column("LOST", right=True),
            Column("ENERGY", right=True, leave_out=3),
            Column("MEMORY", right=True, leave_out=1),
            Column("VERDICT", wide=True),
        ),
        tuple(rows),
        title=f"Race of {report.model}:{report.version} ({verdicts.race_took(report)}, by {report.objective})",
        empty="no candidates",
        notes=(report.reason, *verdicts.front(report)),
    )


def races(device: DeviceDetail) -> tuple[Table, ...]:
    """Return the newest race of each version on the device."""
    newest: dict[tuple[str, int], RaceReport] = {}
    for report in device.races:
        newest.setdefault((report.model, report.version), report)
    return tuple(race(report) for report in newest.values())


def models(found: Iterable[ModelSummary]) -> Table:
    """Return each model with its versions."""
    rows = tuple(
        (model.name, ", ".join(str(version) for version in model.versions), figures.count(model.devices_serving))
        for model in found
    )
    return Table(
        (Column("MODEL"), Column("VERSIONS"), Column("DEVICES SERVING", right=True)),
        rows,
        empty="no models yet: `regatta model push MODEL.tflite --name NAME` stores one",
    )


def variants(manifest: Manifest | BundleDraft) -> Table:
    """Return each variant with its size, accuracy, latency and what it costs or gains against the first."""
    first = manifest.variants[0]
    rows = []
    for variant in manifest.variants:
        faster = (
            first.latency.p50_us / variant.latency.p50_us
            if first.latency and variant.latency and variant.latency.p50_us > 0
            else None
        )
        smaller = first.file.size_bytes / variant.file.size_bytes if variant.file.size_bytes else None
        rows.append(
            (
                variant.name,
                variant.precision,
                figures.size(variant.file.size_bytes),
                figures.ratio(smaller),
                figures.accuracy(variant.accuracy),
                figures.latency(variant.latency.p50_us if variant.latency else None),
                figures.ratio(faster),
                ", ".join(variant.requires) or figures.NOTHING,
                " → ".join(variant.steps) or figures.NOTHING,
            )
        )
    return Table(
        (
            Column("VARIANT"),
            Column("PRECISION", leave_out=1),
            Column("SIZE", right=True),
            Column("SMALLER", right=True),
            Column("ACCURACY", right=True),
            Column("P50", right=True),
            Column("FASTER", right=True),
            Column("REQUIRES", leave_out=2),
            Column("MADE BY", wide=True),
        ),
        tuple(rows),
        title="Variants",
        notes=(f"smaller and faster: than {first.name}, on the machine that made them",) if len(rows) > 1 else (),
    )


def optimized(report: OptimizeReport) -> Table:
    """Return each variant with its figures and how many times those of the float original they are."""
    original = report.variants[0]
    rows = []
    for variant in report.variants:
        latency_ratio = (
            variant.latency.p50_us / original.latency.p50_us
            if variant.latency and original.latency and original.latency.p50_us > 0
            else None
        )
        size_ratio = variant.size_bytes / original.size_bytes if variant.size_bytes and original.size_bytes else None
        recommended = variant.name == report.recommended and variant.accepted
        verdict = "recommended" if recommended else variant.reason or ("kept" if variant.accepted else "refused")
        style: Style = "good" if recommended else "" if variant.accepted else "dim"
        rows.append(
            (
                Cell(variant.name, style),
                figures.size(variant.size_bytes),
                figures.ratio(size_ratio),
                _accuracy_cell(variant),
                figures.latency(variant.latency.p50_us if variant.latency else None),
                figures.ratio(latency_ratio),
                Cell(verdict, style),
            )
        )
    return Table(
        (
            Column("VARIANT"),
            Column("SIZE", right=True),
            Column("OF FLOAT", right=True),
            Column("ACCURACY", right=True),
            Column("P50", right=True),
            Column("OF FLOAT", right=True),
            Column("VERDICT", wide=True),
        ),
        tuple(rows),
        title=f"{report.source}, optimized in {report.duration_s:.1f} s",
        notes=(f"{report.recommended}: {report.why}", f"bundle and report in {report.bundle}"),
    )


def _accuracy_cell(variant: VariantReport) -> str:
    return figures.accuracy(variant.accuracy) if variant.score is None else f"{100 * variant.score:.2f} % (hook)"


def lineage(manifest: Manifest | BundleDraft) -> Table:
    """Return the steps that made the version: what went in and what came out, by the beginning of digests."""
    rows = []
    for number, step in enumerate(manifest.history, start=1):
        inputs = ", ".join(f"{name} {digest[:_SHORT]}" for name, digest in step.inputs.items())
        outputs = ", ".join(f"{name} {digest[:_SHORT]}" for name, digest in step.outputs.items())
        rows.append((str(number), step.step, inputs, outputs or "nothing", "; ".join(step.words)))
    seeds = sorted({step.seed for step in manifest.history})
    tools = sorted({f"{name} {version}" for step in manifest.history for name, version in step.tools.items()})
    return Table(
        (
            Column("STEP", right=True),
            Column("WHAT"),
            Column("OF", leave_out=2),
            Column("MADE", leave_out=1),
            Column("HOW", wide=True),
        ),
        tuple(rows),
        title="Lineage",
        notes=(f"seed {', '.join(map(str, seeds))}; {', '.join(tools) or 'no tools'}",),
    )


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


def rollouts(found: Iterable[RolloutDetail], now: float) -> Table:
    """Return one row for each rollout."""
    rows = []
    for rollout in found:
        done, total = verdicts.progress(rollout)
        rows.append(
            (
                rollout.id,
                f"{rollout.model}:{rollout.version}",
                Cell(str(rollout.state).replace("_", " "), _ROLLOUT_STYLES[rollout.state]),
                f"{verdicts.current_wave(rollout)}/{len(rollout.waves)}",
                f"{done}/{total}",
                figures.age(rollout.created_at, now),
                rollout.reason or "",
            )
        )
    return Table(
        (
            Column("ROLLOUT"),
            Column("MODEL"),
            Column("STATE"),
            Column("WAVE", right=True),
            Column("DEVICES", right=True),
            Column("STARTED"),
            Column("REASON", wide=True),
        ),
        tuple(rows),
        empty="no rollouts yet: `regatta rollout start MODEL:V --to all` begins one",
    )


def waves(rollout: RolloutDetail) -> Table:
    """Return the waves of a rollout with the gate's words."""
    rows = tuple(
        (
            str(wave.number),
            Cell(str(wave.state), _WAVE_STYLES[wave.state]),
            f"{wave.succeeded}/{len(wave.devices)}",
            str(wave.failed),
            few(wave.devices),
            wave.reason or "",
        )
        for wave in rollout.waves
    )
    return Table(
        (
            Column("WAVE", right=True),
            Column("STATE"),
            Column("SUCCEEDED", right=True),
            Column("FAILED", right=True),
            Column("DEVICES", leave_out=1),
            Column("GATE", wide=True),
        ),
        rows,
        title="Waves",
    )


def events(found: Iterable[FleetEvent]) -> Table:
    """Return the history, a line each."""
    rows = tuple((figures.clock(event.at), event.kind, event.device or "", event.text) for event in found)
    return Table(
        (Column("TIME"), Column("KIND"), Column("DEVICE"), Column("EVENT", wide=True)), rows, empty="nothing yet"
    )


def policies(found: Iterable[GroupPolicy]) -> Table:
    """Return what is set for groups of devices, as the options that set it."""
    rows = tuple(
        (rule.group, rule.model or "every model", figures.count(rule.devices), options_text(rule.policy))
        for rule in found
    )
    return Table(
        (Column("GROUP"), Column("MODEL"), Column("DEVICES", right=True), Column("POLICY", wide=True)),
        rows,
        empty="nothing is set, so each bundle's own policy holds: `regatta policy set GROUP --objective …` sets one",
    )


def windows(found: Iterable[GroupWindows]) -> Table:
    """Return the update windows that are set for groups of devices."""
    rows = tuple((one.group, figures.count(one.devices), ", ".join(one.windows)) for one in found)
    return Table(
        (Column("GROUP"), Column("DEVICES", right=True), Column("WINDOWS", wide=True)),
        rows,
        empty="none is set, so devices wait for none: `regatta window set GROUP 02:00-05:00` sets one",
    )


def batches(found: Iterable[BatchDetail]) -> Table:
    """Return batches, a line each: on how many devices it stands how."""
    rows = []
    for one in found:
        states = Counter(str(device.state) for device in one.devices)
        stands = ", ".join(f"{number} {state}" for state, number in states.items())
        rows.append((one.id, one.model, figures.clock(one.created_at), stands, one.input))
    return Table(
        (
            Column("BATCH"),
            Column("MODEL"),
            Column("STARTED", leave_out=1),
            Column("DEVICES"),
            Column("INPUT", wide=True),
        ),
        tuple(rows),
        empty="no batch was started: `regatta batch start MODEL --on DEVICE --input PATH` starts one",
    )


_BATCH_STYLES: dict[BatchState, Style] = {
    BatchState.DONE: "good",
    BatchState.FAILED: "bad",
    BatchState.CANCELLED: "dim",
}


def batch_devices(detail: BatchDetail) -> Table:
    """Return how a batch stands on each device, and the pulling of its output, with the reason."""
    rows = tuple(
        (
            str(one.device),
            Cell(str(one.state), _BATCH_STYLES.get(one.state, "")),
            figures.count(one.records) + ("" if one.total is None else f" of {figures.count(one.total)}"),
            figures.NOTHING if one.results is None else str(one.results.state),
            one.reason or (one.results.reason if one.results is not None else None) or "",
        )
        for one in detail.devices
    )
    columns = (
        Column("DEVICE"),
        Column("STATE"),
        Column("RECORDS", right=True),
        Column("RESULTS", leave_out=1),
        Column("REASON", wide=True),
    )
    return Table(columns, rows)


def batch_summary(device: str, summary: BatchSummary) -> Table:
    """Return what came of a batch on one device."""
    latencies = (summary.p50_us, summary.p90_us, summary.p99_us)
    rows = [
        ("refused", figures.count(summary.refused)),
        ("a second", figures.count(round(summary.per_second))),
        ("p50, p90, p99", ", ".join(figures.latency(one) for one in latencies)),
        ("size", figures.size(summary.output_bytes)),
    ]
    if summary.mean_score is not None:
        rows.append(("mean score", f"{summary.mean_score:.4g}"))
    rows += [(f"class {label}", figures.count(number)) for label, number in summary.classes.items()]
    if summary.other_classes:
        rows.append(("other classes", figures.count(summary.other_classes)))
    return Table((Column("SUMMARY"), Column("", right=True)), tuple(rows), title=f"{device}:")


def few(names: tuple[str, ...], shown: int = 5) -> str:
    """Return the first names and how many there are besides."""
    text = ", ".join(names[:shown])
    return text if len(names) <= shown else f"{text} and {len(names) - shown} more"
