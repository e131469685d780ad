"""Topics: there and back, and within what every broker carries."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regatta_protocol import topics
from regatta_protocol.errors import Rejected
from regatta_protocol.ids import DeviceId
from regatta_protocol.testing import fleet_rules, matches
from regatta_protocol.topics import Up

devices = st.from_regex(r"[a-z0-9-]{1,64}", fullmatch=True).filter(lambda text: text != "regatta-server").map(DeviceId)


@given(devices, st.sampled_from(Up))
def test_what_a_device_says_is_read_back(device: DeviceId, kind: Up) -> None:
    """parse_up is the inverse of up."""
    assert topics.parse_up(topics.up(device, kind)) == (device, kind)


@given(devices, st.integers(0, 2**32 - 1))
def test_everything_for_a_device_is_within_its_filters_and_rights(device: DeviceId, transfer: int) -> None:
    """A device hears all that is for it, and nobody else may; at most 7 slashes and 8 filters."""
    for topic in (topics.desired(device), topics.response(device), topics.chunk(device, transfer)):
        assert any(matches(text, topic) for text in topics.device_filters(device))
        assert fleet_rules(device, "read", topic) and not fleet_rules(device, "write", topic)
        assert not fleet_rules(device + "x", "read", topic)
        assert topic.count("/") <= 7
    assert len(topics.device_filters(device)) <= 8 and len(topics.SERVER_FILTERS) <= 8


@given(devices, st.sampled_from(Up))
def test_the_server_hears_all_that_devices_say(device: DeviceId, kind: Up) -> None:
    """Each kind has one filter."""
    assert sum(matches(text, topics.up(device, kind)) for text in topics.SERVER_FILTERS) == 1


@pytest.mark.parametrize(
    "topic",
    ["", "rg", "rg/d/a/up", "rg/d/a/dn/state", "rg/d/A/up/state", "rg/d//up/state", "rg/d/a/up/none", "rg/d/a/up/get/1",
     "xx/d/a/up/get", "rg/d/regatta-server/up/get"],
)  # fmt: skip
def test_other_topics_are_rejected(topic: str) -> None:
    """Foreign, incomplete or of nobody."""
    with pytest.raises(Rejected):
        topics.parse_up(topic)


@pytest.mark.parametrize(
    ("pattern", "topic", "covered"),
    [
        ("a/b", "a/b", True),
        ("a/+", "a/b", True),
        ("a/+", "a/b/c", False),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("#", "a", True),
        ("#", "$SYS/x", False),
        ("+/x", "$SYS/x", False),
        ("a/+/c", "a//c", True),
        ("a/b", "a", False),
        ("a", "a/b", False),
    ],
)
def test_filters_match_as_mqtt_says(pattern: str, topic: str, covered: bool) -> None:
    """Section 4.7 of MQTT 3.1.1, for the broker in memory."""
    assert matches(pattern, topic) is covered
