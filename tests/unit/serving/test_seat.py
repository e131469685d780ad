"""A seat answers in the tensors that the worker began with, and knows what hangs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from regatta_agent.serving.seat import Seat, Signature, is_guarded
from regatta_agent.serving.spec import Contender
from regatta_protocol.manifest import TensorSpec
from regatta_protocol.measurement import Latency
from regatta_runtimes.testing import FakeSession

INT8 = TensorSpec(name="in8", dtype="int8", shape=(1, 3), scale=0.5, zero_point=-10)
FLOAT = TensorSpec(name="in", dtype="float32", shape=(1, 3))


def _contender(latency: Latency | None = None) -> Contender:
    return Contender(candidate_id="litert/float32/none/t1", variant_path=Path("m.tflite"), latency=latency)


def test_a_float_candidate_stands_in_for_an_int8_one() -> None:
    """Its clients go on in int8: the real values pass through, rounded as int8 holds them."""
    session = FakeSession(FLOAT, FLOAT, lambda x: x * np.float32(2))
    seat = Seat(_contender(), session, Signature((INT8,), (INT8,)), 3.0)

    (output,) = seat.run([np.array([[-8, 0, 10]], np.int8)])  # 1.0, 5.0, 10.0

    assert output.dtype == np.int8
    np.testing.assert_array_equal(output, [[-6, 10, 30]])  # 2.0, 10.0, 20.0


def test_the_same_tensors_pass_untouched() -> None:
    """Names may differ; nothing is converted then."""
    other = FLOAT.model_copy(update={"name": "other"})
    seat = Seat(_contender(), FakeSession(FLOAT, FLOAT, lambda x: x), Signature((other,), (other,)), 3.0)
    x = np.array([[1.5, np.float32(1e-30), -3.0]], np.float32)

    np.testing.assert_array_equal(seat.run([x])[0], x)


@pytest.mark.parametrize(("p99_us", "hang_s"), [(None, float("inf")), (100.0, 0.5), (50_000.0, 0.5), (400_000.0, 4.0)])
def test_what_hangs_is_known_from_the_race(p99_us: float | None, hang_s: float) -> None:
    """Ten times the slow ones, at least half a second; without a race the worker's own limit holds."""
    latency = None if p99_us is None else Latency(samples=9, p50_us=p99_us, p90_us=p99_us, p99_us=p99_us)
    seat = Seat(_contender(latency), FakeSession(FLOAT, FLOAT, lambda x: x), Signature((FLOAT,), (FLOAT,)), 3.0)

    assert seat.hang_s() == pytest.approx(hang_s)


@pytest.mark.parametrize(
    ("candidate", "asked", "guarded"),
    [
        ("litert/int8/xnnpack/t2", False, False),
        ("litert/int8/none/t1", False, False),
        ("litert/int8/none/t1", True, True),
        ("litert/edge/edgetpu/t1", False, True),
        ("tflite/int8/vx/t1", False, True),
    ],
)
def test_vendors_libraries_are_guarded(candidate: str, asked: bool, guarded: bool) -> None:
    """Always; a processor's candidate when that is asked for."""
    assert is_guarded(candidate, asked) is guarded
