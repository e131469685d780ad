"""The update window: at which times of the week another version may be taken into service. What waits is the agent's.

Written `[DAYS ]HH:MM-HH:MM[ ZONE]`: `02:00-05:00`, `sat,sun 02:00-05:00`, `mon-fri 22:00-04:00 Europe/Berlin`. DAYS are
those on which it begins; it goes over midnight when it ends before it begins; without ZONE it is in the device's own.
Pure but for the zone database, which is read when a zone is named.

A local time that the change of the clocks leaves out or has twice is read as RFC 5545, section 3.3.5, says: with the
offset before the change. So each day that is named has an opening.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from typing import Annotated

from pydantic import AfterValidator, Field

from regatta_protocol.errors import Rejected

__all__ = [
    "LONGEST_WAIT_S",
    "MAX_WINDOWS",
    "Opening",
    "UpdateWindow",
    "UpdateWindowField",
    "next_opening",
    "parse_window",
]

MAX_WINDOWS = 16  # one for each day and night of the week, and two to spare
LONGEST_WAIT_S = 8 * 86_400.0  # a week, and a day for zones that leave one out

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_MINUTES = 24 * 60
_TEXT = re.compile(
    r"(?:(?P<days>[a-z]{3}(?:[,-][a-z]{3})*)\s+)?"
    r"(?P<start>\d\d:\d\d)\s*-\s*(?P<stop>\d\d:\d\d)"
    r"(?:\s+(?P<zone>[a-z][a-z0-9_+/-]{0,39}))?",
    re.IGNORECASE,
)
_EXAMPLES = "write for example 02:00-05:00, 'sat,sun 02:00-05:00' or 'mon-fri 22:00-04:00 Europe/Berlin'"


@dataclass(frozen=True)
class UpdateWindow:
    """The days of the week (Monday is 0) on which it begins, and minutes since midnight; None is the device's zone."""

    days: frozenset[int]
    start: int  # 0 to 1439
    stop: int  # 1 to 1440 and not `start`; of the next day where it is the smaller one
    zone: tzinfo | None
    zone_name: str | None


@dataclass(frozen=True)
class Opening:
    """When a window opens: seconds since 1970, and as people say it: `02:00 CET`, `sat 02:00 Europe/Berlin`."""

    at_s: float
    text: str


@functools.lru_cache(maxsize=64)
def parse_window(text: str) -> UpdateWindow:
    """Return the window that is written so.

    Raises:
        Rejected: when it is no window, or this machine does not know its zone.
    """
    match = _TEXT.fullmatch(text.strip())
    if match is None:
        raise Rejected(f"{text[:80]!r} is no update window: {_EXAMPLES}")
    start, stop = _minutes(match["start"], text), _minutes(match["stop"], text)
    if start in (stop, _DAY_MINUTES):
        raise Rejected(f"{text[:80]!r} begins where it ends, or after the day: {_EXAMPLES}; 00:00-24:00 is a whole day")
    zone = match["zone"]
    return UpdateWindow(_days(match["days"], text), start, stop or _DAY_MINUTES, _zone(zone) if zone else None, zone)


def _check(text: str) -> str:
    try:
        parse_window(text)
    except Rejected as err:
        raise ValueError(str(err)) from err
    return text


UpdateWindowField = Annotated[str, Field(max_length=80), AfterValidator(_check)]
"""A window as it is written, refused when it is none."""


def next_opening(windows: Iterable[UpdateWindow], now_s: float) -> Opening | None:
    """Return when the next window opens, within LONGEST_WAIT_S; None while one is open, and where there are none.

    Args:
        windows: of which one must be open.
        now_s: seconds since 1970.
    """
    best: tuple[float, UpdateWindow] | None = None
    for window in windows:
        for start_s, stop_s in _spans(window, now_s):
            if start_s <= now_s < stop_s:
                return None
            if start_s > now_s and (best is None or start_s < best[0]):
                best = (start_s, window)
    return Opening(best[0], _words(best[0], best[1], now_s)) if best is not None else None


def _spans(window: UpdateWindow, now_s: float) -> Iterator[tuple[float, float]]:
    """Yield start and end of the window on each of its days, from before `now_s` until after the next opening."""
    today = datetime.fromtimestamp(now_s, window.zone).date()
    over_midnight = window.stop < window.start
    for offset in range(-2, 9):
        day = today + timedelta(days=offset)
        if day.weekday() not in window.days:
            continue
        start_s = _moment(day, window.start, window.zone)
        stop_s = _moment(day + timedelta(days=1) if over_midnight else day, window.stop, window.zone)
        if stop_s <= start_s:  # the clocks were put forward over its beginning
            stop_s = start_s + 60.0 * ((window.stop - window.start) % _DAY_MINUTES)
        yield start_s, stop_s


def _moment(day: date, minutes: int, zone: tzinfo | None) -> float:
    days, minutes = divmod(minutes, _DAY_MINUTES)
    return datetime.combine(day + timedelta(days=days), time(*divmod(minutes, 60)), zone).timestamp()


def _words(at_s: float, window: UpdateWindow, now_s: float) -> str:
    local = datetime.fromtimestamp(at_s, window.zone)
    day = f"{_DAYS[local.weekday()]} " if at_s - now_s > 86_400.0 else ""
    return f"{day}{local:%H:%M} {window.zone_name or local.astimezone().tzname()}"


def _minutes(text: str, window: str) -> int:
    hours, minutes = map(int, text.split(":"))
    if minutes > 59 or hours * 60 + minutes > _DAY_MINUTES:
        raise Rejected(f"{text!r} in {window[:80]!r} is no time of the day: {_EXAMPLES}")
    return hours * 60 + minutes


def _days(text: str | None, window: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.lower().split(",") if text is not None else ("mon-sun",):
        names = part.split("-")
        if len(names) > 2 or any(name not in _DAYS for name in names):
            raise Rejected(f"{part!r} in {window[:80]!r} is no day: {', '.join(_DAYS)}, or a range like mon-fri")
        first, last = _DAYS.index(names[0]), _DAYS.index(names[-1])
        found |= {(first + offset) % 7 for offset in range((last - first) % 7 + 1)}
    return frozenset(found)


def _zone(name: str) -> tzinfo:
    if name.upper() == "UTC":
        return timezone.utc
    from zoneinfo import ZoneInfo  # only for a zone that is named: most devices use their own

    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as err:
        raise Rejected(
            f"this machine knows no time zone {name!r}: write one like Europe/Berlin or UTC; "
            "the zones are in the system's package tzdata"
        ) from err
