"""Batches: each request gets its own rows back, and only models that gain by it, and keep rows apart, are batched."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regatta_agent.serving.batching import find_batch, groups_of, is_batchable, joined, split
from regatta_agent.serving.inference import InferRequest, NamedTensor
from regatta_agent.serving.interface import ModelInterface
from regatta_agent.serving.placed import PlacedModel
from regatta_agent.serving.tensors import Array
from regatta_protocol.errors import Rejected
from regatta_protocol.values import TensorSpec
from regatta_runtimes.errors import InvokeFailed

Run = Callable[[Sequence[Array]], list[Array]]

X = TensorSpec(name="x", dtype="float32", shape=(-1, 2))
Y = TensorSpec(name="y", dtype="float32", shape=(-1, 2))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12))
def test_what_is_joined_is_split_alike(rows: list[int]) -> None:
    """split gives each request the rows that joined took from it, of every tensor."""
    numbers = iter(range(10_000))
    parts = [
        [np.array([[next(numbers)] * 3 for _ in range(count)]), np.array([next(numbers) for _ in range(count)])]
        for count in rows
    ]

    back = split(joined(parts), rows)

    for part, again in zip(parts, back, strict=True):
        for array, other in zip(part, again, strict=True):
            np.testing.assert_array_equal(array, other)


def test_an_output_of_other_rows_is_no_batch() -> None:
    """A model that answers with another number of rows is found out."""
    with pytest.raises(ValueError, match="batch of 3 rows"):
        split([np.zeros((1, 2))], [1, 2])


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 2), st.booleans()), max_size=20), st.integers(1, 8))
def test_groups_hold_each_request_once(drawn: list[tuple[int, int, bool]], most: int) -> None:
    """Every request is in one group; those in a group have one shape but for the rows, and at most so many rows."""
    parts: list[list[Array]] = [
        [np.zeros((rows, width)), np.zeros((rows + 1 if odd else rows, 1))] for rows, width, odd in drawn
    ]

    groups = list(groups_of(parts, most))

    assert sorted(index for group in groups for index in group) == list(range(len(parts)))
    for group in groups:
        if len(group) > 1:
            assert sum(parts[index][0].shape[0] for index in group) <= most
            assert len({parts[index][0].shape[1] for index in group}) == 1
            assert not any(drawn[index][2] for index in group)


class _Paced:
    """A model and a clock: it takes so long for a batch and for each of its rows, and the clock tells so."""

    def __init__(self, batch_us: int, row_us: int) -> None:
        self.now_ns = 0
        self._batch_us, self._row_us = batch_us, row_us

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        self.now_ns += 1000 * (self._batch_us + self._row_us * inputs[0].shape[0])
        return [inputs[0] * 2]


@pytest.mark.parametrize(
    ("batch_us", "row_us", "rows"),
    [
        pytest.param(5000, 0, 8, id="each batch costs the same"),
        pytest.param(0, 5000, 1, id="each row costs the same"),
        pytest.param(100, 900, 1, id="a tenth is saved"),
        pytest.param(900, 100, 8, id="most is saved"),
        pytest.param(50_000, 0, 1, id="trying takes too long"),
    ],
)
def test_only_what_gains_is_batched(batch_us: int, row_us: int, rows: int) -> None:
    """A fixed cost pays, a cost for each row does not, and a start is not held up to find out."""
    paced = _Paced(batch_us, row_us)

    found = find_batch(paced, [[np.array([[1.0, 3.0]], np.float32)]], most=8, clock_ns=lambda: paced.now_ns)

    assert found == rows
    assert paced.now_ns < 600_000_000


def _mixing(inputs: Sequence[Array]) -> list[Array]:
    return [inputs[0] - inputs[0].mean(axis=0)]


def _growing(inputs: Sequence[Array]) -> list[Array]:
    return [np.zeros((1, 2), np.float32)]


def _failing(inputs: Sequence[Array]) -> list[Array]:
    if inputs[0].shape[0] > 1:
        raise InvokeFailed("no batch")
    return [inputs[0]]


@pytest.mark.parametrize("run", [_mixing, _growing, _failing])
def test_what_differs_in_a_batch_is_not_batched(run: Run) -> None:
    """Mixed rows, other shapes and failures; and nothing is where one row is the limit."""
    sample = [np.array([[1.0, 3.0]], np.float32)]

    assert find_batch(run, [sample], most=8) == 1
    assert find_batch(lambda inputs: list(inputs), [sample], most=1) == 1


def test_only_changeable_first_dimensions_are_batchable() -> None:
    """Of every input and output."""
    fixed = TensorSpec(name="z", dtype="float32", shape=(1, 2))
    scalar = TensorSpec(name="s", dtype="float32", shape=())

    assert is_batchable([X], [Y])
    assert not is_batchable([X, fixed], [Y])
    assert not is_batchable([X], [scalar])


class _Doubling:
    """A session that doubles; together only when it may, and alone not where the first element is negative."""

    inputs = (X,)
    outputs = (Y,)
    delegated_nodes = 0

    def __init__(self, *, together: bool) -> None:
        self.sizes: list[int] = []
        self._together = together

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        self.sizes.append(inputs[0].shape[0])
        if inputs[0][0, 0] < 0:
            raise InvokeFailed("negative")
        return [inputs[0] * 2]

    def run_together(self, inputs: Sequence[Array], rows: int) -> list[Array]:
        assert rows == inputs[0].shape[0]
        if not self._together:
            raise InvokeFailed("no batch")
        return self.run(inputs)

    def run_each(self, stacks: Sequence[Array]) -> list[Array]:
        return [np.concatenate([self.run([row[np.newaxis]])[0] for row in stacks[0]])]

    def close(self) -> None: ...


def _request(*rows: float, width: int = 2) -> InferRequest:
    array = np.array([[value] * width for value in rows], np.float32)
    return InferRequest(None, (NamedTensor("x", "FP32", array),), (), binary_default=True)


@pytest.mark.parametrize("together", [True, False])
def test_each_request_of_a_batch_gets_its_own_answer(together: bool) -> None:
    """Also when the batch fails and each is computed alone, and when one of them is wrong or fails."""
    session = _Doubling(together=together)
    model = PlacedModel(session, ModelInterface([X], [Y]), most_rows=8)

    answers = model.infer_together([_request(1), _request(2, 3), _request(4, width=3), _request(5)])

    found = [None if isinstance(one, Exception) else one.tensors[0][0].array[:, 0].tolist() for one in answers]
    assert found == [[2], [4, 6], None, [10]]
    assert isinstance(answers[2], Rejected)
    assert session.sizes == ([4] if together else [1, 2, 1])
    assert [one.batch for one in answers if not isinstance(one, Exception)] == ([4, 4, 4] if together else [1, 2, 1])


def test_a_request_that_fails_fails_alone() -> None:
    """The batch that it spoils is computed again, one by one."""
    model = PlacedModel(_Doubling(together=True), ModelInterface([X], [Y]), most_rows=8)

    answers = model.infer_together([_request(-1), _request(2)])

    assert isinstance(answers[0], InvokeFailed)
    assert not isinstance(answers[1], Exception) and answers[1].tensors[0][0].array.tolist() == [[4, 4]]
