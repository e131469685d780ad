"""Every Session keeps the same promises: the fake one and each runtime's, on the same small model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from regatta_protocol.errors import Rejected
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.errors import CreateFailed, RuntimeMissing
from regatta_runtimes.runtime import RUNTIMES
from regatta_runtimes.testing import dense
from regatta_runtimes.worker.session import Session, open_session, run_each
from tiny_models import dense_model
from tiny_onnx import dense_onnx

WEIGHTS = np.array([[1, 2, 3, 4], [0, -1, 0.5, 1], [2, 2, -2, 0]], dtype=np.float32)
BIAS = np.array([0.5, 0, -1], dtype=np.float32)
OPENERS = [
    *("fake", "litert/xnnpack", "litert/none", "litert/ref", "tflite/xnnpack", "tflite/none", "tflite/ref"),
    *("compiled/cpu", "onnx/cpu", "onnx/ref"),
]


@pytest.fixture(params=OPENERS)
def session(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Session]:
    if request.param == "fake":
        opened: Session = dense(WEIGHTS, BIAS)
    else:
        runtime, delegate = request.param.split("/")
        path = tmp_path / "dense"
        path.write_bytes((dense_onnx if runtime == "onnx" else dense_model)(WEIGHTS, BIAS))
        try:
            opened = open_session(Candidate(runtime, "float32", delegate, 1), path)
        except RuntimeMissing as err:
            pytest.skip(str(err))
    yield opened
    opened.close()


def test_it_states_its_tensors(session: Session) -> None:
    """Names, dtypes and shapes are the model's."""
    assert [(spec.dtype, spec.shape, spec.scale) for spec in session.inputs] == [("float32", (1, 4), None)]
    assert [(spec.dtype, spec.shape) for spec in session.outputs] == [("float32", (1, 3))]


def test_it_computes(session: Session) -> None:
    """The outputs are the model's, within float32 rounding."""
    x = np.array([[1, -2, 0.25, 3]], dtype=np.float32)

    outputs = session.run([x])

    np.testing.assert_allclose(outputs[0], x @ WEIGHTS.T + BIAS, rtol=1e-5)


def test_many_samples_are_computed_as_one_is(session: Session) -> None:
    """Each in its order, owned by the caller; a stack of another dtype or shape is refused, and nothing is spoiled."""
    stack = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)

    outputs = [one for (one,) in run_each(session, [stack])]

    np.testing.assert_array_equal(outputs, [session.run([row])[0] for row in stack[:, np.newaxis]])
    for wrong in (stack.astype(np.float64), stack[:, :3]):
        with pytest.raises(Rejected):
            list(run_each(session, [wrong]))
    np.testing.assert_array_equal(next(run_each(session, [stack]))[0], outputs[0])


def test_outputs_belong_to_the_caller(session: Session) -> None:
    """A later run does not change what an earlier one returned."""
    first = session.run([np.ones((1, 4), dtype=np.float32)])[0]
    kept = first.copy()

    session.run([np.full((1, 4), 9, dtype=np.float32)])

    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: [],
        lambda x: [x, x],
        lambda x: [x.astype(np.float64)],
        lambda x: [x.reshape(4, 1)],
        lambda x: [np.ones((1, 5), dtype=np.float32)],
    ],
)
def test_inputs_that_do_not_match_are_rejected(
    session: Session,
    change: Callable[[np.ndarray], list[np.ndarray]],  # type: ignore[type-arg]
) -> None:
    """A wrong count, dtype or shape is refused, and the session goes on working."""
    good = np.ones((1, 4), dtype=np.float32)

    with pytest.raises(Rejected):
        session.run(change(good))

    assert session.run([good])[0].shape == (1, 3)


def test_closing_twice_is_fine_and_running_after_is_not(session: Session) -> None:
    """close() may be repeated; run() afterwards is refused."""
    session.close()
    session.close()

    with pytest.raises(Rejected):
        session.run([np.ones((1, 4), dtype=np.float32)])


@pytest.mark.parametrize("opener", OPENERS[1:])
def test_an_input_of_changeable_size_takes_any(opener: str, tmp_path: Path) -> None:
    """One sample, three, and one again: each answer has the size of its question."""
    runtime, delegate = opener.split("/")
    path = tmp_path / "dense"
    path.write_bytes((dense_onnx if runtime == "onnx" else dense_model)(WEIGHTS, BIAS, any_batch=True))
    try:
        session = open_session(Candidate(runtime, "float32", delegate, 1), path)
    except RuntimeMissing as err:
        pytest.skip(str(err))

    assert session.inputs[0].shape == (-1, 4)
    for size in (1, 3, 1):
        x = np.arange(size * 4, dtype=np.float32).reshape(size, 4)
        np.testing.assert_allclose(session.run([x])[0], x @ WEIGHTS.T + BIAS, rtol=1e-5)


@pytest.mark.parametrize("runtime", list(RUNTIMES))
def test_a_file_that_is_no_model_cannot_be_opened(runtime: str, tmp_path: Path) -> None:
    """The vendor's refusal is a CreateFailed."""
    path = tmp_path / "no.tflite"
    path.write_bytes(b"no model at all, but long enough to be read")

    with pytest.raises((CreateFailed, RuntimeMissing)):
        open_session(Candidate(runtime, "v", RUNTIMES[runtime].plain, 1), path)


def test_an_unknown_runtime_is_missing(tmp_path: Path) -> None:
    """The message lists the runtimes there are."""
    with pytest.raises(RuntimeMissing, match=r"compiled, .*litert, .*tflite"):
        open_session(Candidate("abacus", "v", "none", 1), tmp_path / "m")
