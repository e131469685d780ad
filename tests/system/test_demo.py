"""`regatta demo --exit --json`: the main job, end to end, and the document that it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "regatta_fleet", "demo", "--exit", "--json"],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-8000:]
    parsed: dict[str, Any] = json.loads(done.stdout)
    return parsed


def test_variants_are_measured_and_smaller(document: dict[str, Any]) -> None:
    """Each variant has size, accuracy and p50; both int8 ones are far smaller than the float original."""
    variants = {variant["name"]: variant for variant in document["variants"]}

    assert {"float32", "int8", "int8-pruned"} <= set(variants)
    for variant in variants.values():
        assert variant["size_bytes"] > 0 and variant["p50_us"] > 0 and variant["accuracy"] > 0.9
    assert variants["int8"]["size_bytes"] < 0.6 * variants["float32"]["size_bytes"]
    assert variants["int8-pruned"]["size_bytes"] < variants["int8"]["size_bytes"]


def test_each_device_raced_placed_and_served(document: dict[str, Any]) -> None:
    """Every device has a measured placement, served inferences, and says what power it saw."""
    assert len(document["devices"]) == 2
    for device in document["devices"]:
        measured = {c["id"]: c for c in device["candidates"] if c.get("p50_us") is not None}
        assert device["placement"] in measured
        assert len(measured) >= 4
        assert all(c["p50_us"] <= c["p99_us"] for c in measured.values())
        assert all(c["reason"] for c in device["candidates"] if c["id"] != device["placement"])
        assert device["inferences"] > 0
        assert device["accuracy"] > 0.9
        assert device["power"]["power_mw"] is not None or device["power"]["reason"]
        assert device["mqtt_bytes_received"] > 10_000
        assert device["model"] == "digits:1"


def test_each_device_tells_where_the_time_of_requests_went(document: dict[str, Any]) -> None:
    """Windows with the sketches of the stages came through the broker; no stage took longer than the requests."""
    for device in document["devices"]:
        assert set(device["stages"]) == {"queue", "compute_input", "compute_infer", "compute_output"}
        for stage in device["stages"].values():
            assert 0 < stage["requests"] <= device["inferences"]
            assert 0 <= stage["p50_us"] <= device["p99_us"]


def test_the_second_device_rests_on_the_first_ones_race(document: dict[str, Any]) -> None:
    """It asked the fleet and confirmed, or raced in full and says what did not hold; the first had nobody to ask."""
    devices = {device["id"]: device for device in document["devices"]}
    waves = document["rollouts"][0]["waves"]  # whose order is another one with each rollout's id
    (first,), (second,) = ([devices[name] for name in wave["devices"]] for wave in waves)

    assert first["basis"] == "full"
    assert "raced in full" not in first["reason"]
    assert second["basis"] == "confirmed" or f"the race of {first['id']} does not hold here" in second["reason"]


def test_damaged_version_was_stopped(document: dict[str, Any]) -> None:
    """The gate stopped digits:2 in its first wave, with the measured accuracy as the reason."""
    good, damaged = document["rollouts"]

    assert (good["model"], good["state"]) == ("digits:1", "completed")
    assert (damaged["model"], damaged["state"]) == ("digits:2", "rolled_back")
    assert "accuracy" in damaged["reason"]
    assert [wave["state"] for wave in damaged["waves"]] == ["failed", "pending"]
