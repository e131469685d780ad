"""The doctor's findings about hardware: the board, each accelerator with its driver, node and delegate, power, heat.

Facts come from regatta_runtimes; the rules here are pure. No accelerator is opened and no library is loaded.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from regatta_agent.cli.finding import Finding
from regatta_protocol.measurement import BoardFacts
from regatta_runtimes.board.accelerators import ACCELERATORS, Accelerator, Signs
from regatta_runtimes.board.offers import Offer
from regatta_runtimes.power.sensor import PowerSensor, UnknownPower

__all__ = [
    "User",
    "access_fix",
    "agent_user",
    "describe_accelerators",
    "describe_board",
    "describe_drivers",
    "describe_heat",
    "describe_power",
]

_SERVICE_USER = "regatta-agent"
_GIB = 1 << 30


@dataclass(frozen=True)
class User:
    """Who opens the devices."""

    name: str
    uid: int
    groups: frozenset[int]

    def may_use(self, mode: int, owner: int, group: int) -> bool:
        """Return whether the permission bits let this user read and write; access control lists are not looked at."""
        if self.uid == 0:
            return True
        shift = 6 if owner == self.uid else 3 if group in self.groups else 0
        return (mode >> shift) & 0o6 == 0o6


def agent_user() -> User:
    """Return the service's user, when root asks and it exists; else who runs this."""
    uid = os.geteuid()
    if uid == 0:
        try:
            service = pwd.getpwnam(_SERVICE_USER)
        except KeyError:
            pass
        else:
            groups = os.getgrouplist(service.pw_name, service.pw_gid)
            return User(service.pw_name, service.pw_uid, frozenset(groups))
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    return User(name, uid, frozenset([*os.getgroups(), os.getegid()]))


def describe_board(board: BoardFacts) -> list[Finding]:
    """Return what the board is."""

    def found(subject: str, text: str | None) -> Finding:
        return Finding("Board", subject, "ok" if text else "note", text or "unknown")

    memory = f"{board.memory_bytes / _GIB:.1f} GiB" if board.memory_bytes else None
    cores = f"{board.cores} core{'' if board.cores == 1 else 's'}" if board.cores else "unknown cores"
    return [
        found("model", board.model),
        found("processor", f"{board.cpu or 'unknown'} ({board.machine or 'unknown'}), {cores}"),
        found("features", " ".join(board.cpu_features)),
        found("memory", memory),
        found("kernel", board.kernel),
    ]


def describe_heat(board: BoardFacts, clock_share: float | None) -> list[Finding]:
    """Return how hot the board is, and whether it slows itself down.

    Args:
        clock_share: the processor's clock as a share of its maximum; a hint only, for governors lower it at rest.
    """
    temperature = "unknown: no sensor" if board.temperature_c is None else f"{board.temperature_c:.1f} °C"
    findings = [
        Finding("Power and heat", "temperature", "ok" if board.temperature_c is not None else "note", temperature)
    ]
    clock = "" if clock_share is None else f"; the clock is at {clock_share:.0%} of its maximum"
    if board.throttled is None:
        findings.append(Finding("Power and heat", "throttling", "note", f"unknown: this board does not tell{clock}"))
    elif board.throttled:
        text = f"the board slows itself down, for heat or low voltage{clock}"
        fix = "cool it, or give it a stronger supply: a race now measures a slower board"
        findings.append(Finding("Power and heat", "throttling", "note", text, fix))
    else:
        findings.append(Finding("Power and heat", "throttling", "ok", f"none{clock}"))
    return findings


def describe_power(sensor: PowerSensor | UnknownPower) -> Finding:
    """Return which sensor there is, or why there is none."""
    if isinstance(sensor, UnknownPower):
        return Finding("Power and heat", "power", "note", f"unknown: {sensor.reason}")
    return Finding("Power and heat", "power", "ok", f"{sensor.name} ({sensor.method}, covers {sensor.coverage})")


def describe_accelerators(
    board: BoardFacts,
    accelerators: Sequence[Accelerator],
    offers: Sequence[Offer],
    signs: Mapping[str, Signs],
    user: User,
) -> list[Finding]:
    """Return each accelerator with its driver and its nodes, then each delegate with its library or what it lacks.

    Args:
        signs: those that users added.
    """
    findings = [
        _accelerator(one, board, {**ACCELERATORS, **signs}.get(one.name, Signs()), user) for one in accelerators
    ] or [Finding("Accelerators", "none", "note", "no accelerator was found: models run on the processor")]
    for offer in offers:
        findings.append(_delegate(offer, board))
    served = {name for offer in offers for name in offer.accelerators}
    for one in accelerators:
        if one.name not in served:
            text = f"no delegate that this agent knows serves {one.name}"
            findings.append(
                Finding("Delegates", one.name, "note", text, "describe one in a delegate file (docs/boards.md)")
            )
    return findings


def _accelerator(one: Accelerator, board: BoardFacts, signs: Signs, user: User) -> Finding:
    driver = f"driver {one.driver} {_version(board, one.driver)}" if one.driver else None
    closed = [node for node in one.nodes if not _open_to(node, user)]
    nodes = ", ".join(_shown(node) for node in one.nodes)
    text = "; ".join(part for part in ("found", driver, nodes) if part)
    if closed:
        text = f"{text}: {user.name} may not use {', '.join(_shown(node) for node in closed)}"
        return Finding("Accelerators", one.name, "note", text, access_fix(closed[0], one.name, user))
    if not one.nodes and signs.node_hint:
        return Finding("Accelerators", one.name, "note", f"{text}, but its device node is not there", signs.node_hint)
    return Finding("Accelerators", one.name, "ok", text)


def _delegate(offer: Offer, board: BoardFacts) -> Finding:
    serves = f" for {', '.join(offer.accelerators)}" if offer.accelerators else ""
    if offer.lacks:
        text = f"missing{serves}: {' and '.join(offer.lacks)}"
        return Finding("Delegates", offer.delegate, "note", text, offer.fix)
    parts = [f"ready{serves}"]
    if offer.library is not None:
        parts.append(f"{offer.library} ({_version(board, offer.library.name)})")
    if board.power_sensor is not None and not offer.power_seen:
        parts.append(f"the power sensor {board.power_sensor} does not see what it draws")
    return Finding("Delegates", offer.delegate, "ok", "; ".join(parts))


def describe_drivers(board: BoardFacts) -> Iterable[Finding]:
    """Return the versions of drivers, firmware and libraries; a change of one makes a new race."""
    return [Finding("Drivers", name, "ok", version) for name, version in board.drivers.items()]


def access_fix(node: Path, accelerator: str, user: User) -> str:
    """Return how the user gets to use a node: the group that may, or a udev rule where there is none."""
    facts = node.stat()
    if stat.S_IMODE(facts.st_mode) & 0o060 == 0o060 and facts.st_gid != 0:
        try:
            group = grp.getgrgid(facts.st_gid).gr_name
        except KeyError:
            group = str(facts.st_gid)
        return f"sudo usermod -aG {group} {user.name}, then log in again (or restart the service)"
    if accelerator.startswith("coral-"):
        return "sudo regatta-agent install, which writes the udev rules of Coral devices; then plug it in again"
    rule = f'KERNEL=="{node.name}", GROUP="{_SERVICE_USER}", MODE="0660"'
    file = "/etc/udev/rules.d/70-regatta-local.rules"
    return f"echo '{rule}' | sudo tee -a {file} && sudo udevadm control --reload && sudo udevadm trigger"


def _open_to(node: Path, user: User) -> bool:
    try:
        facts = node.stat()
    except OSError:
        return False
    return user.may_use(facts.st_mode, facts.st_uid, facts.st_gid)


def _version(board: BoardFacts, name: str) -> str:
    return board.drivers.get(name, "of unknown version")


def _shown(node: Path) -> str:
    """Return a node's path as the board itself would name it."""
    return "/dev/" + "/".join(node.parts[len(node.parts) - node.parts[::-1].index("dev") :])
