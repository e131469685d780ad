"""A seat answers in the tensors that the worker began with, and knows what hangs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from regatta_agent.serving.failover import Failover, Switch
from regatta_agent.serving.seat import Seat, Signature, is_guarded
from regatta_agent.serving.spec import Contender
from regatta_agent.serving.tensors import Array
from regatta_protocol.values import Latency, TensorSpec
from regatta_runtimes.errors import InvokeFailed
from regatta_runtimes.testing import FakeSession
from serving_process import tiny_spec

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
    other = replace(FLOAT, name="other")
    seat = Seat(_contender(), FakeSession(FLOAT, FLOAT, lambda x: x), Signature((other,), (other,)), 3.0)
    x = np.array([[1.5, np.float32(1e-30), -3.0]], np.float32)

    np.testing.assert_array_equal(seat.run([x])[0], x)


def test_a_stack_is_computed_as_its_samples_are() -> None:
    """One after another, in the tensors that clients see; how long each took on average is noted."""
    seat = Seat(_contender(), FakeSession(FLOAT, FLOAT, lambda x: x * np.float32(2)), Signature((INT8,), (INT8,)), 3.0)
    stack = np.arange(-15, 15, dtype=np.int8).reshape(10, 3)

    (outputs,) = seat.run_each([stack])

    np.testing.assert_array_equal(outputs, np.concatenate([seat.run([row])[0] for row in stack[:, np.newaxis]]))
    assert seat.compute_ns > 0
    assert seat.running_since_ns is None


def test_a_stack_that_fails_is_computed_by_the_standby(tmp_path: Path) -> None:
    """The sample that what serves cannot compute, and those behind it; the order stays."""

    def unless_negative(x: Array) -> Array:
        if x[0, 0] < 0:
            raise InvokeFailed("negative")
        return x + np.float32(1)

    standby = Contender(candidate_id="litert/float32/none/t1", variant_path=Path("m.tflite"))
    spec = tiny_spec(tmp_path, standbys=(standby,))
    signature = Signature((FLOAT,), (FLOAT,))
    switches: list[Switch] = []
    winner = Seat(spec.winner(), FakeSession(FLOAT, FLOAT, unless_negative), signature, 3.0)
    failover = Failover(spec, winner, switches.append, lambda: None)
    failover.hold(Seat(standby, FakeSession(FLOAT, FLOAT, lambda x: x + np.float32(1)), signature, 3.0))
    stack = np.array([[0, 1, 2], [-3, 4, 5], [6, 7, 8]], np.float32)

    (outputs,) = failover.run_each([stack])

    np.testing.assert_array_equal(outputs, stack + 1)
    assert [switch.placement for switch in switches] == [standby.candidate_id]


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
