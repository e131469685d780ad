"""`regatta-agent why`: the choice of a placement in plain words, and the table of a race."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click

from regatta_agent.cli.options import as_json, check_state_folder, folder_options, print_json, print_table
from regatta_agent.cli.status import install_json, microseconds, reason_text
from regatta_agent.config import load_config
from regatta_agent.core.installs import AgentRecord, Install
from regatta_agent.disk.record import RecordFile
from regatta_agent.disk.store import Store
from regatta_agent.status import is_running
from regatta_protocol.errors import Rejected
from regatta_protocol.ids import ModelName, ModelRef, parse_model_name, parse_model_ref
from regatta_protocol.measurement import CandidateResult, RaceReport
from regatta_runtimes.choice.explain import explain
from regatta_runtimes.choice.report import ranked

__all__ = ["print_race", "why"]

_REASON_CHARS = 300  # the explanation below says the rest
_MAX_LISTED = 8
_MAX_COLUMNS = 110  # longer lines of prose are hard to read


@click.command()
@click.argument("model")
@folder_options
@as_json
def why(model: str, config_path: Path | None, state_dir: Path | None, run_dir: Path | None, json_output: bool) -> None:
    """Explain the placement of MODEL (or MODEL:VERSION), from its last race.

    What was asked for, what won and by how much, what was close, what was excluded and why, what could not be known,
    and under which conditions it was measured; then every candidate with its numbers.

    \b
    Examples:
      regatta-agent why digits
      regatta-agent why digits:2 --json
    """
    config = load_config(config_path, {"state_dir": state_dir, "run_dir": run_dir})
    check_state_folder(config.state_dir)
    record = RecordFile(config.state_dir).load()
    ref = parse_model_ref(model) if ":" in model else _latest(record, parse_model_name(model))
    install = record.find(ref)
    if install is None:
        raise _unknown(str(ref), record)
    report = Store(config.state_dir).race(ref)
    running = is_running(config.state_dir)
    if json_output:
        print_json(
            {
                "version": str(ref),
                "running": running,
                **install_json(record, install, config.run_dir),
                "race": report.model_dump(mode="json") if report is not None else None,
                "explanation": list(explain(report)) if report is not None else [],
            }
        )
        return
    click.echo(f"{ref} is {install.state}{_because(install)}; the agent is {'running' if running else 'not running'}")
    if report is None:
        click.echo("it has not been raced here")
        return
    serves = install.stand_in.placement if install.stand_in is not None else install.placement
    if serves is not None and serves != report.placement:
        click.echo(f"it serves {serves}, not what this race placed")
    print_race(report)


def print_race(report: RaceReport) -> None:
    """Print why a race was decided so, and its candidates, best first."""
    click.echo("")
    for line in explain(report):
        click.echo(_wrapped(line))
    click.echo("")
    print_table(
        ["CANDIDATE", "OUTCOME", "P50 µs", "P99 µs", "ACCURACY", "LOST", "MEMORY MB", "POWER", "FRONT", "WHY"],
        [_candidate_row(one, report) for one in ranked(report)],
    )


def _wrapped(line: str) -> str:
    """Return the line broken to the terminal's width; whole where it goes to a file or a pipe."""
    if not sys.stdout.isatty():
        return line
    indent = line[: len(line) - len(line.lstrip())]
    width = min(shutil.get_terminal_size().columns, _MAX_COLUMNS)
    return click.wrap_text(line.lstrip(), width, indent, f"{indent}  ")


def _candidate_row(one: CandidateResult, report: RaceReport) -> list[str]:
    return [
        one.id,
        "placed" if one.id == report.placement else str(one.outcome),
        microseconds(one.latency.p50_us) if one.latency is not None else "-",
        microseconds(one.latency.p99_us) if one.latency is not None else "-",
        f"{one.accuracy.value:.3f}" if one.accuracy is not None else "-",
        f"{one.accuracy_drop.drop:.3f}" if one.accuracy_drop is not None else "-",
        f"{one.peak_rss_bytes / 1e6:.0f}" if one.peak_rss_bytes is not None else "-",
        f"{one.power.power_mw:.0f} mW" if one.power.power_mw is not None else "unknown",
        "yes" if one.id in report.pareto else "",
        one.reason or "",
    ]


def _latest(record: AgentRecord, name: ModelName) -> ModelRef:
    wanted = record.desired_version(name)
    versions = [install.version for install in record.installs.get(name, ())]
    if wanted is None and not versions:
        raise _unknown(f"model {name}", record)
    return ModelRef(name, wanted if wanted is not None else versions[-1])


def _unknown(what: str, record: AgentRecord) -> Rejected:
    known = sorted(f"{name}:{one.version}" for name, installs in record.installs.items() for one in installs)
    listed = ", ".join(known[:_MAX_LISTED]) + (", …" if len(known) > _MAX_LISTED else "")
    return Rejected(f"{what} is not known here; " + (f"these are: {listed}" if known else "no model is assigned yet"))


def _because(install: Install) -> str:
    reason = reason_text(install)
    if not reason:
        return ""
    return f" ({reason[:_REASON_CHARS]}{'…' if len(reason) > _REASON_CHARS else ''})"
