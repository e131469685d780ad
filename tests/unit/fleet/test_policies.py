"""Policies of groups: which one a device is assigned, and who hears of a change."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_parts import DIGITS, SimulatedFleet
from regatta_fleet.core.policies import Rule, applying, resolve
from regatta_fleet.database import devices
from regatta_fleet.errors import NotFound
from regatta_fleet.rollouts import governing
from regatta_protocol.errors import Rejected
from regatta_protocol.ids import DeviceId, ModelName
from regatta_protocol.policy import Policy

FACES = ModelName("faces")
BUNDLE = Policy(max_accuracy_drop=0.01, max_memory_bytes=100)


@pytest.mark.parametrize(
    ("rules", "policy"),
    [
        pytest.param((), BUNDLE, id="none: the bundle's"),
        pytest.param((Rule("lab", None, Policy(objective="energy")),), BUNDLE, id="another group's"),
        pytest.param((Rule("all", FACES, Policy(objective="energy")),), BUNDLE, id="another model's"),
        pytest.param(
            (Rule("all", None, Policy(objective="energy")),),
            BUNDLE.model_copy(update={"objective": "energy"}),
            id="only what is set",
        ),
        pytest.param(
            (Rule("sea", None, Policy(max_memory_bytes=None)),),
            BUNDLE.model_copy(update={"max_memory_bytes": None}),
            id="a limit lifted",
        ),
        pytest.param(
            (
                Rule("sea", DIGITS, Policy(max_p99_us=4)),
                Rule("sea", None, Policy(max_p99_us=3, max_power_mw=3)),
                Rule("all", DIGITS, Policy(max_p99_us=2, max_temperature_c=2)),
                Rule("all", None, Policy(max_p99_us=1, objective="throughput")),
            ),
            BUNDLE.model_copy(
                update={"max_p99_us": 4, "max_power_mw": 3, "max_temperature_c": 2, "objective": "throughput"}
            ),
            id="the particular over the general",
        ),
    ],
)
def test_the_policy_of_a_device(rules: tuple[Rule, ...], policy: Policy) -> None:
    """For a device of the group sea and the model digits."""
    assert resolve(BUNDLE, applying(rules, "sea", DIGITS)) == policy


@given(
    st.permutations(
        [
            Rule(g, m, Policy(max_p99_us=n + 1))
            for n, (g, m) in enumerate([("all", None), ("all", DIGITS), ("sea", None), ("sea", DIGITS), ("lab", None)])
        ]
    )
)
def test_the_order_of_the_rules_is_no_matter(rules: list[Rule]) -> None:
    """The group and model's rule holds, wherever it stands."""
    assert resolve(BUNDLE, applying(rules, "sea", DIGITS)).max_p99_us == 4


def assigned(fleet: SimulatedFleet, device: str) -> tuple[int, Policy | None]:
    """Return the generation and the policy of digits that the device is assigned."""
    with fleet.database.read() as tx:
        wanted = devices.get_desired(tx, DeviceId(device))
    assert wanted is not None
    return wanted.generation, wanted.models[DIGITS].policy


@pytest.fixture
def fleet() -> SimulatedFleet:
    found = SimulatedFleet()
    found.enroll("buoy", group="sea")
    found.enroll("bench", group="lab")
    found.push(1)
    found.start(1, waves=[1.0])
    return found


def test_a_policy_reaches_the_devices_that_it_is_for(fleet: SimulatedFleet) -> None:
    """They get a new generation with the whole policy, the others none; clearing brings the bundle's back."""
    before = {name: assigned(fleet, name) for name in ("buoy", "bench")}
    with fleet.database.write() as tx:
        changed = governing.set_policy(tx, "sea", None, Policy(objective="energy"), 1.0)

    assert changed == {"buoy"}
    generation, policy = assigned(fleet, "buoy")
    assert generation == before["buoy"][0] + 1
    assert policy == Policy(objective="energy")
    assert assigned(fleet, "bench") == before["bench"]
    with fleet.database.write() as tx:
        assert governing.clear_policy(tx, "sea", None, 2.0) == {"buoy"}
    assert assigned(fleet, "buoy") == (generation + 1, None)


def test_a_policy_of_a_model_nobody_runs_disturbs_nobody(fleet: SimulatedFleet) -> None:
    """It holds for those that come; a device that gets the model later is assigned it."""
    with fleet.database.write() as tx:
        assert governing.set_policy(tx, "all", DIGITS, Policy(max_p99_us=5), 1.0) == {"buoy", "bench"}
        assert governing.set_policy(tx, "yard", None, Policy(max_p99_us=7), 1.0) == set()
        rules = governing.describe_policies(tx)

    assert [(rule.group, rule.devices) for rule in rules] == [("all", 2), ("yard", 0)]


def test_what_cannot_be_set_or_cleared(fleet: SimulatedFleet) -> None:
    """An unknown model, nothing at all, an unknown field; and what was never set."""
    with fleet.database.write() as tx:
        with pytest.raises(NotFound, match="no model faces"):
            governing.set_policy(tx, "all", FACES, Policy(max_p99_us=5), 1.0)
        with pytest.raises(Rejected, match="sets nothing"):
            governing.set_policy(tx, "all", None, Policy(), 1.0)
        with pytest.raises(Rejected, match="no objectiv"):
            governing.set_policy(tx, "all", None, Policy.model_validate({"objectiv": "energy"}), 1.0)
        with pytest.raises(NotFound, match="no policy is set"):
            governing.clear_policy(tx, "all", None, 1.0)
