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
from crash.case import Case, LabError
from crash.comeback import check_end, look
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
_ACT_S = 5 * _HOUR_S  # an error of 3 hours, the last pause, and the act
_FOREVER = 2**62
_EARLY_TRIES = 60  # failing calls until pauses have grown
_TRIES_AN_HOUR = 12.0


@dataclass(frozen=True)
class _Error:
    """What an errno may come from."""

    kinds: frozenset[Kind]
    opens: Intent
    lasts_s: float  # 0: it comes once only

    def fits(self, kind: Kind, intent: Intent) -> bool:
        return intent >= self.opens if kind is Kind.OPEN else kind in self.kinds


_ERRORS = {
    errno.ENOSPC: _Error(_ON_FILES | _NAMES, Intent.CREATES, 3 * _HOUR_S),
    errno.EIO: _Error(CHANGES | {Kind.READ, Kind.PREAD}, Intent.LOOKS, 1200.0),
    errno.EROFS: _Error(CHANGES - {Kind.FSYNC, Kind.FDATASYNC}, Intent.WRITES, 1200.0),
    errno.EMFILE: _Error(frozenset(), Intent.LOOKS, 600.0),
    errno.EINTR: _Error(_ON_FILES | {Kind.READ, Kind.PREAD}, Intent.LOOKS, 0.0),
}


@dataclass(frozen=True)
class _Fault:
    """One call that fails."""

    call: int
    error: int  # 0: a write is cut short
    lasts_s: float  # 0: once

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
            raise LabError(f"{case}, error {number}: {fault}: no call failed")
        return None


def _faults_of(case: Case) -> Iterator[_Fault]:
    paths: dict[int, str] = {}  # of descriptors
    for index, call in enumerate(case.recording.calls[: case.played]):
        if call.kind is Kind.OPEN:
            paths[call.result] = call.path
        path = call.other or call.path or paths.get(call.file, "")
        if call.failed or _is_of_the_rig(case, call, path):
            continue
        for number, error in _ERRORS.items():
            if not error.fits(call.kind, call.intent):
                continue
            yield _Fault(index, number, 0.0)
            if error.lasts_s and path.startswith(str(case.place / STATE)):
                yield _Fault(index, number, error.lasts_s)
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
    error = _ERRORS[fault.error]
    if fault.lasts_s:
        shim.fail(fault.call, _FOREVER, fault.error, error.kinds, error.opens, str(place / STATE))
    else:
        shim.fail(fault.call, fault.call + 1, fault.error, error.kinds, error.opens)


class _Watch:
    """Looks on while calls fail, and lets them succeed again when it is time."""

    def __init__(self, case: Case, fault: _Fault, heard: Heard) -> None:
        self._case = case
        self._fault = fault
        self._heard = heard
        self._began_s: float | None = None
        self._early = 0
        self._served = True
        self.over = fault.lasts_s == 0.0

    def look(self, device: Device) -> None:
        shim = self._case.shim
        if self.over or shim.failed() == 0:
            return
        now_s = device.clock.monotonic()
        if self._began_s is None:
            self._began_s = now_s
            # What cannot be read cannot be started; what serves already goes on.
            self._served = device.serves() or self._fault.error in (errno.ENOSPC, errno.EROFS)
        lasted_s = now_s - self._began_s
        if lasted_s <= self._fault.lasts_s / 2:
            self._early = shim.failed()
        if lasted_s < self._fault.lasts_s:
            return
        self.over = True
        late = shim.failed() - self._early
        shim.relent()
        device.tell("pace", self._early, late, lasted_s)
        look(device.config.state_dir, self._heard)
        demand(
            not self._served or device.serves() or device.loop.record.serving(MODEL) is None,
            "no model serves while calls fail",
        )
        demand(self._early <= _EARLY_TRIES, f"{self._early} calls failed within {self._fault.lasts_s / 2:g} s")
        allowed = _TRIES_AN_HOUR * self._fault.lasts_s / 2 / _HOUR_S + 6
        demand(late <= allowed, f"{late} calls failed in the last {self._fault.lasts_s / 2:g} s")


def _start(device: Device) -> None:
    """Start, and start again after an error: once is the agent's good right."""
    try:
        device.start()
    except (OSError, RegattaError):
        device.restart()


def _story(case: Case, fault: _Fault, tell: Tell) -> None:
    heard = Heard().hear_all(case.before)

    def tell_and_hear(*news: Any) -> None:
        tell(*news)
        heard.hear(*news)

    watch = _Watch(case, fault, heard)
    try:
        with adjusted(lambda: device), planted(case.bug):
            device = case.device(case.place, tell_and_hear)
            device.watch = lambda: watch.look(device)
            _start(device)
            play(device, case.scenario.acts, 0, _ACT_S)
            device.run(2 * fault.lasts_s, until=lambda: watch.over)
            look(device.config.state_dir, heard)
            check_end(device, case.scenario, heard)
            device.kill()
    except Violation as err:
        case.shim.relent()
        tell("violation", str(err))
