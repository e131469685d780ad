"""Messages: an old program keeps what a newer one added, and limits stand in the types."""

from __future__ import annotations

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from regatta_protocol import manifest, measurement, messages
from regatta_protocol.codec import decode, decode_zlib, encode, encode_zlib
from regatta_protocol.errors import Rejected
from regatta_protocol.ids import DeviceId, Digest, ModelName
from regatta_protocol.messages import (
    Assignment,
    DesiredModel,
    Get,
    InstallState,
    ModelReport,
    Presence,
    Reported,
    Request,
    Response,
    SignedAssignment,
    TelemetryBatch,
)
from regatta_protocol.plain import read
from regatta_protocol.values import Accuracy, Power, ServingWindow, unknown_power
from regatta_protocol.wire import Wire

DIGEST = Digest("0" * 64)
NAME = ModelName("digits")
WINDOW = ServingWindow(
    model=NAME, version=1, placement="litert/int8/xnnpack/t2", start=1.0, stop=2.0, requests=3, errors=0,
    latency_counts={300: 2, 310: 1},
)  # fmt: skip
EXAMPLES: list[Wire] = [
    Presence(up=True, boot="b", agent_version="1"),
    Assignment(fleet="f", device=DeviceId("d"), generation=3, issued_at=1.5, models={NAME: DesiredModel(version=2)}),
    SignedAssignment(payload="{}", key_id="k", signature="s"),
    Reported(
        device=DeviceId("d"), generation=3, sequence=9, agent_version="1", boot="b",
        models=(ModelReport(name=NAME, version=1, state=InstallState.COMMITTED, serving=True),),
    ),
    TelemetryBatch(id="12345678", device=DeviceId("d"), items=(WINDOW,)),
    Request(id="1", method="metadata", params={"target": "models/digits/1/manifest.json", "root_version": 1}),
    Response(id="1", files={"1.root.json": "{}"}),
    Get(transfer=1, digest=DIGEST, chunk_bytes=16_384, ranges=((0, 5), (9, 10))),
]  # fmt: skip

new_fields = st.dictionaries(
    st.from_regex(r"new_[a-z]{1,8}", fullmatch=True),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    ),
    max_size=3,
)


@given(st.sampled_from(EXAMPLES), new_fields)
def test_fields_of_a_newer_peer_survive(message: Wire, added: dict[str, object]) -> None:
    """Unknown fields are accepted, and still there when the message is passed on."""
    newer = type(message).model_validate({**message.model_dump(), **added})

    for passed_on in (decode(type(message), encode(newer)), decode_zlib(type(message), encode_zlib(newer))):
        extra = passed_on.model_extra or {}
        assert {key: extra[key] for key, value in added.items() if value is not None} == {
            key: value for key, value in added.items() if value is not None
        }


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_messages_are_frozen_and_versioned(message: Wire) -> None:
    """Nobody changes what was said; each message on a topic of its own says its version."""
    assert message.model_dump()["schema_version"] == 1
    with pytest.raises(ValidationError):
        message.schema_version = 2  # type: ignore[attr-defined]  # the base has none


@pytest.mark.parametrize("module", [messages, manifest, measurement])
def test_everything_on_the_wire_tolerates_newer_peers(module: object) -> None:
    """No class that travels may forbid unknown fields."""
    models = [kind for _, kind in inspect.getmembers(module, inspect.isclass) if issubclass(kind, BaseModel)]
    assert models
    assert all(issubclass(kind, Wire) for kind in models if kind is not BaseModel)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Get, f'{{"transfer":4294967296,"digest":"{DIGEST}","chunk_bytes":1024,"ranges":[[0,1]]}}'),
        (Get, f'{{"transfer":1,"digest":"{DIGEST}","chunk_bytes":65537,"ranges":[[0,1]]}}'),
        (Get, f'{{"transfer":1,"digest":"{DIGEST}","chunk_bytes":1024,"ranges":{[[0, 1]] * 257}}}'),
        (Request, f'{{"id":"1","method":"{"shell" * 20}","params":{{}}}}'),
        (Request, '{"id":"","method":"metadata"}'),
        (TelemetryBatch, '{"id":"short","device":"d","items":[]}'),
        (TelemetryBatch, '{"id":"12345678","device":"d","items":[{"kind":"serving"}]}'),
        (Reported, '{"device":"D","generation":0,"sequence":0,"agent_version":"","boot":""}'),
        (Reported, '{"device":"d","generation":-1,"sequence":0,"agent_version":"","boot":""}'),
        (Assignment, '{"fleet":"f","device":"d","generation":1,"issued_at":NaN}'),
        (DesiredModel, '{"version":0}'),
        (DesiredModel, '{"version":1,"trial_s":1e9}'),
    ],
)
def test_what_breaks_a_limit_is_rejected(kind: type[Wire], text: str) -> None:
    """A hostile device gets no further than the codec."""
    with pytest.raises(Rejected):
        decode(kind, text.encode())


@given(st.integers(1, 10_000), st.data())
def test_wilsons_interval_holds_the_value(total: int, data: st.DataObject) -> None:
    """It lies in [0, 1] and around the share of correct answers."""
    accuracy = Accuracy(correct=data.draw(st.integers(0, total)), total=total)
    low, high = accuracy.interval()

    assert 0.0 <= low <= accuracy.value + 1e-12 and accuracy.value - 1e-12 <= high <= 1.0


def test_wilsons_interval_is_the_published_one() -> None:
    """81 of 263 at 95 %: 0.2553 to 0.3662 (Newcombe 1998, table I, method 3)."""
    low, high = Accuracy(correct=81, total=263).interval()

    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


def test_unknown_power_has_a_reason_and_never_a_figure() -> None:
    """0 mW and unknown are different things."""
    assert unknown_power("no sensor").reason == "no sensor"
    for wrong in ({"method": "none"}, {"method": "none", "reason": "x", "power_mw": 0.0}):
        with pytest.raises(Rejected, match="unknown power"):
            read(Power, wrong)
