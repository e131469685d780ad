"""`regatta-agent status`: read from the state folder, whether or not the agent runs."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from regatta_agent.cli.options import as_json, check_state_folder, folder_options, print_json, print_table
from regatta_agent.cli.traffic import show_traffic
from regatta_agent.config import AgentConfig, load_config
from regatta_agent.core.batches import BatchRun, reports
from regatta_agent.core.facts import Limits
from regatta_agent.core.installs import AgentRecord, Install
from regatta_agent.core.windows import unreadable, windows_of
from regatta_agent.disk.record import RecordFile
from regatta_agent.status import AgentStatus, is_running, read_status
from regatta_agent.telemetry.backlog import Backlog, read_backlog
from regatta_protocol.errors import RegattaError
from regatta_protocol.update_window import next_opening, parse_window
from regatta_provisioning.identity import load_identity

__all__ = ["install_json", "microseconds", "reason_text", "span", "status"]

_LONGEST_WAIT_S = 2 * 3600.0  # beyond it the clock was set since, and the agent does not wait (core/due.py)


@click.command()
@folder_options
@click.option("--bytes", "show_bytes", is_flag=True, help="Show what the network was used for, in bytes by cause.")
@as_json
def status(
    config_path: Path | None, state_dir: Path | None, run_dir: Path | None, show_bytes: bool, json_output: bool
) -> None:
    """Show what this device is, and where every version of its models stands.

    \b
    Examples:
      regatta-agent status
      regatta-agent status --bytes
      regatta-agent status --json --state-dir ./state --run-dir ./run
    """
    config = load_config(config_path, {"state_dir": state_dir, "run_dir": run_dir})
    check_state_folder(config.state_dir)
    if show_bytes:
        show_traffic(config, json_output)
        return
    running = is_running(config.state_dir)
    said = read_status(config.run_dir) if running else None
    record = RecordFile(config.state_dir).load()
    backlog = read_backlog(config.state_dir / "outbox.sqlite")
    window = _window(config, record)
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
                "offline_s": _offline_s(said),
                "refused": said.refused if said is not None else None,
                "update_window": asdict(window) if window is not None else None,
                "generation": record.generation,
                "bytes_received": record.bytes_received,
                "telemetry": asdict(backlog) if backlog is not None else None,
                "models": [install_json(record, install, config.run_dir) for install in record.all()],
                "batch": [one.model_dump(mode="json") for one in reports(record.batch)],
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
    if window is not None:
        click.echo(f"window      {_window_text(window)}")
    click.echo(f"received    {record.bytes_received:,} bytes over MQTT")
    if backlog is not None:
        click.echo(f"telemetry   {_backlog_text(backlog)}")
    installs = list(record.all())
    if not installs:
        click.echo("\nno model is assigned yet")
        return
    click.echo("")
    print_table(
        ["MODEL", "STATE", "SERVING", "PLACEMENT", "P50 µs", "ACCURACY", "REASON"],
        [_install_row(record, install, config.run_dir) for install in installs],
    )
    if record.batch:
        click.echo("")
        print_table(
            ["BATCH", "STATE", "MODEL", "RECORDS", "OUTPUT", "REASON"], [_batch_row(run) for run in record.batch]
        )


def _serving(record: AgentRecord, install: Install, run_dir: Path) -> bool:
    serving = record.serving(install.name)
    link = run_dir / f"{install.name}.sock"
    return serving is not None and serving.version == install.version and link.is_symlink() and link.exists()


def install_json(record: AgentRecord, install: Install, run_dir: Path) -> dict[str, object]:
    """Return an install as JSON values, with whether it serves."""
    value: dict[str, object] = json.loads(install.model_dump_json())
    return {**value, "serving": _serving(record, install, run_dir)}


def _install_row(record: AgentRecord, install: Install, run_dir: Path) -> list[str]:
    race = install.race
    return [
        str(install.ref),
        install.state,
        "yes" if _serving(record, install, run_dir) else "",
        (install.stand_in.placement if install.stand_in is not None else install.placement) or "",
        microseconds(race.latency.p50_us) if race is not None and race.latency is not None else "",
        f"{race.accuracy.value:.3f}" if race is not None and race.accuracy is not None else "",
        reason_text(install) + _waiting_text(install),
    ]


def _batch_row(run: BatchRun) -> list[str]:
    return [run.job.id, run.state, run.job.model, f"{run.records:,}", run.job.output, run.reason or ""]


def reason_text(install: Install) -> str:
    """Return why it stands where it stands, or what stands in for the winner and why."""
    if install.stand_in is None:
        return install.reason or ""
    return f"degraded: {install.stand_in.reason}"


def _waiting_text(install: Install) -> str:
    left_s = (install.opens_at or install.not_before or 0.0) - time.time()
    known = install.opens_at is not None or left_s < _LONGEST_WAIT_S
    return f" (in {span(left_s)})" if known and left_s > 0 else ""


@dataclass(frozen=True)
class _Window:
    """The update window that holds, for people and as JSON."""

    windows: tuple[str, ...]
    set_by: str  # device or fleet
    opens: str | None  # None: it is open
    opens_at: float | None  # seconds since 1970
    unreadable: tuple[str, ...]  # why some are not waited for


def _window(config: AgentConfig, record: AgentRecord) -> _Window | None:
    own, ours = config.update_window, Limits(update_window=tuple(map(parse_window, config.update_window)))
    given = own or (record.assignment.update_window if record.assignment is not None else ())
    if not given:
        return None
    opening = next_opening(windows_of(record, ours), time.time())
    opens, opens_at = (opening.text, opening.at_s) if opening is not None else (None, None)
    return _Window(given, "device" if own else "fleet", opens, opens_at, () if own else unreadable(record.assignment))


def _window_text(window: _Window) -> str:
    when = f"opens {window.opens}" if window.opens is not None else "updates may be taken into service now"
    doubts = "".join(f"; not waited for: {one}" for one in window.unreadable)
    return f"{', '.join(window.windows)}, set by the {window.set_by}: {when}{doubts}"


def _offline_s(said: AgentStatus | None) -> float | None:
    """Return for how long the broker has not been reached, or None while it is, or when no agent says so."""
    if said is None or said.offline_since_s is None:
        return None
    return max(0.0, time.monotonic() - said.offline_since_s)


def _broker_text(said: AgentStatus) -> str:
    if said.online:
        return "connected"
    offline_s = _offline_s(said)
    since = f" for {span(offline_s)}" if offline_s is not None else ""
    return f"not connected{since}{f' ({said.offline})' if said.offline else ''}: it serves what it has, and tries again"


def span(seconds: float) -> str:
    """Return how long that is in the largest unit of which it is two or more: `3 d`, `5 h`, `40 s`."""
    for unit, size_s in (("d", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size_s:
            return f"{seconds / size_s:.0f} {unit}"
    return f"{seconds:.0f} s"


def _backlog_text(backlog: Backlog) -> str:
    waiting = f"{backlog.items} items of {backlog.size_bytes:,} bytes wait" if backlog.items else "nothing waits"
    merged = f"; {backlog.thinned:,} windows were merged for want of room" if backlog.thinned else ""
    lost = f"; {backlog.dropped:,} items are lost" if backlog.dropped else ""
    return waiting + merged + lost


def microseconds(latency_us: float) -> str:
    """Return a latency in microseconds, with a decimal under 100."""
    return f"{latency_us:.1f}" if latency_us < 100 else f"{latency_us:.0f}"


def _running_text(running: bool, pid: int | None) -> str:
    if not running:
        return "not running: start it with `regatta-agent run` (or systemctl start regatta-agent)"
    return f"running (pid {pid})" if pid is not None else "running"
