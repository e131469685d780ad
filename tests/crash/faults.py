"""Layer B: calls that fail. Each with the errors that it may bring, once or for hours, or a write that is cut short.

While calls fail, the agent must go on serving, try again with ever longer pauses, and keep what it has told; once they
no longer fail, the story must come to its end. That a start fails because of one error is allowed: systemd starts it
again.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crash.bugs import planted
from crash.case import Case, KnownState
from crash.comeback import check_end, has_ended, look
from crash.device import STATE, Device, adjusted
from crash.forks import Tell
from crash.heard import Heard, Violation, demand
from crash.scenarios import play
from crash.shim import CHANGES, Call, Intent, Kind, Shim
from device_rig import MODEL
from regatta_protocol.errors import RegattaError

__all__ = ["Faults"]

_ON_FILES = frozenset({Kind.WRITE, Kind.PWRITE, Kind.FSYNC, Kind.FDATASYNC})
_NAMES = frozenset({Kind.RENAME, Kind.MKDIR, Kind.SYMLINK, Kind.LINK})
_WRITES = frozenset({Kind.WRITE, Kind.PWRITE})
_HOUR_S = 3600.0
_ACT_S = 11 * _HOUR_S  # an error of 3 hours, the last pause, the 6 hours between races, and the act
_FOREVER = 2**62
_BUILDS = 3
_STARTS = 100  # over 8 hours
_EARLY_TRIES = 100  # failing calls until pauses have grown
_FULL_TRIES_AN_HOUR = 6.0  # one try of the record, of a download and of telemetry, some calls each
_TRIES_AN_HOUR = 120.0  # twelve each, after pauses of 5 minutes
_MARGIN = 6


@dataclass(frozen=True)
class _Source:
    """The calls that an error may come from."""

    kinds: frozenset[Kind]
    opens: Intent  # at least, of an OPEN

    def has(self, call: Call) -> bool:
        return call.intent >= self.opens if call.kind is Kind.OPEN else call.kind in self.kinds


_READS = frozenset({Kind.READ, Kind.PREAD})
_NO_SPACE = _Source(_ON_FILES | _NAMES, Intent.CREATES)
_READ_ONLY = _Source(CHANGES - {Kind.FSYNC, Kind.FDATASYNC}, Intent.WRITES)
_NO_DESCRIPTOR = _Source(frozenset(), Intent.LOOKS)
_ONCE = {
    errno.ENOSPC: _NO_SPACE,
    errno.EIO: _Source(CHANGES | _READS, Intent.LOOKS),
    errno.EROFS: _READ_ONLY,
    errno.EMFILE: _NO_DESCRIPTOR,
    errno.EINTR: _Source(_ON_FILES | _READS, Intent.LOOKS),
}
# What cannot be read for long counts as lost, and is fetched again: that is no story of these.
_LASTING = {
    errno.ENOSPC: (_NO_SPACE, 3 * _HOUR_S),
    errno.EIO: (_Source(CHANGES, Intent.WRITES), 1200.0),
    errno.EROFS: (_READ_ONLY, 1200.0),
    errno.EMFILE: (_NO_DESCRIPTOR, 600.0),
}


@dataclass(frozen=True)
class _Fault:
    """One call that fails."""

    call: int
    error: int  # 0: a write is cut short
    lasts_s: float  # 0: once

    @property
    def full(self) -> bool:
        """Whether the file system says that it is full; a quota or a lack of inodes shows only when it fails."""
        return self.error == errno.ENOSPC and self.call % 2 == 0

    def __str__(self) -> str:
        if self.error == 0:
            return f"call {self.call} writes half"
        often = f"for {self.lasts_s:g} s" if self.lasts_s else "once"
        return f"{errno.errorcode[self.error]} at call {self.call} {often}"


class Faults:
    """A story's failing calls, by number."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._faults = list(_faults_of(case))

    def __len__(self) -> int:
        return len(self._faults)

    def hit(self, number: int) -> str | None:
        """Let the call fail and follow the story to its end; return the broken promise, or None."""
        fault, case = self._faults[number], self._case
        run = case.run(lambda shim: _plan(shim, fault, case.place), story=lambda tell: _story(case, fault, tell))
        violation = next((news[1] for news in run.told if news[0] == "violation"), None)
        if violation is not None:
            return f"{fault}: {violation}"
        if run.ended.status != 0:
            return f"{fault}: the agent ended: {run.ended.error or run.ended.status}"
        if fault.error and not any(call.result == -fault.error for call in run.calls):
            raise KnownState  # the call was the story's own
        return None


def _faults_of(case: Case) -> Iterator[_Fault]:
    paths: dict[int, str] = {}  # of descriptors
    for index, call in enumerate(case.recording.calls[: case.played]):
        if call.kind is Kind.OPEN:
            paths[call.result] = call.path
        path = call.other or call.path or paths.get(call.file, "")
        if call.failed or _is_of_the_rig(case, call, path):
            continue
        yield from (_Fault(index, error, 0.0) for error, source in _ONCE.items() if source.has(call))
        if path.startswith(str(case.place / STATE)):
            lasting = _LASTING.items()
            yield from (_Fault(index, error, lasts_s) for error, (source, lasts_s) in lasting if source.has(call))
        if call.kind in _WRITES and call.size > 1:
            yield _Fault(index, 0, 0.0)


def _is_of_the_rig(case: Case, call: Call, path: str) -> bool:
    """Return whether the call is not the agent's: the rig reads in the run folder, scripted children write there."""
    if path.startswith(str(case.place / STATE)):
        return False
    reads = call.kind in (Kind.READ, Kind.PREAD) or (call.kind is Kind.OPEN and call.intent is Intent.LOOKS)
    return reads or (path.endswith((".report.json", ".sock")) and call.kind in (Kind.OPEN, Kind.WRITE))


def _plan(shim: Shim, fault: _Fault, place: Path) -> None:
    if fault.error == 0:
        shim.tear_at(fault.call)
        return
    if fault.lasts_s:
        source, _lasts_s = _LASTING[fault.error]
        shim.fail(fault.call, _FOREVER, fault.error, source.kinds, source.opens, str(place / STATE))
    else:
        source = _ONCE[fault.error]
        shim.fail(fault.call, fault.call + 1, fault.error, source.kinds, source.opens)


class _Watch:
    """Looks on while calls fail, and lets them succeed again when it is time."""

    def __init__(self, case: Case, fault: _Fault, heard: Heard) -> None:
        self._case = case
        self._fault = fault
        self._heard = heard
        self._began_s: float | None = None
        self._early = 0
        self.over = fault.lasts_s == 0.0

    def look(self, device: Device) -> None:
        shim = self._case.shim
        if self.over or shim.count() <= self._fault.call:
            return
        now_s = device.clock.monotonic()
        if self._began_s is None:
            self._began_s = now_s
            device.failing, device.full = True, self._fault.full
        lasted_s = now_s - self._began_s
        if lasted_s <= self._fault.lasts_s / 2:
            self._early = shim.failed()
        if lasted_s < self._fault.lasts_s:
            return
        self.over = True
        late = shim.failed() - self._early
        shim.relent()
        device.failing = device.full = False
        device.tell("pace", self._early, late, lasted_s)
        look(device.config.state_dir, self._heard)
        able = self._fault.error != errno.EMFILE  # without a descriptor no worker can be started
        serves = device.serves() or device.loop.record.serving(MODEL) is None
        demand(serves or not able, "no model serves while calls fail")
        demand(self._early <= _EARLY_TRIES, f"{self._early} calls failed within {self._fault.lasts_s / 2:g} s")
        tries_an_hour = _FULL_TRIES_AN_HOUR if self._fault.full else _TRIES_AN_HOUR
        allowed = _MARGIN + tries_an_hour * lasted_s / 2 / _HOUR_S
        demand(late <= allowed, f"{late} calls failed in the last {self._fault.lasts_s / 2:g} s")


def _built(case: Case, tell: Tell) -> Device:
    """Build the agent, again after an error, as systemd does; no clock goes yet, so errors end after some tries."""
    for _ in range(_BUILDS):
        try:
            return case.device(case.place, tell)
        except (OSError, RegattaError) as err:
            tell("not started", str(err))
    case.shim.relent()
    return case.device(case.place, tell)


def _story(case: Case, fault: _Fault, tell: Tell) -> None:
    heard = Heard().hear_all(case.before)

    def tell_and_hear(*news: Any) -> None:
        tell(*news)
        heard.hear(*news)

    watch = _Watch(case, fault, heard)
    try:
        with adjusted(lambda: device), planted(case.bug):
            device = _built(case, tell_and_hear)
            device.watch = lambda: watch.look(device)
            device.forgiven = case.shim.forgiving
            device.most_starts = _STARTS
            device.begin()
            play(device, case.scenario.acts, 0, _ACT_S)
            device.run(_ACT_S, until=lambda: watch.over and device.has_sent_all())
            device.restart()  # which clears what errors left half-written
            device.run(_HOUR_S, until=lambda: has_ended(device, case.scenario) and device.has_sent_all())
            device.run(1.0)
            look(device.config.state_dir, heard)
            check_end(device, case.scenario, heard)
            device.kill()
    except Violation as err:
        case.shim.relent()
        tell("violation", str(err))
