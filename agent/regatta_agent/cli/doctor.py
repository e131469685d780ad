"""`regatta-agent doctor`: what this board is, what it can run, what is missing, and how to get that."""

from __future__ import annotations

import ctypes
import platform
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import click

from regatta_agent.cli.finding import Finding, print_findings
from regatta_agent.cli.options import as_json, folder_options, print_json
from regatta_agent.config import AgentConfig, load_config
from regatta_agent.status import is_running
from regatta_protocol.errors import RegattaError, Rejected
from regatta_protocol.measurement import BoardFacts

__all__ = ["doctor"]

_LOW_SPACE_BYTES = 200 * 1024 * 1024
_MAX_PEM_BYTES = 16_384
_METER_S = 5.0  # to connect to a smart plug's broker and hear from it; a sensor of the board takes milliseconds
_SYS_LANDLOCK_CREATE_RULESET = 444  # the same number on every architecture
_LANDLOCK_CREATE_RULESET_VERSION = 1
_RUNTIMES = {
    "litert": "pip install ai-edge-litert (wheels: 64-bit x86 and ARM, Python 3.10 to 3.14)",
    "compiled": "pip install 'ai-edge-litert>=2.1'",
    "onnx": "pip install 'regatta-edge[onnx]', for variants in ONNX",
    "tflite": "pip install 'regatta-edge[tflite]' (wheels: Python up to 3.11, and it needs numpy before 2)",
}


@click.command()
@folder_options
@click.option(
    "--sysroot",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Look for /proc, /sys and /dev here, as for a recorded board. [/]",
)
@click.option(
    "--record", type=click.Path(path_type=Path, dir_okay=False), help="Only write the board as a file to send in."
)
@as_json
def doctor(
    config_path: Path | None,
    state_dir: Path | None,
    run_dir: Path | None,
    sysroot: Path | None,
    record: Path | None,
    json_output: bool,
) -> None:
    """Examine the board and say what is missing; exit 65 when something stops the agent.

    Shows board, accelerators with their drivers and delegates, runtimes (each builds and runs a small model), power,
    heat, identity and disk, each with how to mend it. --record writes the files that the probes read, without serial
    numbers, addresses or host name, so that a board can be sent in (docs/boards.md).

    \b
    Examples:
      regatta-agent doctor
      regatta-agent doctor --json
      regatta-agent doctor --record my-board.tree
    """
    config = load_config(config_path, {"state_dir": state_dir, "run_dir": run_dir, "sysroot": sysroot})
    if record is not None:
        _record(config.sysroot, record)
        return
    board, findings = _hardware(config)
    findings += [finding for examine in _EXAMINATIONS for finding in _guarded(examine, config)]
    problems = [finding.subject for finding in findings if finding.level == "problem"]
    if json_output:
        document = {"board": board.model_dump(mode="json"), "findings": [asdict(finding) for finding in findings]}
        print_json({**document, "problems": problems})
    else:
        print_findings(findings, min(shutil.get_terminal_size().columns, 140))
    if problems:
        raise Rejected(f"{len(problems)} problem(s): {', '.join(problems)}")


def _record(root: Path, file: Path) -> None:
    from regatta_runtimes.board.delegates import read_delegates
    from regatta_runtimes.board.record import record_board

    text = record_board(root, read_delegates(root=root))
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as err:
        raise Rejected(f"{file} cannot be written: {err.strerror}") from err
    click.echo(f"wrote {file} ({text.count(chr(10))} lines); read it before you send it", err=True)


def _hardware(config: AgentConfig) -> tuple[BoardFacts, list[Finding]]:
    from regatta_agent.cli import hardware
    from regatta_runtimes.board.accelerators import find_accelerators
    from regatta_runtimes.board.delegates import known_signs, read_delegates
    from regatta_runtimes.board.offers import survey
    from regatta_runtimes.board.probe import probe_board
    from regatta_runtimes.board.thermal import frequency_share

    root = config.sysroot
    left_out: list[str] = []
    rows = read_delegates(config.delegate_files, root, left_out.append)
    signs = known_signs(rows)
    board = probe_board(root, rows)
    findings = hardware.describe_board(board)
    findings += hardware.describe_accelerators(
        board, find_accelerators(root, signs), survey(board, rows, root), signs, hardware.agent_user()
    )
    findings += [Finding("Delegates", "left out", "note", text, "mend or remove it") for text in left_out]
    findings += hardware.describe_drivers(board)
    findings.append(_power(config))
    findings += hardware.describe_heat(board, frequency_share(root))
    return board, findings


def _power(config: AgentConfig) -> Finding:
    """Read the sensor once: a meter of the user's may be set and say nothing."""
    from regatta_agent.cli import hardware
    from regatta_runtimes.power.finder import open_sensor
    from regatta_runtimes.power.recorder import why_silent
    from regatta_runtimes.power.sensor import UnknownPower

    sensor = open_sensor(config.power, config.sysroot)
    if isinstance(sensor, UnknownPower):
        return hardware.describe_power(sensor)
    fault = why_silent(sensor, _METER_S)
    sensor.close()
    if fault is not None:
        return Finding("Power and heat", "power", "note", f"{sensor.name}: {fault}", "see docs/power.md")
    return hardware.describe_power(sensor)


def _guarded(examine: Callable[[AgentConfig], Iterable[Finding]], config: AgentConfig) -> list[Finding]:
    try:
        return list(examine(config))
    except (RegattaError, OSError) as err:
        return [Finding("Agent", examine.__name__.strip("_"), "problem", str(err))]


def _runtimes(_config: AgentConfig) -> Iterable[Finding]:
    """Build and run the smallest model in each runtime: importing one proves nothing."""
    from regatta_runtimes.errors import RuntimeMissing
    from regatta_runtimes.race.working_runtimes import probe_runtime
    from regatta_runtimes.worker.nursery import Nursery

    working = 0
    for name, install in _RUNTIMES.items():
        try:
            with Nursery(name) as nursery:
                fault, version = probe_runtime(nursery), nursery.runtime_version
        except RuntimeMissing as err:
            fault, version = str(err), ""
        working += fault is None
        text = f"{version}, runs the probe model" if fault is None else fault
        yield Finding("Runtimes", name, "note" if fault else "ok", text, install if fault else None)
    if not working:
        text = (
            f"no runtime works with Python {platform.python_version()} on {platform.machine()}: no model can be served"
        )
        yield Finding("Runtimes", "runtimes", "problem", text, "install one of the above")


def _confinement(config: AgentConfig) -> Iterable[Finding]:
    from regatta_runtimes.sysfs import read_text

    if config.sysroot != Path("/"):
        return
    abi = ctypes.CDLL(None, use_errno=True).syscall(
        _SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_LANDLOCK_CREATE_RULESET_VERSION)
    )
    if abi > 0:
        yield Finding("Agent", "Landlock", "ok", f"available (ABI {abi}): workers can be kept to their files")
    else:
        text = "not available: workers can reach every file of their user"
        yield Finding(
            "Agent", "Landlock", "note", text, "use kernel 5.13 or later with lsm=landlock,… on its command line"
        )
    actions = read_text(Path("/proc/sys/kernel/seccomp/actions_avail"))
    yield Finding("Agent", "seccomp", "ok" if actions else "note", "available" if actions else "not available")


def _identity(config: AgentConfig) -> Iterable[Finding]:
    from regatta_protocol.durable import read_bounded
    from regatta_provisioning.identity import damaged_files, load_identity
    from regatta_provisioning.renewal import validity_of

    folder = config.state_dir / "identity"
    identity, damaged = load_identity(folder), damaged_files(folder)
    where = f"{identity.device} of {identity.fleet}, broker {identity.broker_host}:{identity.broker_port}"
    if damaged:
        text, fix = f"{where}; damaged or missing: {', '.join(damaged)}", "start the agent again: it mends them"
        yield Finding("Agent", "identity", "note", text, fix)
        return
    yield Finding("Agent", "identity", "ok", where)
    validity = validity_of(read_bounded(identity.certificate_path, _MAX_PEM_BYTES))
    now = time.time()
    ends = time.strftime("%Y-%m-%d", time.gmtime(validity.ends))
    until = f"{'good until' if now < validity.ends else 'ended'} {ends}"
    if now < validity.begins:
        until = f"not good before {time.strftime('%Y-%m-%d', time.gmtime(validity.begins))}"
    due = validity.is_due(now)
    yield Finding("Agent", "certificate", "note" if due else "ok", until, "regatta-agent renew" if due else None)


def _daemon(config: AgentConfig) -> Iterable[Finding]:
    running = is_running(config.state_dir)
    fix = None if running else "sudo regatta-agent install, or regatta-agent run"
    yield Finding("Agent", "daemon", "ok" if running else "note", "running" if running else "not running", fix)


def _disk(config: AgentConfig) -> Iterable[Finding]:
    folder = next(path for path in (config.state_dir, *config.state_dir.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    enough = free > _LOW_SPACE_BYTES
    fix = None if enough else f"free some: {_LOW_SPACE_BYTES >> 20} MiB are needed"
    yield Finding("Agent", "disk", "ok" if enough else "problem", f"{free / 1e9:.1f} GB free at {folder}", fix)


_EXAMINATIONS = (_runtimes, _confinement, _identity, _daemon, _disk)
