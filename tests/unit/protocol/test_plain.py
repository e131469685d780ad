"""Reading dataclasses by their annotations: as strictly as pydantic does, which holds the same classes in messages."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ConfigDict, ValidationError, create_model

from left_behind import blocks_left
from regatta_agent.serving.events import Degraded, Ready, SelfTest, Shadowed, WindowClosed
from regatta_agent.serving.spec import Contender, ServeLimits, ServeSpec
from regatta_protocol.bounds import Bounds
from regatta_protocol.errors import Rejected, TooLarge
from regatta_protocol.ids import ModelName
from regatta_protocol.plain import parse_json, read, read_json, to_document, to_json
from regatta_protocol.processing import (
    AnomalyResult,
    AudioInput,
    ClassificationResult,
    DetectionResult,
    ImageInput,
    PoseResult,
    Processing,
    SsdAnchors,
)
from regatta_protocol.values import Accuracy, Latency, Plugin, Power, TensorSpec
from regatta_runtimes.fpga.overlay import OverlayFiles
from regatta_runtimes.power.settings import CommandSettings, MqttSettings, PowerSettings

_LATENCY = Latency(samples=9, p50_us=1.5, p90_us=2.0, p99_us=3.0)
_PLUGIN = Plugin(library="/usr/lib/libx.so", options={"cache": "1"})
_POWER = Power(method="measured", power_mw=900.0, repetitions=3)
EXAMPLES: list[Any] = [
    TensorSpec(name="x", dtype="int8", shape=(1, -1, 3), scale=0.5, zero_point=-3),
    Accuracy(correct=3, total=4),
    ServeSpec(
        model=ModelName("digits"),
        version=2,
        candidate_id="litert/int8/xnnpack/t2",
        variant_path=Path("/v"),
        plugin=_PLUGIN,
        latency=_LATENCY,
        standbys=(Contender(candidate_id="a/b/c/t1", variant_path=Path("/w"), latency=_LATENCY),),
        retried=(1.0, 2.5),
        overlay=OverlayFiles(name="o", bitstream="/b", delegate="d"),
        socket_path=Path("/s"),
        non_finite="pass",
        power=PowerSettings(command=CommandSettings(run=("cat", "/p"), unit="mW")),
        race_power=_POWER,
        limits=ServeLimits(body_bytes=2048),
    ),
    PowerSettings(mqtt=MqttSettings(host="h", topic="t", user="u", password_file=Path("/p"))),
    Ready(load_us=1.0, self_test=SelfTest(samples=4, passed=True, reason="equal"), tcp="127.0.0.1:1"),
    WindowClosed(
        model=ModelName("digits"), version=1, placement="p", start=1.0, stop=2.0, requests=3, errors=0,
        latency_counts={-3: 2, 310: 1}, feedback=Accuracy(correct=1, total=2), power=_POWER,
    ),
    Degraded(winner="a", placement="b", reason="gone", since=1.0, retried=(0.5,), crashed=True),
    Shadowed(socket="s", requests=4, failed=0, classified=4, agreed=3, snr_db=-1.0),
    ImageInput(height=8, width=8, channel_mean=(1.0, 2.0, 3.0)),
    AudioInput(frame_step=2),
    ClassificationResult(top=3),
    DetectionResult(form="ssd", anchors=SsdAnchors(grids=((2, 3), (1, 1)))),
    PoseResult(keypoints=("nose", "ear"), offsets=1),
    AnomalyResult(threshold=0.5),
]  # fmt: skip
_STRANGE = st.sampled_from(
    [None, True, False, 0, 1, -1, 3, 65, 10**30, 0.5, 2.0, -0.5, 1e300, "", "x", "7", "A b", "none", [], [1], {"a": 1}]
)


def _places(document: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [place for key, held in inner for place in ((*prefix, key), *_places(held, (*prefix, key)))]


def _pydantic(example: Any, text: str, *, strict: bool) -> Any:
    """Return what pydantic reads, or None when it refuses."""
    kind: Any = type(example)
    try:
        return _message_with(kind).model_validate_json(f'{{"held": {text}}}', strict=strict).held
    except ValidationError:
        return None


@cache
def _message_with(kind: Any) -> Any:
    """Return a message that holds the kind."""
    config = ConfigDict(extra="ignore", allow_inf_nan=False)
    return create_model("Message", __config__=config, held=(kind, ...))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda one: type(one).__name__)
def test_what_is_written_is_read_again(example: Any) -> None:
    """Nothing is lost on the way from the agent to its worker and back; None is not written."""
    text = to_json(example)

    assert read_json(type(example), text, len(text)) == example
    assert b"null" not in text
    assert _pydantic(example, text.decode(), strict=True) == example


def test_what_is_no_finite_number_is_left_out_when_it_is_written() -> None:
    """JSON has no word for it; a worker says what it can."""
    said = Degraded(winner="a", placement="b", reason="gone", since=float("inf"), retried=(1.0, float("nan")))

    assert json.loads(to_json(said)).keys() == {"event", "winner", "placement", "reason", "retried", "crashed"}
    assert json.loads(to_json(said))["retried"] == [1.0, None]


@given(st.sampled_from(EXAMPLES), st.data())
def test_it_is_no_laxer_than_pydantic_and_no_stricter_than_its_strict_mode(example: Any, data: st.DataObject) -> None:
    """One set of annotations, two readers: what one takes, the other takes for the same value."""
    document = copy.deepcopy(to_document(example))
    *way, last = data.draw(st.sampled_from(_places(document)))
    holder: Any = document
    for key in way:
        holder = holder[key]
    strange = data.draw(_STRANGE | st.just(...))
    if strange is ... and isinstance(holder, dict):
        del holder[last]
    else:
        holder[last] = None if strange is ... else strange
    try:
        found = read(type(example), document)
    except Rejected:
        found = None

    text = json.dumps(document)
    if found is not None:
        assert _pydantic(example, text, strict=False) == found
    expected = _pydantic(example, text, strict=True)
    if expected is not None:
        assert found == expected


@pytest.mark.parametrize("result", EXAMPLES[-4:], ids=lambda one: type(one).__name__)
def test_a_union_is_told_apart_by_its_kind(result: Any) -> None:
    """Of results that have the same fields, too."""
    processing = Processing(result=result)

    assert read(Processing, to_document(processing)) == processing


@pytest.mark.parametrize(
    ("kind", "document", "says"),
    [
        (Latency, [], "this is no Latency: should be an object"),
        (Latency, {"samples": 1, "p50_us": 1}, "p90_us: is required"),
        (Latency, {**to_document(_LATENCY), "samples": 0}, "samples: should be greater than or equal to 1"),
        (Latency, {**to_document(_LATENCY), "p50_us": float("nan")}, "p50_us: should be a finite number"),
        (Latency, {**to_document(_LATENCY), "p50_us": 10**400}, "p50_us: should be a finite number"),
        (TensorSpec, {"name": "x", "dtype": "int8", "shape": [1, "2"]}, "shape.1: should be a whole number"),
        (Accuracy, {"correct": 5, "total": 4}, r"correct \(5\) is above total \(4\)"),
        (Processing, {"result": {"kind": "tea leaves"}}, "result.kind: should be 'classification' or"),
        (Processing, {"image": {"height": 8, "width": 8, "channels": True}}, "image.channels: should be 1 or 3"),
        (MqttSettings, {"host": "h", "topic": "a/+"}, "topic: should match pattern"),
        (MqttSettings, {"host": "h" * 256, "topic": "t"}, "host: should have at most 255"),
        (
            WindowClosed,
            {**to_document(EXAMPLES[5]), "latency_counts": {"x": 1}},
            "latency_counts.x: should be named by",
        ),
    ],
)
def test_the_first_wrong_field_is_named(kind: type[Any], document: object, says: str) -> None:
    """Who wrote it finds it."""
    with pytest.raises(Rejected, match=says):
        read(kind, document)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"\xff", "no JSON"),
        ('{"a": 1}'.encode("utf-16"), "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b'["\\ud800"]', "no JSON"),
        (b'{"\\uDC00": 1}', "no JSON"),
    ],
)
def test_what_is_no_json_is_refused(data: bytes, says: str) -> None:
    """Neither deep nesting nor half of a character gets any further."""
    with pytest.raises(Rejected, match=says):
        parse_json(data)


def test_a_whole_character_in_escapes_is_text() -> None:
    assert parse_json(b'"\\ud83d\\ude00"') == "😀"


def test_what_is_too_long_is_not_even_parsed() -> None:
    with pytest.raises(TooLarge, match="Latency of 9 bytes is over the limit of 8"):
        read_json(Latency, b"not JSON!", 8)


@pytest.mark.parametrize(
    ("bounds", "right", "wrong"),
    [
        (Bounds(ge=1, lt=3), (1, 2.9), (0, 3)),
        (Bounds(gt=1, le=3), (1.1, 3), (1, 3.1)),
        (Bounds(min_length=1, max_length=2), ("a", "ab", (1,), {"a": 1}), ("", "abc", (), (1, 2, 3), {})),
        (Bounds(pattern="^a+$"), ("a", "aa"), ("", "b", "ab", "a\n")),
    ],
)
def test_bounds(bounds: Bounds, right: tuple[object, ...], wrong: tuple[object, ...]) -> None:
    """The ends are as they say, and a pattern is of the whole text."""
    assert [bounds.broken_by(value) for value in right] == [None] * len(right)
    assert all(bounds.broken_by(value) for value in wrong)


def test_a_window_read_and_written_leaves_nothing_behind() -> None:
    """An agent does it every few seconds for years: no block of memory for each."""
    window = WindowClosed(
        model=ModelName("digits"), version=1, placement="one", start=1.0, stop=2.0, requests=3, errors=0
    )
    said = to_json(window)

    left = blocks_left(lambda: to_json(read(WindowClosed, parse_json(said)).window()), 400)

    assert left < 20
