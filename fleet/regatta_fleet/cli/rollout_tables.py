"""What the fleet does, and what it is told to do, as tables: rollouts with their waves, history, policies and windows.

Pure: schemas in, tables out.
"""

from __future__ import annotations

from collections.abc import Iterable

from regatta_fleet import figures, verdicts
from regatta_fleet.cli.output import Cell, Column, Style, Table
from regatta_fleet.schemas import FleetEvent, GroupPolicy, GroupWindows, RolloutDetail, RolloutState, WaveState
from regatta_runtimes.choice.policy_options import options_text

__all__ = ["events", "few", "policies", "rollouts", "waves", "windows"]

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


def few(names: tuple[str, ...], shown: int = 5) -> str:
    """Return the first names and how many there are besides."""
    text = ", ".join(names[:shown])
    return text if len(names) <= shown else f"{text} and {len(names) - shown} more"


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
