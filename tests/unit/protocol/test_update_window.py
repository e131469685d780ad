"""The update window: how it is written, when it opens, over midnight, on days of the week, and when clocks change."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regatta_protocol.errors import Rejected
from regatta_protocol.update_window import LONGEST_WAIT_S, UpdateWindow, next_opening, parse_window

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
# Half an hour of summer time, a day that was left out (2011-12-30), Ramadan's changes, none at all.
_ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia", "Africa/Casablanca")


def at(text: str) -> float:
    """Return the seconds since 1970 of a moment in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp()


def opens(now: str, *windows: str) -> str | None:
    """Return when (UTC) the next of the windows opens, or None while one is open."""
    found = next_opening(map(parse_window, windows), at(now))
    return f"{datetime.fromtimestamp(found.at_s, timezone.utc):%Y-%m-%dT%H:%M}" if found is not None else None


@pytest.mark.parametrize(
    ("windows", "now", "expected"),
    [
        ((), "12:00", None),
        (("02:00-05:00",), "01:59", "11T02:00"),
        (("02:00-05:00",), "02:00", None),
        (("02:00-05:00",), "04:59", None),
        (("02:00-05:00",), "05:00", "12T02:00"),
        (("23:30-01:00",), "23:29", "11T23:30"),
        (("23:30-01:00",), "23:59", None),
        (("23:30-01:00",), "00:59", None),
        (("23:30-01:00",), "01:00", "11T23:30"),
        (("22:00-24:00",), "23:59", None),
        (("22:00-00:00",), "23:59", None),
        (("22:00-24:00",), "00:00", "11T22:00"),
        (("00:00-24:00",), "13:00", None),
        (("02:00-03:00", "12:30-13:00"), "03:00", "11T12:30"),
        (("02:00-03:00", "12:30-13:00"), "13:00", "12T02:00"),
        (("sat,sun 02:00-05:00",), "03:00", "14T02:00"),  # 2026-11-11 is a Wednesday
        (("wed 02:00-05:00",), "05:00", "18T02:00"),
        (("tue 22:00-04:00",), "03:59", None),  # begun the day before
        (("wed 22:00-04:00",), "03:59", "11T22:00"),
        (("fri-tue 02:00-05:00",), "02:30", "13T02:00"),
        (("mon-fri 02:00-05:00", "sat 08:00-09:00"), "02:30", None),
    ],
)
def test_open_or_when_it_opens(windows: tuple[str, ...], now: str, expected: str | None) -> None:
    """From its first minute to before its last, on the days on which it begins; of several, the next one."""
    told = f"2026-11-{expected}" if expected is not None else None

    assert opens(f"2026-11-11T{now}", *(f"{window} UTC" for window in windows)) == told


@pytest.mark.parametrize(
    ("window", "now", "expected"),
    [
        # 2026-03-29: 02:00 CET is 03:00 CEST. The window is an hour shorter, and one that is left out comes after it.
        ("02:00-04:00", "2026-03-29T00:59", "2026-03-29T01:00"),
        ("02:00-04:00", "2026-03-29T01:00", None),
        ("02:00-04:00", "2026-03-29T01:59", None),
        ("02:00-04:00", "2026-03-29T02:00", "2026-03-30T00:00"),
        ("02:15-02:45", "2026-03-29T01:14", "2026-03-29T01:15"),
        ("02:15-02:45", "2026-03-29T01:44", None),
        ("02:15-02:45", "2026-03-29T01:45", "2026-03-30T00:15"),
        ("02:30-03:10", "2026-03-29T01:29", "2026-03-29T01:30"),
        ("02:30-03:10", "2026-03-29T02:09", None),
        ("02:30-03:10", "2026-03-29T02:10", "2026-03-30T00:30"),
        ("23:00-02:30", "2026-03-29T01:29", None),
        ("23:00-02:30", "2026-03-29T01:30", "2026-03-29T21:00"),
        # 2026-10-25: 03:00 CEST is 02:00 CET. The window is an hour longer; what comes twice is meant the first time.
        ("02:00-04:00", "2026-10-24T23:59", "2026-10-25T00:00"),
        ("02:00-04:00", "2026-10-25T00:00", None),
        ("02:00-04:00", "2026-10-25T01:00", None),
        ("02:00-04:00", "2026-10-25T02:59", None),
        ("02:00-04:00", "2026-10-25T03:00", "2026-10-26T01:00"),
        ("02:15-02:45", "2026-10-25T00:15", None),
        ("02:15-02:45", "2026-10-25T00:45", "2026-10-26T01:15"),
    ],
)
def test_when_the_clocks_change(window: str, now: str, expected: str | None) -> None:
    """Local times that are left out or come twice are read as RFC 5545 says; no day is without its opening."""
    assert opens(now, f"{window} Europe/Berlin") == expected


@pytest.fixture
def new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A device whose time zone is New York's."""
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("new_york")
def test_a_window_without_a_zone_is_in_the_device_s_own() -> None:
    """And says so; one with a zone stays in that, wherever the device is."""
    now_s = at("2026-07-01T00:00")
    ours = next_opening([parse_window("02:00-05:00")], now_s)
    theirs = next_opening([parse_window("02:00-05:00 Europe/Berlin")], at("2026-07-01T12:00"))

    assert ours is not None and theirs is not None
    assert (ours.at_s, ours.text) == (at("2026-07-01T06:00"), "02:00 EDT")
    assert (theirs.at_s, theirs.text) == (at("2026-07-02T00:00"), "02:00 Europe/Berlin")
    assert opens("2026-03-08T06:59", "02:00-04:00") == "2026-03-08T07:00"  # the night of the change
    assert opens("2026-03-08T07:59", "02:00-04:00") is None
    assert opens("2026-03-08T08:00", "02:00-04:00") == "2026-03-09T06:00"


def test_an_opening_on_another_day_names_it() -> None:
    """More than a day ahead, the hour alone would mislead."""
    found = next_opening([parse_window("sun 02:00-05:00 UTC")], at("2026-11-11T12:00"))

    assert found is not None and found.text == "sun 02:00 UTC"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "write for example 02:00-05:00"),
        ("2-4", "write for example"),
        ("02:00", "write for example"),
        ("always", "write for example"),
        ("sat, sun 02:00-05:00", "write for example"),
        ("02:00-02:00", "00:00-24:00 is a whole day"),
        ("24:00-02:00", "00:00-24:00 is a whole day"),
        ("25:00-26:00", "'25:00' in '25:00-26:00' is no time of the day"),
        ("02:60-03:00", "is no time of the day"),
        ("02:00-24:01", "is no time of the day"),
        ("day 02:00-03:00", "'day' in 'day 02:00-03:00' is no day: mon, tue"),
        ("mon-wed-fri 02:00-03:00", "is no day"),
        ("02:00-03:00 Europe/Atlantis", "no time zone 'Europe/Atlantis'"),
        ("02:00-03:00 Europe", "no time zone 'Europe'"),
    ],
)
def test_what_is_no_window_is_refused_with_what_is(text: str, words: str) -> None:
    """The operator sees what was written, what is wrong with it, and how to write it."""
    with pytest.raises(Rejected, match=words):
        parse_window(text)


@st.composite
def _windows(draw: st.DrawFn) -> str:
    start, stop = draw(st.lists(st.integers(0, 1439), min_size=2, max_size=2, unique=True))
    days = ",".join(draw(st.lists(st.sampled_from(_DAYS), max_size=3, unique=True)))
    zone = draw(st.sampled_from(_ZONES))
    return f"{days} {start // 60:02}:{start % 60:02}-{stop // 60:02}:{stop % 60:02} {zone}".strip()


_moments = st.integers(int(at("2011-01-01")), int(at("2036-01-01"))).map(float)


@given(texts=st.lists(_windows(), min_size=1, max_size=3), now_s=_moments, share=st.floats(0, 0.999))
def test_the_next_opening_is_the_next_and_lies_ahead(texts: list[str], now_s: float, share: float) -> None:
    """Within eight days; open at that moment; and at no moment before it, from any of which it is the same."""
    windows = [parse_window(text) for text in texts]
    found = next_opening(windows, now_s)
    if found is None:
        return  # what is open is the next property's

    assert now_s < found.at_s <= now_s + LONGEST_WAIT_S
    assert next_opening(windows, found.at_s) is None
    between = next_opening(windows, now_s + share * (found.at_s - now_s))
    assert between is not None and between.at_s == found.at_s


@given(text=_windows(), now_s=_moments)
def test_it_is_open_when_the_clock_on_the_wall_says_so(text: str, now_s: float) -> None:
    """While no clock is changed within two days, the window is a matter of weekday, hour and minute."""
    window = parse_window(text)
    local = datetime.fromtimestamp(now_s, window.zone)
    if isinstance(window.zone, ZoneInfo):
        around = {(local + timedelta(days=days)).utcoffset() for days in (-2, -1, 0, 1, 2)}
        if len(around) > 1:
            return

    assert (next_opening([window], now_s) is None) is _on_the_wall(window, local)


def _on_the_wall(window: UpdateWindow, local: datetime) -> bool:
    minute = local.hour * 60 + local.minute
    if window.start < window.stop:
        return local.weekday() in window.days and window.start <= minute < window.stop
    begun_today = local.weekday() in window.days and minute >= window.start
    return begun_today or ((local.weekday() - 1) % 7 in window.days and minute < window.stop)
