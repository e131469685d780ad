"""`regatta-agent status` and `regatta-agent why`: read from the state folder, whether or not the agent runs."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from regatta_agent.cli.options import as_json, folder_options, print_json, print_table
from regatta_agent.config import load_config
from regatta_agent.core.installs import AgentRecord, Install
from regatta_agent.record import RecordFile
from regatta_agent.status import AgentStatus, is_running, read_status
from regatta_agent.store import Store
from regatta_protocol.errors import Misuse, RegattaError
from regatta_protocol.ids import ModelName, ModelRef, parse_model_name, parse_model_ref
from regatta_protocol.measurement import CandidateResult, RaceReport
from regatta_provisioning.identity import load_identity
from regatta_runtimes.report import ranked

__all__ = ["status", "why"]


@click.command()
@folder_options
@as_json
def status(config_path: Path | None, state_dir: Path | None, run_dir: Path | None, json_output: bool) -> None:
    """Show what this device is, and where every version of its models stands.

    \b
    Examples:
      regatta-agent status
      regatta-agent status --json --state-dir ./state --run-dir ./run
    """
    config = load_config(config_path, {"state_dir": state_dir, "run_dir": run_dir})
    if not config.state_dir.is_dir():
        raise Misuse(f"there is no state in {config.state_dir}: enroll this device first, or give --state-dir")
    running = is_running(config.state_dir)
    said = read_status(config.run_dir) if running else None
    record = RecordFile(config.state_dir).load()
    identity = None
    try:
        identity = load_identity(config.state_dir / "identity")
        device = f"{identity.device} of the fleet {identity.fleet}"
    except RegattaError as err:
        device = str(err)
    if json_output:
        print_json(
            {
                "device": identity.device if identity is not None else None,
                "fleet": identity.fleet if identity is not None else None,
                "running": running,
                "online": said.online if said is not None else False,
                "offline": said.offline if said is not None else None,
                "refused": said.refused if said is not None else None,
                "generation": record.generation,
                "bytes_received": record.bytes_received,
                "models": [_install_json(record, install, config.run_dir) for install in record.all()],
            }
        )
        return
    click.echo(f"device      {device}")
    click.echo(f"agent       {_running_text(running, said.pid if said is not None else None)}")
    if said is not None:
        click.echo(f"broker      {_broker_text(said)}")
        if said.refused:
            click.echo(f"refused     {said.refused}")
    click.echo(f"generation  {record.generation}")
    click.echo(f"received    {record.bytes_received:,} bytes over MQTT")
    installs = list(record.all())
    if not installs:
        click.echo("\nno model is assigned yet")
        return
    click.echo("")
    print_table(
        ["MODEL", "STATE", "SERVING", "PLACEMENT", "P50 us", "ACCURACY", "REASON"],
        [_install_row(record, install, config.run_dir) for install in installs],
    )


@click.command()
@click.argument("model")
@folder_options
@as_json
def why(model: str, config_path: Path | None, state_dir: Path | None, run_dir: Path | None, json_output: bool) -> None:
    """Show the last race of MODEL (or MODEL:VERSION): each candidate with its numbers, and why it lost.

    \b
    Examples:
      regatta-agent why digits
      regatta-agent why digits:2 --json
    """
    config = load_config(config_path, {"state_dir": state_dir, "run_dir": run_dir})
    record = RecordFile(config.state_dir).load()
    ref = parse_model_ref(model) if ":" in model else _latest(record, parse_model_name(model))
    install = record.find(ref)
    if install is None:
        raise Misuse(f"{ref} is not known here: `regatta-agent status` lists what is")
    report = Store(config.state_dir).race(ref)
    running = is_running(config.state_dir)
    if json_output:
        print_json(
            {
                "version": str(ref),
                "running": running,
                **_install_json(record, install, config.run_dir),
                "race": report.model_dump(mode="json") if report is not None else None,
            }
        )
        return
    click.echo(f"{ref} is {install.state}{_because(install)}; the agent is {'running' if running else 'not running'}")
    if report is None:
        click.echo("it has not been raced here")
        return
    print_race(report)


def print_race(report: RaceReport) -> None:
    """Print the candidates of a race, best first, and the decision."""
    print_table(
        ["CANDIDATE", "OUTCOME", "P50 us", "P99 us", "ACCURACY", "MEMORY MB", "POWER", "WHY"],
        [_candidate_row(one, report.placement) for one in ranked(report)],
    )
    why_this = report.reason.removeprefix(f"{report.placement}: ")
    click.echo(f"\nplacement: {report.placement or 'none'}: {why_this}")


def _latest(record: AgentRecord, name: ModelName) -> ModelRef:
    wanted = record.desired_version(name)
    versions = [install.version for install in record.installs.get(name, ())]
    if wanted is None and not versions:
        raise Misuse(f"model {name} is not known here: `regatta-agent status` lists what is")
    return ModelRef(name, wanted if wanted is not None else versions[-1])


def _serving(record: AgentRecord, install: Install, run_dir: Path) -> bool:
    serving = record.serving(install.name)
    link = run_dir / f"{install.name}.sock"
    return serving is not None and serving.version == install.version and link.is_symlink() and link.exists()


def _install_json(record: AgentRecord, install: Install, run_dir: Path) -> dict[str, object]:
    value: dict[str, object] = json.loads(install.model_dump_json())
    return {**value, "serving": _serving(record, install, run_dir)}


def _install_row(record: AgentRecord, install: Install, run_dir: Path) -> list[str]:
    race = install.race
    return [
        str(install.ref),
        install.state,
        "yes" if _serving(record, install, run_dir) else "",
        (install.stand_in.placement if install.stand_in is not None else install.placement) or "",
        _us(race.latency.p50_us) if race is not None and race.latency is not None else "",
        f"{race.accuracy.value:.3f}" if race is not None and race.accuracy is not None else "",
        _reason_text(install) + _waiting_text(install),
    ]


def _reason_text(install: Install) -> str:
    if install.stand_in is None:
        return install.reason or ""
    return f"degraded: {install.stand_in.reason}"


def _waiting_text(install: Install) -> str:
    left = (install.not_before or 0.0) - time.time()
    return f" (in {left:.0f} s)" if left > 0 else ""


def _candidate_row(one: CandidateResult, placement: str | None) -> list[str]:
    power = f"{one.power.power_mw:.0f} mW" if one.power.power_mw is not None else "unknown"
    return [
        one.id,
        "placed" if one.id == placement else str(one.outcome),
        _us(one.latency.p50_us) if one.latency is not None else "-",
        _us(one.latency.p99_us) if one.latency is not None else "-",
        f"{one.accuracy.value:.3f}" if one.accuracy is not None else "-",
        f"{one.peak_rss_bytes / 1e6:.0f}" if one.peak_rss_bytes is not None else "-",
        power,
        one.reason or "",
    ]


def _broker_text(said: AgentStatus) -> str:
    if said.online:
        return "connected"
    return f"not connected{f' ({said.offline})' if said.offline else ''}: it serves what it has, and tries again"


def _us(latency_us: float) -> str:
    return f"{latency_us:.1f}" if latency_us < 100 else f"{latency_us:.0f}"


def _because(install: Install) -> str:
    reason = _reason_text(install)
    return f" ({reason})" if reason else ""


def _running_text(running: bool, pid: int | None) -> str:
    if not running:
        return "not running: start it with `regatta-agent run` (or systemctl start regatta-agent)"
    return f"running (pid {pid})" if pid is not None else "running"
