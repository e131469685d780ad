"""Installs the agent or the server as a systemd service: a plan of plain steps, shown or carried out.

The plan is data; `describe` prints it (`--dry-run`), `apply` carries it out, and below another root than `/` it
writes files only and starts no program. Every step may be repeated, so an installation that was cut off is completed
by running it again. `uninstall` takes the same things away and keeps the state, unless it is told to purge it.

Files go below /etc: they belong to this machine's administrator, as a package's would go below /usr/lib.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from regatta_protocol.durable import read_bounded, remove_durably, sync_folder, write_durably
from regatta_protocol.enums import StrEnum
from regatta_protocol.errors import Misuse, Retryable

__all__ = [
    "InstallStep",
    "Service",
    "StepKind",
    "apply",
    "describe",
    "find_program",
    "plan_install",
    "plan_uninstall",
    "uninstall",
    "unit_folder",
]

logger = logging.getLogger(__name__)

_MAX_UNIT_BYTES = 65_536
_COMMAND_TIMEOUT_S = 90.0  # `systemctl disable --now` waits for TimeoutStopSec of the unit, 30 s
_HOMES = (Path("/home"), Path("/root"), Path("/run/user"))  # what ProtectHome=yes hides


class Service(StrEnum):
    """What is installed; also the name of its user, its state folder and its unit."""

    AGENT = "regatta-agent"
    SERVER = "regatta"

    @property
    def program(self) -> str:
        """The console script that the unit starts."""
        return self.value

    @property
    def unit(self) -> str:
        return f"{self.value}.service"


class StepKind(StrEnum):
    CHECK = "check"  # `path` can be reached by every user
    WRITE = "write"
    RUN = "run"
    REMOVE = "remove"  # a file
    REMOVE_TREE = "remove-tree"


@dataclass(frozen=True)
class InstallStep:
    """One thing to do. `path` is absolute on the machine; `apply` puts it below its root."""

    kind: StepKind
    why: str
    path: Path | None = None
    content: bytes = b""
    command: tuple[str, ...] = ()
    may_fail: bool = False  # a program that a small system lacks, or something that is gone already

    def __str__(self) -> str:
        what = " ".join(self.command) if self.kind is StepKind.RUN else str(self.path)
        return f"{self.kind:<11} {what}  ({self.why})"


def unit_folder() -> Path:
    """Return where the unit files are: in the installed package, or in the source checkout.

    Raises:
        Misuse: when they are in neither.
    """
    here = Path(__file__).resolve().parent
    for folder in (here / "units", here.parents[1] / "systemd"):
        if folder.is_dir():
            return folder
    raise Misuse(f"the unit files are missing beside {here}: install regatta-edge again")


def find_program(name: str) -> Path:
    """Return the absolute path of a console script of this installation.

    Raises:
        Misuse: when it is not installed.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise Misuse(f"the program {name} is neither beside {sys.executable} nor on the PATH: install regatta-edge")
    return Path(found).absolute()


def plan_install(
    service: Service = Service.AGENT,
    *,
    program: Path | None = None,
    start: Literal["enable", "enable-now", "no"] = "enable-now",
) -> list[InstallStep]:
    """Return the steps that install the service.

    Args:
        service: What to install.
        program: What the unit shall start; None finds this installation's own.
        start: `enable-now` starts it at once and with each boot (an agent that is not enrolled is skipped).

    Raises:
        Misuse: when the program or the unit files are missing.
    """
    program = find_program(service.program) if program is None else program
    source = unit_folder()
    unit = _unit_for(read_bounded(source / service.unit, _MAX_UNIT_BYTES).decode(), service, program)
    sysusers = Path("/etc/sysusers.d") / f"{service}.conf"
    tmpfiles = Path("/etc/tmpfiles.d") / f"{service}.conf"
    steps = [InstallStep(StepKind.CHECK, f"the user {service} must be able to run it", program)]
    steps += [
        _write(sysusers, source / "sysusers.d" / sysusers.name, f"the user {service} and its groups"),
        _run("make the user", "systemd-sysusers", str(sysusers)),
        _write(tmpfiles, source / "tmpfiles.d" / tmpfiles.name, "the folders and their owners"),
        _run("make the folders", "systemd-tmpfiles", "--create", str(tmpfiles)),
    ]
    if service is Service.AGENT:
        rules = source / "udev" / _RULES.name
        pipeline = read_bounded(source / _PIPELINE_UNIT, _MAX_UNIT_BYTES).decode()
        steps += [
            InstallStep(
                StepKind.WRITE,
                "pipelines, each when it is enabled",
                _UNITS / _PIPELINE_UNIT,
                _unit_for(pipeline, service, program).encode(),
            ),
            _write(_RULES, rules, "let the agent use Coral accelerators"),
            _run("read the rules", "udevadm", "control", "--reload", may_fail=True),
            _run("apply them to what is plugged in", "udevadm", "trigger", "--subsystem-match=usb", may_fail=True),
            _run("smaller bytecode, until the next upgrade", sys.executable, "-m", *_COMPILER, may_fail=True),
        ]
    steps += [
        InstallStep(StepKind.WRITE, "the service", _UNITS / service.unit, unit.encode()),
        _run("read the unit", "systemctl", "daemon-reload"),
    ]
    if start != "no":
        now = ("--now",) if start == "enable-now" else ()
        steps.append(_run("start it with each boot", "systemctl", "enable", *now, service.unit))
    return steps


def plan_uninstall(service: Service = Service.AGENT, *, purge: bool = False) -> list[InstallStep]:
    """Return the steps that undo `plan_install`. State and user stay, unless `purge` is set."""
    steps = [
        _run("stop it", "systemctl", "disable", "--now", service.unit, may_fail=True),
        InstallStep(StepKind.REMOVE, "the service", _UNITS / service.unit),
        _run("forget the unit", "systemctl", "daemon-reload", may_fail=True),
    ]
    if service is Service.AGENT:
        steps += [
            InstallStep(StepKind.REMOVE, "pipelines", _UNITS / _PIPELINE_UNIT),
            InstallStep(StepKind.REMOVE_TREE, "bytecode", _BYTECODE.parent),
            InstallStep(StepKind.REMOVE, "rules for Coral accelerators", _RULES),
            _run("forget the rules", "udevadm", "control", "--reload", may_fail=True),
        ]
    steps += [
        InstallStep(StepKind.REMOVE, "the folders' description", Path("/etc/tmpfiles.d") / f"{service}.conf"),
        InstallStep(StepKind.REMOVE, "the user's description", Path("/etc/sysusers.d") / f"{service}.conf"),
    ]
    if purge:
        steps += [
            InstallStep(StepKind.REMOVE_TREE, "identity, models and all state", Path("/var/lib") / service),
            _run("the user", "userdel", str(service), may_fail=True),
        ]
    return steps


def describe(steps: Sequence[InstallStep], root: Path = Path("/")) -> str:
    """Return the plan as text, one step a line, with each file's content indented below it."""
    lines: list[str] = []
    for step in steps:
        lines.append(str(step) if _is_done(step, root) is None else f"{step}  [{_is_done(step, root)}]")
        lines += [f"    | {line}" for line in step.content.decode().splitlines()]
    return "\n".join(lines)


def apply(
    steps: Sequence[InstallStep], root: Path = Path("/"), report: Callable[[str], None] = lambda line: None
) -> None:
    """Carry the plan out, step by step, telling `report` each one before it is done.

    Raises:
        Misuse: when a step cannot be done: the message says which and why. What was done before stays.
    """
    live = root == Path("/")
    if live and os.geteuid() != 0:
        raise Misuse("installing a service needs root: run the same command with sudo")
    for step in steps:
        if not live and step.kind in (StepKind.RUN, StepKind.CHECK):
            report(f"skipped below {root}: {step}")
            continue
        report(str(step))
        try:
            _carry_out(step, root)
        except OSError as err:
            raise Misuse(f"could not do this step: {step}: {err}") from err
        logger.info("event=install_step kind=%s path=%s", step.kind, step.path or step.command[0])


def uninstall(
    service: Service = Service.AGENT,
    *,
    root: Path = Path("/"),
    purge: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Undo `plan_install`; with `purge`, the state goes too.

    Raises:
        Misuse: as `apply`.
    """
    apply(plan_uninstall(service, purge=purge), root, report)


_UNITS = Path("/etc/systemd/system")
_RULES = Path("/etc/udev/rules.d/70-regatta-agent.rules")
_PIPELINE_UNIT = "regatta-pipeline@.service"
_BYTECODE = Path("/var/cache/regatta-agent/bytecode")  # as the unit says
_COMPILER = ("regatta_agent.process.compiler", str(_BYTECODE))


def _write(path: Path, source: Path, why: str) -> InstallStep:
    return InstallStep(StepKind.WRITE, why, path, read_bounded(source, _MAX_UNIT_BYTES))


def _run(why: str, *command: str, may_fail: bool = False) -> InstallStep:
    return InstallStep(StepKind.RUN, why, command=command, may_fail=may_fail)


def _unit_for(unit: str, service: Service, program: Path) -> str:
    """Return the unit, starting `program`, which may lie in somebody's home."""
    if any(char.isspace() or char in "\"'%$\\;" for char in str(program)):
        raise Misuse(f"systemd cannot start {str(program)!r} because of its name: install to a path of plain letters")
    unit = unit.replace(f"ExecStart=/usr/bin/{service.program} ", f"ExecStart={program} ")
    if any(program.is_relative_to(home) for home in _HOMES):
        unit = unit.replace("ProtectHome=yes", "ProtectHome=read-only")
    return unit


def _carry_out(step: InstallStep, root: Path) -> None:
    path = None if step.path is None else root / step.path.relative_to("/")
    if step.kind is StepKind.RUN:
        _execute(step)
    elif path is None:
        raise Misuse(f"this step has no path: {step}")
    elif step.kind is StepKind.CHECK:
        _check_reachable(path)
    elif step.kind is StepKind.WRITE:
        _make_public_folder(path.parent)
        if not (path.is_file() and read_bounded(path, _MAX_UNIT_BYTES) == step.content):
            write_durably(path, step.content, mode=0o644)
            path.chmod(0o644)  # a strict umask of root's must not hide it from the service
    elif step.kind is StepKind.REMOVE:
        if path.parent.is_dir():
            remove_durably(path)
    elif path.is_dir():
        shutil.rmtree(path)
        sync_folder(path.parent)


def _execute(step: InstallStep) -> None:
    try:
        done = subprocess.run(
            step.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as err:
        if step.may_fail:
            return
        raise Misuse(f"{step.command[0]} is not on this machine, and Regatta's services need systemd ({step})") from err
    except subprocess.TimeoutExpired as err:
        raise Retryable(f"{' '.join(step.command)} did not end within {_COMMAND_TIMEOUT_S:g} s: try again") from err
    if done.returncode != 0 and not step.may_fail:
        said = done.stdout.decode(errors="replace").strip()[-500:]
        raise Misuse(f"{' '.join(step.command)} ended with status {done.returncode}: {said or 'it said nothing'}")


def _check_reachable(program: Path) -> None:
    """Raise when another user cannot execute `program` or the interpreter behind it."""
    for target in (program, program.resolve(), Path(sys.executable), Path(sys.executable).resolve()):
        for part in (target, *target.parents):
            if not part.exists():
                raise Misuse(f"{part} is missing: install regatta-edge again")
            if not part.stat().st_mode & stat.S_IXOTH:
                raise Misuse(
                    f"the service's own user cannot enter {part}, where {target} lies: install regatta-edge into a "
                    "folder that all may read, for example `python3 -m venv /opt/regatta`, or run "
                    f"`chmod o+x {part}`"
                )


def _make_public_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_public_folder(folder.parent)
        folder.mkdir(mode=0o755)
        folder.chmod(0o755)
        sync_folder(folder.parent)


def _is_done(step: InstallStep, root: Path) -> str | None:
    """Return a word on a file step that has nothing left to do, or None."""
    if step.path is None or step.kind is StepKind.CHECK:
        return None
    path = root / step.path.relative_to("/")
    if step.kind is StepKind.WRITE:
        unchanged = path.is_file() and read_bounded(path, _MAX_UNIT_BYTES) == step.content
        return "in place already" if unchanged else None
    return None if path.exists() else "not there"
