"""Records become questions that lose and double none, whatever pieces they come in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regatta_agent.batch.journal import Journal, Settings
from regatta_agent.batch.questions import Asker, Question, Sizer, questions
from regatta_agent.batch.results import encode_rows
from regatta_agent.client import Client
from regatta_agent.inputs.records import Block, Part, Record, first_of
from regatta_agent.serving.tensors import Array
from regatta_protocol.errors import Misuse, Rejected, TooLarge

_METADATA: dict[str, Any] = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2]}],
}
_SETTINGS = Settings(model="m", inputs=("x",), format="npy", top=0)


def _refused() -> Array:
    raise Rejected("damaged")


def _parts(sizes: Sequence[int]) -> list[Part]:
    """Return a block for a size over 0; 0 is a record of one sample, -1 one of a file, -2 one that cannot be read."""
    found: list[Part] = []
    for number, size in enumerate(sizes):
        if size > 0:
            found.append(Block(f"b{number}", np.full((size, 2), number, dtype=np.float32)))
        elif size == 0:
            found.append(Record(f"r{number}", lambda: np.zeros(2, dtype=np.float32)))
        else:
            found.append(Record(f"r{number}", _refused if size == -2 else lambda: b"picture"))
    return found


def _keys(parts: Sequence[Part]) -> list[str]:
    return [key for part in parts for key in part.keys]


_SIZES = st.lists(st.integers(-2, 40), max_size=8)


@given(_SIZES, st.floats(1e-4, 1e-1))
def test_every_record_is_asked_once_in_order(sizes: list[int], sample_s: float) -> None:
    """In stacks of one shape and of no more samples than the time allows."""
    sizer = Sizer()
    sizer.answered(1, sample_s)

    asked = list(questions(iter(_parts(sizes)), sizer, _METADATA))

    assert [key for question in asked for key in question.keys] == _keys(_parts(sizes))
    for question in asked:
        given_things = (question.item, question.stack, question.refused)
        assert sum(thing is not None for thing in given_things) == 1
        assert 1 <= len(question.keys) <= sizer.size(8)
        assert question.stack is None or question.stack.shape == (len(question.keys), 2)


def test_a_block_is_asked_from_where_it_lies() -> None:
    """Nothing is copied of an array, which may be a mapped file of any length."""
    array, sizer = np.zeros((100, 2), dtype=np.float32), Sizer()
    sizer.answered(1, 0.001)

    asked = list(questions(iter([Block("b", array)]), sizer, _METADATA))

    assert len(asked) > 1
    assert all(question.stack is not None and np.shares_memory(question.stack, array) for question in asked)


@settings(max_examples=40)  # each syncs a disk
@given(_SIZES, st.integers(0, 200), st.integers(0, 200))
def test_a_job_that_goes_on_is_given_what_is_left(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], finished: int, limit: int
) -> None:
    """Behind the finished records, wherever in a block they end, and up to the limit."""
    output = tmp_path_factory.mktemp("job") / "out.npy"
    keys = _keys(_parts(sizes))[:limit]
    finished = min(finished, len(keys))
    with_some = Journal(output, _SETTINGS)
    with_some.open(restart=False)
    with_some.append(b"", keys[: finished // 2], 0)
    with_some.append(b"", keys[finished // 2 : finished], 0)
    with_some.checkpoint()
    with_some.close()
    again = Journal(output, _SETTINGS)
    again.open(restart=False)

    left = list(again.rest_of(first_of(iter(_parts(sizes)), limit)))

    assert _keys(left) == keys[finished:]
    again.append(b"", keys[finished:], 0)
    whole = Journal(output.with_name("whole.npy"), _SETTINGS)
    whole.open(restart=False)
    whole.append(b"", keys, 0)
    assert again.progress.keys_digest == whole.progress.keys_digest
    again.close()
    whole.close()


class _Worker:
    """Answers each sample with itself; refuses stacks that hold NaN, or more samples than it takes."""

    def __init__(self, most: int = 1000, forgets: int = 0) -> None:
        self._most = most
        self._forgets = forgets

    def metadata(self, _model: str) -> dict[str, Any]:
        return _METADATA

    def infer_stacked(self, _model: str, stack: Array, *, top: int) -> dict[str, Array]:
        assert top == 0
        if len(stack) > self._most:
            raise TooLarge("too much")
        if np.isnan(stack).any():
            raise Rejected("NaN")
        return {"y": stack[self._forgets :]}


def _asker(worker: _Worker) -> Asker:
    return Asker(cast(Client, worker), "m", Sizer(), top=0, rows=True, patience_s=0.0)


@given(st.sets(st.integers(0, 19)), st.integers(1, 20))
def test_whoever_is_at_fault_is_found_and_the_others_are_answered(bad: set[int], most: int) -> None:
    """Records that the model refuses become rows of NaN in their places, also where stacks must be made smaller."""
    stack = np.arange(40, dtype=np.float32).reshape(20, 2)
    stack[sorted(bad)] = np.nan
    question = Question([f"x[{place}]" for place in range(20)], stack=stack)

    results = _asker(_Worker(most)).answer(question)

    assert [key for some in results for key in some.keys] == question.keys
    assert sum(len(some.keys) for some in results if some.error is not None) == len(bad)
    np.testing.assert_array_equal(np.frombuffer(encode_rows(results, (2,)), dtype="<f4").reshape(20, 2), stack)


def test_an_answer_of_too_few_samples_is_not_taken_for_the_answer() -> None:
    """Else every record behind would have its neighbor's."""
    with pytest.raises(Misuse, match="19 of 20"):
        _asker(_Worker(forgets=1)).answer(Question(["x"] * 20, stack=np.zeros((20, 2), dtype=np.float32)))
