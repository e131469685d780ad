"""Requests computed together: their inputs joined along the first dimension, the outputs split again. numpy only.

Only a model whose inputs and outputs all have a changeable first dimension is a candidate, and only where it pays: when
the model is opened, rows of one batch are timed against single ones, and compared with them, for nothing promises that
a model treats its rows as separate.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from regatta_agent.serving.tensors import Array
from regatta_protocol.errors import RegattaError
from regatta_protocol.values import TensorSpec

__all__ = ["find_batch", "groups_of", "is_batchable", "joined", "split"]

Run = Callable[[Sequence[Array]], list[Array]]

_GAIN = 0.8  # of a single inference's time for each row: what saves less is within the noise of the measurement
_NEARLY = 1.1  # a smaller batch within this of the best is taken: it answers sooner
_ROUNDS = 5
_BUDGET_NS = 200_000_000  # of the worker's start
_LEAST_RUNS = 20  # single inferences' worth of work, to try batches of two
_TOLERANCE = 1e-3  # of the greatest element: kernels for other shapes add in another order
_QUANTUM = 1  # and round to the neighboring integer


def is_batchable(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bool:
    """Return whether every tensor has a first dimension that may be any size."""
    return all(spec.shape and spec.shape[0] == -1 for spec in (*inputs, *outputs))


def joined(parts: Sequence[Sequence[Array]]) -> list[Array]:
    """Return the inputs of several requests as one: [n, …] each, along the first dimension."""
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def split(outputs: Sequence[Array], rows: Sequence[int]) -> list[list[Array]]:
    """Return for each request its own rows of every output.

    Raises:
        ValueError: when an output has not as many rows as the requests together.
    """
    for array in outputs:
        if array.shape[:1] != (sum(rows),):
            raise ValueError(f"an output of a batch of {sum(rows)} rows has shape {list(array.shape)}")
    ends = np.cumsum(rows)[:-1]
    columns = [np.split(array, ends) for array in outputs]
    return [list(parts) for parts in zip(*columns, strict=True)]


def groups_of(parts: Sequence[Sequence[Array]], most: int) -> Iterator[list[int]]:
    """Give the indices of requests that may be joined: of one shape but for their rows, at most `most` rows together.

    A request whose inputs differ in their rows, or that has more rows than that, is alone in its group.
    """
    open_groups: dict[tuple[tuple[int, ...], ...], tuple[list[int], int]] = {}
    for index, arrays in enumerate(parts):
        rows = {array.shape[0] for array in arrays}
        count = max(rows)
        if len(rows) > 1 or count > most:
            yield [index]
            continue
        shape = tuple(array.shape[1:] for array in arrays)
        members, taken = open_groups.get(shape, ([], 0))
        if members and taken + count > most:
            yield members
            members, taken = [], 0
        open_groups[shape] = ([*members, index], taken + count)
    for members, _ in open_groups.values():
        yield members


def find_batch(
    run: Run, samples: Sequence[Sequence[Array]], most: int, clock_ns: Callable[[], int] = time.perf_counter_ns
) -> int:
    """Return how many rows to compute together: 1 when that does not pay, or does not give the same answers.

    It is 1 as well where an inference takes so long that trying would delay the start.

    A batch is timed after an inference of another size, so what resizing costs is in its time.

    Args:
        run: computes native inputs, on the thread that calls.
        samples: at least one set of inputs, each of one row.
        most: the greatest number of rows.
        clock_ns: tells the time.
    """

    def time_of(inputs: Sequence[Array]) -> int:
        began_ns = clock_ns()
        run(inputs)
        return clock_ns() - began_ns

    try:
        ends_ns = clock_ns() + _BUDGET_NS
        quick = most >= 2 and min(time_of(samples[0]) for _ in range(2)) * _LEAST_RUNS < _BUDGET_NS
        if not quick or not _rows_are_separate(run, samples):
            return 1
        single_ns = float(np.median([time_of(samples[0]) for _ in range(_ROUNDS)]))
        per_row: dict[int, float] = {}
        rows = 2
        while rows <= most and clock_ns() < ends_ns:
            batch = joined([samples[index % len(samples)] for index in range(rows)])
            times = []
            for _ in range(_ROUNDS):
                run(samples[0])
                times.append(time_of(batch))
            per_row[rows] = float(np.median(times)) / rows
            rows *= 2
    except RegattaError:
        return 1
    best_ns = min(per_row.values(), default=single_ns)
    if best_ns > _GAIN * single_ns:
        return 1
    return min(rows for rows, each_ns in per_row.items() if each_ns <= _NEARLY * best_ns)


def _rows_are_separate(run: Run, samples: Sequence[Sequence[Array]]) -> bool:
    """Return whether two rows together come out as each alone."""
    pair = [samples[0], [np.flip(array, axis=-1) for array in samples[-1]]]
    alone = [run(inputs) for inputs in pair]
    try:
        together = split(run(joined(pair)), [inputs[0].shape[0] for inputs in pair])
    except ValueError:
        return False
    return all(
        _alike(array, expected)
        for outputs, wanted in zip(together, alone, strict=True)
        for array, expected in zip(outputs, wanted, strict=True)
    )


def _alike(array: Array, expected: Array) -> bool:
    if array.shape != expected.shape:
        return False
    if array.dtype.kind not in "iuf":
        return bool(np.array_equal(array, expected))
    difference = np.abs(array.astype(np.float64) - expected.astype(np.float64))
    if array.dtype.kind in "iu":
        return bool(difference.max(initial=0.0) <= _QUANTUM)
    return bool(difference.max(initial=0.0) <= _TOLERANCE * np.abs(expected).max(initial=0.0))
