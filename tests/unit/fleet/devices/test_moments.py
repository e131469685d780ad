"""Times of devices whose clocks are not set: what was measured counts, and no absurd time is kept."""

from __future__ import annotations

import pytest

from regatta_fleet.core.moments import believed
from regatta_protocol.ids import DeviceId, ModelName
from regatta_protocol.measurement import BoardFacts, RaceReport
from regatta_protocol.messages import OtherItem, RaceItem, TelemetryBatch
from regatta_protocol.values import ServingWindow

NOW_S, DAY_S = 1_790_000_000.0, 86_400.0
YEARS_S = 10 * 365.25 * DAY_S


def _told(*items: ServingWindow | RaceItem | OtherItem) -> TelemetryBatch:
    return TelemetryBatch(id="batch-0001", device=DeviceId("pi-1"), items=items)


@pytest.mark.parametrize(
    ("start_s", "stop_s", "kept"),
    [
        (NOW_S - 60.0, NOW_S, (NOW_S - 60.0, NOW_S)),
        (NOW_S - 200 * DAY_S, NOW_S - 199 * DAY_S, (NOW_S - 200 * DAY_S, NOW_S - 199 * DAY_S)),  # it was off for long
        (NOW_S + 3600.0, NOW_S + 3660.0, (NOW_S + 3600.0, NOW_S + 3660.0)),  # its zone is another
        (0.0, 60.0, (NOW_S, NOW_S)),
        (60.0, NOW_S - 5.0, (NOW_S - 5.0, NOW_S - 5.0)),  # its clock was set meanwhile
        (NOW_S - YEARS_S, NOW_S - YEARS_S + 60.0, (NOW_S, NOW_S)),
        (NOW_S + YEARS_S, NOW_S + YEARS_S + 60.0, (NOW_S, NOW_S)),
        (NOW_S + YEARS_S, NOW_S - 5.0, (NOW_S - 5.0, NOW_S - 5.0)),
    ],
)
def test_a_window_keeps_its_times_where_they_can_be(start_s: float, stop_s: float, kept: tuple[float, float]) -> None:
    """An old one has waited in the device; one at 1970, or of years to come, is of now."""
    window = ServingWindow(
        model=ModelName("tiny"), version=1, placement="p", start=start_s, stop=stop_s, requests=3, errors=1,
        latency_counts={5: 3},
    )  # fmt: skip

    (after,) = believed(_told(window), NOW_S).items

    assert isinstance(after, ServingWindow)
    assert (after.start, after.stop) == kept
    assert (after.requests, after.errors, after.latency_counts) == (3, 1, {5: 3})


def test_a_race_of_years_to_come_is_not_the_newest_for_years() -> None:
    """Its report is kept under the time at which it came; what only a newer device tells is left alone."""
    report = RaceReport(
        model=ModelName("tiny"), version=1, board=BoardFacts(), candidates=(), reason="fastest", duration_s=1.0
    )
    other = OtherItem(kind="weather")

    race, same = believed(_told(RaceItem(at=NOW_S + YEARS_S, report=report), other), NOW_S).items

    assert isinstance(race, RaceItem)
    assert (race.at, race.report, same) == (NOW_S, report, other)
