"""`regatta-agent doctor`: what this board is, what it can run, and what is missing."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import click

from regatta_agent.cli.options import as_json, folder_options, print_json, print_table
from regatta_agent.config import AgentConfig, load_config
from regatta_agent.status import is_running
from regatta_protocol.errors import RegattaError, Rejected

__all__ = ["doctor"]

_LOW_SPACE_BYTES = 200 * 1024 * 1024


@dataclass(frozen=True)
class _Finding:
    subject: str
    level: Literal["ok", "note", "problem"]
    text: str


@click.command()
@folder_options
@as_json
def doctor(config_path: Path | None, state_dir: Path | None, run_dir: Path | None, json_output: bool) -> None:
    """Examine board, runtimes, power sensor, identity and disk; exit 65 when something stops the agent.

    \b
    Examples:
      regatta-agent doctor
      regatta-agent doctor --json
    """
    config = load_config(config_path, {"state_dir": state_dir, "run_dir": run_dir})
    findings = [finding for examine in _EXAMINATIONS for finding in _guarded(examine, config)]
    problems = [finding.subject for finding in findings if finding.level == "problem"]
    if json_output:
        print_json({"findings": [asdict(finding) for finding in findings], "problems": problems})
    else:
        print_table(["SUBJECT", "", "FINDING"], [(one.subject, one.level, one.text) for one in findings])
    if problems:
        raise Rejected(f"{len(problems)} problem(s): {', '.join(problems)}")


def _guarded(examine: Callable[[AgentConfig], list[_Finding]], config: AgentConfig) -> list[_Finding]:
    try:
        return examine(config)
    except (RegattaError, OSError) as err:
        return [_Finding(examine.__name__.strip("_"), "problem", str(err))]


def _board(config: AgentConfig) -> list[_Finding]:
    from regatta_runtimes.board import probe_board

    board = probe_board(config.sysroot)
    memory = f"{board.memory_bytes / 1e9:.1f} GB" if board.memory_bytes else "unknown memory"
    accelerators = ", ".join(board.accelerators) or "none found"
    return [
        _Finding("board", "ok", f"{board.model or 'unknown'} ({board.machine}), {board.cores} cores, {memory}"),
        _Finding("accelerators", "ok" if board.accelerators else "note", accelerators),
    ]


def _runtimes(config: AgentConfig) -> list[_Finding]:
    found = []
    for name, extra in (("ai-edge-litert", "regatta-edge"), ("tflite-runtime", "regatta-edge[tflite]")):
        try:
            found.append(_Finding(name, "ok", importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            found.append(_Finding(name, "note", f"not installed: pip install '{extra}' where a wheel exists"))
    if all(finding.level != "ok" for finding in found):
        found.append(_Finding("runtimes", "problem", "no runtime is installed: no model can be served"))
    return found


def _power(config: AgentConfig) -> list[_Finding]:
    from regatta_runtimes.power import UnknownPower, open_sensor

    sensor = open_sensor(config.power, config.sysroot)
    if isinstance(sensor, UnknownPower):
        return [_Finding("power", "note", f"unknown: {sensor.reason}")]
    sensor.close()
    return [_Finding("power", "ok", f"{sensor.name} ({sensor.method}, {sensor.coverage})")]


def _identity(config: AgentConfig) -> list[_Finding]:
    from regatta_provisioning.identity import load_identity

    identity = load_identity(config.state_dir / "identity")
    where = f"{identity.device} of {identity.fleet}, broker {identity.broker_host}:{identity.broker_port}"
    return [_Finding("identity", "ok", where)]


def _daemon(config: AgentConfig) -> list[_Finding]:
    running = is_running(config.state_dir)
    return [_Finding("agent", "ok" if running else "note", "running" if running else "not running")]


def _disk(config: AgentConfig) -> list[_Finding]:
    folder = next(path for path in (config.state_dir, *config.state_dir.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    text = f"{free / 1e6:.0f} MB free at {folder}"
    return [_Finding("disk", "ok" if free > _LOW_SPACE_BYTES else "problem", text)]


_EXAMINATIONS = (_board, _runtimes, _power, _identity, _daemon, _disk)
