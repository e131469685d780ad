"""Windows, totals and feedback count what they say, within their bounds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from regatta_agent.serving.events import Failed, Ready, SelfTest, WindowClosed, parse_event
from regatta_agent.serving.feedback import Feedback
from regatta_agent.serving.metrics import openmetrics, statistics
from regatta_agent.serving.window import Outcome, Placement, Stage, Tally, Timing
from regatta_agent.telemetry.batches import encode_item
from regatta_protocol import sketch
from regatta_protocol.codec import decode_zlib, encode_zlib
from regatta_protocol.errors import Rejected
from regatta_protocol.ids import DeviceId, ModelName
from regatta_protocol.messages import TelemetryBatch
from regatta_protocol.plain import to_document, to_json
from regatta_protocol.values import Accuracy, ServingWindow


def _tally() -> Tally:
    return Tally(Placement(ModelName("digits"), 2, "litert/int8/none/t1"), start=10.0)


def test_a_window_counts_what_the_model_did() -> None:
    """Failures are errors; what clients got wrong is in no window."""
    tally = _tally()
    for outcome in (Outcome.SUCCESS, Outcome.SUCCESS, Outcome.FAILURE, Outcome.INVALID, Outcome.REFUSED):
        tally.count(outcome, Timing(250_000))

    window = tally.close(15.0, Accuracy(correct=1, total=2), None)

    assert (window.requests, window.errors, window.start, window.stop) == (3, 1, 10.0, 15.0)
    assert sketch.quantile(window.latency_counts, 0.5) == pytest.approx(250, rel=0.01)
    assert tally.close(20.0, None, None).requests == 0


def _timing(total_us: float) -> Timing:
    """A request of that length whose stages take 1, 2, 6 and 1 tenths of it."""
    tenth_ns = int(total_us * 100)
    return Timing(10 * tenth_ns, tenth_ns, 2 * tenth_ns, 6 * tenth_ns, tenth_ns)


def test_stages_are_told_at_first_then_not_for_five_minutes_and_with_the_last_window() -> None:
    """What windows without them left untold is in the next that has them, so that nothing is lost or doubled."""
    tally, told = _tally(), []
    for now, last in ((20.0, False), (50.0, False), (319.9, False), (320.0, False), (330.0, True), (340.0, True)):
        tally.count(Outcome.SUCCESS, _timing(1000.0))
        tally.count(Outcome.INVALID, _timing(5.0))
        told.append(tally.close(now, None, None, last=last).stage_counts)

    assert [sketch.total(stages.get("compute_infer", {})) for stages in told] == [1, 0, 0, 3, 1, 1]
    whole = sketch.merge_named(told)
    assert {name: sketch.quantile(counts, 0.5) for name, counts in whole.items()} == pytest.approx(
        {"queue": 100.0, "compute_input": 200.0, "compute_infer": 600.0, "compute_output": 100.0}, rel=0.01
    )
    assert tally.is_told


def test_a_tally_that_begins_anew_has_forgotten_all() -> None:
    """Totals, window and stages."""
    tally = _tally()
    tally.count(Outcome.SUCCESS, _timing(100.0))
    tally.count(Outcome.FAILURE, _timing(100.0))
    tally.begin(tally.placement, start=12.0)

    closed = tally.close(15.0, None, None, last=True)
    assert (closed.start, closed.requests, closed.errors, closed.latency_counts, closed.stage_counts) == (
        12.0, 0, 0, {}, {},
    )  # fmt: skip
    assert {sum(totals.outcomes.values()) for totals in tally.totals.values()} == {0}


def test_a_clock_that_was_set_back_delays_no_stages() -> None:
    """A board without a clock battery jumps by decades when it hears the time, and may jump back."""
    tally = _tally()
    tally.count(Outcome.SUCCESS, _timing(100.0))
    assert tally.close(2e9, None, None).stage_counts
    tally.count(Outcome.SUCCESS, _timing(100.0))
    assert tally.close(1000.0, None, None).stage_counts


def test_a_window_goes_through_its_line_to_telemetry() -> None:
    """What the worker prints is parsed back, and becomes a telemetry item without the event's name."""
    tally = _tally()
    tally.count(Outcome.SUCCESS, Timing(1000))
    closed = tally.close(15.0, None, None)

    event = parse_event(to_json(closed))

    assert isinstance(event, WindowClosed)
    assert type(event.window()) is ServingWindow
    assert event.window().latency_counts == closed.latency_counts
    assert event.window().stage_counts == closed.stage_counts != {}
    assert "event" not in to_document(event.window())


def test_the_widest_window_gets_through_to_the_fleet() -> None:
    """Every bucket of all five sketches in use, with counts of days: a line, an item, and a batch in one message."""
    low, high = sketch.bucket_of(sketch.LOWEST), sketch.bucket_of(sketch.HIGHEST)
    counts = {bucket: bucket * 7919 % 99_991 + 1 for bucket in range(low, high + 1)}
    stages = {stage.value: counts for stage in Stage if stage is not Stage.REQUEST}
    window = WindowClosed(
        model=ModelName("digits"), version=2, placement="p", start=1.0, stop=2.0, requests=10**9, errors=0,
        latency_counts=counts, stage_counts=stages,
    )  # fmt: skip

    event = parse_event(to_json(window))

    assert isinstance(event, WindowClosed)
    item = event.window()
    assert len(encode_item(item)) > 0
    batch = TelemetryBatch(id="batch-0001", device=DeviceId("d"), items=(item,))
    assert decode_zlib(TelemetryBatch, encode_zlib(batch)).items == (item,)


@pytest.mark.parametrize(
    "event",
    [
        Ready(load_us=1.5, self_test=SelfTest(samples=0, passed=True, reason="none")),
        Failed(reason="gone", family="rejected"),
    ],
)
def test_every_event_comes_back(event: Ready | Failed) -> None:
    """Each kind of line is told apart."""
    assert parse_event(to_json(event)) == event


def test_a_line_that_is_no_event_is_refused() -> None:
    """A library that prints to standard output does not confuse the parent."""
    with pytest.raises(Rejected):
        parse_event(b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.")


def test_feedback_counts_each_request_once() -> None:
    """Labels are compared with what was predicted; a repeated one changes nothing."""
    feedback = Feedback()
    feedback.remember("a", 3)
    feedback.remember("b", 4)

    assert feedback.judge("a", label=3, correct=None)
    assert feedback.judge("a", label=9, correct=None)
    assert not feedback.judge("b", label=3, correct=None)
    assert feedback.take() == Accuracy(correct=1, total=2)
    assert feedback.take() is None


def test_feedback_forgets_the_oldest() -> None:
    """The memory is bounded, and an id that is not in it is an error."""
    feedback = Feedback(memory=2)
    for request_id in "abc":
        feedback.remember(request_id, 1)

    with pytest.raises(KeyError):
        feedback.judge("a", label=1, correct=None)
    assert feedback.judge("b", label=1, correct=None)


def test_feedback_on_what_is_no_class_needs_a_verdict() -> None:
    """Without a predicted class only correct can be counted."""
    feedback = Feedback()
    feedback.remember("a", None)

    with pytest.raises(Rejected, match="correct"):
        feedback.judge("a", label=1, correct=None)
    assert feedback.judge("a", label=None, correct=True)


def test_metrics_keep_counting_over_windows_and_placements() -> None:
    """Totals grow over windows, each placement has its own, and another's parser reads the text."""
    tally = _tally()
    for _ in range(3):
        tally.count(Outcome.SUCCESS, Timing(2_000_000, queue_ns=1_000_000, compute_ns=500_000))
        tally.count_batch(2)
        tally.close(15.0, None, None)
    tally.place("litert/int8/xnnpack/t1")
    tally.count(Outcome.FAILURE, Timing(0))

    text = openmetrics(tally, pending=1, connections=2, degraded=True)

    parsed = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]  # its package types only a part
    families = {family.name: family for family in parsed}
    served, now = "litert/int8/none/t1", "litert/int8/xnnpack/t1"
    assert _value(families, "regatta_inference_requests_total", placement=served, outcome="success") == 3
    assert _value(families, "regatta_inference_requests_total", placement=served, outcome="failure") == 0
    assert _value(families, "regatta_inference_requests_total", placement=now, outcome="failure") == 1
    assert _value(families, "regatta_inference_request_duration_seconds_sum", placement=served) == 0.006
    assert _value(families, "regatta_inference_queue_duration_seconds_count", placement=served) == 3
    p99 = _value(families, "regatta_inference_compute_infer_duration_seconds", placement=served, quantile="0.99")
    assert p99 == pytest.approx(0.0005, rel=0.01)
    assert _value(families, "regatta_inference_batch_size_bucket", placement=served, le="1.0") == 0
    assert _value(families, "regatta_inference_batch_size_bucket", placement=served, le="2.0") == 3
    assert _value(families, "regatta_inference_batch_size_sum", placement=served) == 6
    assert _value(families, "regatta_serving_degraded", placement=now) == 1


def _value(families: Mapping[str, Any], name: str, **labels: str) -> float:
    """Return the one sample of that name with these labels."""
    (found,) = [
        sample.value
        for family in families.values()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    return float(found)


def test_statistics_add_up() -> None:
    """Counts and times over all placements, and sketches that merge to the whole."""
    tally = _tally()
    for candidate, ns in (("litert/int8/none/t1", 1_000_000), ("litert/int8/xnnpack/t1", 3_000_000)):
        tally.place(candidate)
        tally.count(Outcome.SUCCESS, Timing(ns, queue_ns=ns // 2))
        tally.count_batch(4)
    tally.count(Outcome.EXPIRED, Timing(0))

    document = statistics(tally)

    assert (document["inference_count"], document["execution_count"]) == (8, 2)
    assert document["inference_stats"]["success"] == {"count": 2, "ns": 4_000_000}
    assert document["inference_stats"]["queue"] == {"count": 2, "ns": 2_000_000}
    assert document["inference_stats"]["fail"]["count"] == 1
    assert document["batch_stats"] == [{"batch_size": 4, "execution_count": 2}]
    merged = sketch.merge(one["request"] for one in document["sketches"].values())
    assert sketch.quantile(merged, 1.0) == pytest.approx(3000, rel=0.01)
    assert sketch.quantile(merged, 0.0) == pytest.approx(1000, rel=0.01)


def test_the_parent_s_side_imports_no_numpy() -> None:
    """The control process reads events and writes specs without numpy or a runtime."""
    code = (
        "import sys, regatta_agent.serving.events, regatta_agent.serving.spec;"
        "sys.exit(any(name in sys.modules for name in ('numpy', 'httptools', 'ai_edge_litert')))"
    )

    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


@given(st.lists(st.integers(0, 10**15), min_size=1, max_size=600), st.integers(0, 600))
def test_sketches_are_as_if_each_request_were_added(total_ns: list[int], looked_after: int) -> None:
    """However many come between two looks, each is counted once in totals and window, where sketch.add puts it."""
    tally, expected = _tally(), dict[int, int]()
    for number, ns in enumerate(total_ns):
        tally.count(Outcome.SUCCESS, Timing(ns), "litert/int8/xnnpack/t1" if ns % 2 else None)
        sketch.add(expected, ns / 1000)
        if number == looked_after:
            assert sum(total.outcomes[Outcome.SUCCESS] for total in tally.totals.values()) == number + 1

    assert tally.close(15.0, None, None).latency_counts == expected
    assert sketch.merge(total.stages[Stage.REQUEST] for total in tally.totals.values()) == expected
    assert sum(total.sums_ns[Stage.REQUEST] for total in tally.totals.values()) == sum(total_ns)
