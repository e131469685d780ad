"""What the page shows of a fleet: order, bounds, bars."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regatta_fleet.page import view
from regatta_fleet.schemas import BatchDetail
from regatta_protocol.measurement import RaceReport
from sample_fleet import device, harbor, race


def test_what_needs_a_look_comes_first() -> None:
    """Failed devices, then those that are down, then the rest, by id; revoked ones last."""
    fleet = harbor()
    fleet.add_device(fleet.devices["quay-1"].model_copy(update={"id": "a-gone", "revoked": True, "up": False}))

    shown = view.fleet_view(fleet.status())

    firsts = [row.device.id for row in shown.rows if row.first]
    assert firsts == ["crane-1", "buoy-1", "gate-1", "quay-1", "quay-2", "a-gone"]
    assert shown.up == 4
    assert shown.running == 1


def test_figures_of_serving_come_before_those_of_the_race() -> None:
    """Live latency is shown once there is some."""
    quay = device("quay-1")
    unserved = quay.models[0].model_copy(update={"served": None})

    live = view.model_rows(quay)[0]
    raced = view.model_rows(quay.model_copy(update={"models": (unserved,)}))[0]

    assert (live.live, live.p50_us) == (True, 24.9)
    assert (raced.live, raced.p50_us) == (False, 21.4)


def test_ten_thousand_devices_are_counted_not_listed() -> None:
    """The page stays a page."""
    one = device("d-0")
    fleet = harbor()
    status = fleet.status().model_copy(
        update={"devices": tuple(one.model_copy(update={"id": f"d-{i}"}) for i in range(10_000))}
    )

    shown = view.fleet_view(status)

    assert len(shown.rows) + shown.devices_left_out == 10_000
    assert len(shown.rows) <= 200
    assert len(view.raced_devices(shown)) == view.MAX_RACED_DEVICES


def test_bars_share_one_scale_and_a_slow_one_is_cut() -> None:
    """The winner's bar keeps a visible length beside a candidate that is ten times as slow."""
    rows = view.race_view("quay-1", RaceReport.model_validate(race())).rows
    bars = {row.result.id: row.bar for row in rows}
    winner, slowest = bars["litert/int8-pruned/xnnpack/t2"], bars["litert/float32/none/t1"]

    assert winner is not None
    assert slowest is not None
    assert winner.p50 == pytest.approx(100 / 6, abs=0.1)
    assert not winner.cut
    assert slowest.cut
    assert bars["litert/int8/edgetpu/t1"] is None


@given(st.lists(st.floats(min_value=0, max_value=1e15), max_size=5), st.booleans())
def test_bars_are_always_inside_the_chart(latencies_us: list[float], placed: bool) -> None:
    """No latency, 0 included, breaks the scale."""
    sample = race()
    candidates = [
        {
            "id": f"litert/v{i}/none/t1",
            "runtime": "litert",
            "variant": f"v{i}",
            "delegate": "none",
            "threads": 1,
            "outcome": "measured",
            "latency": {"samples": 1, "p50_us": one, "p90_us": one, "p99_us": one},
        }
        for i, one in enumerate(latencies_us)
    ]
    placement = "litert/v0/none/t1" if placed and latencies_us else None
    report = RaceReport.model_validate({**sample, "candidates": candidates, "placement": placement})

    for row in view.race_view("d", report).rows:
        assert row.bar is not None
        assert 0 < row.bar.p50 <= 100
        assert 0 < row.bar.p99 <= 100


@pytest.mark.parametrize(
    ("states", "told"),
    [
        (["done", "running"], "running"),
        (["queued"], "running"),
        (["failed", "done", "cancelled"], "failed"),
        (["done", "cancelled"], "cancelled"),
        (["done"], "done"),
        (["a_newer_word", "done"], "running"),
    ],
)
def test_a_batch_is_told_by_what_is_worst_once_all_have_ended(states: list[str], told: str) -> None:
    """And as running before; devices that failed come first, and those beyond a page are counted."""
    devices = [{"device": f"pi-{n}", "state": state, "updated_at": 0} for n, state in enumerate(states * 30)]
    document = {"id": "b-1", "model": "digits", "input": "/in", "output": "o", "created_at": 0, "devices": devices}

    found = view.batch_view(BatchDetail.model_validate(document))

    assert found.state == told
    assert len(found.rows) + found.devices_left_out == len(devices) and len(found.rows) <= 50
    if "failed" in states:
        assert found.rows[0].state == "failed"
