"""A session without a runtime, for tests here and in other rooms. It passes tests/contract/test_session.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from regatta_protocol.errors import Rejected
from regatta_protocol.values import TensorSpec
from regatta_runtimes.worker.session import Array

__all__ = ["FakeSession", "dense"]


class FakeSession:
    """A session that computes a Python function of one input and one output."""

    def __init__(self, source: TensorSpec, target: TensorSpec, compute: Callable[[Array], Array]) -> None:
        self._source = source
        self._target = target
        self._compute: Callable[[Array], Array] | None = compute

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (self._source,)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (self._target,)

    @property
    def delegated_nodes(self) -> int:
        return 1

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Return the computed output; see Session."""
        if self._compute is None:
            raise Rejected("the session is closed: open a new one")
        if len(inputs) != 1:
            raise Rejected(f"the model takes 1 input and got {len(inputs)}")
        array = inputs[0]
        if array.dtype.name != self._source.dtype:
            raise Rejected(f"input {self._source.name!r} is {self._source.dtype} and got {array.dtype}")
        if array.shape != self._source.shape:
            raise Rejected(f"input {self._source.name!r} has shape {self._source.shape} and got {array.shape}")
        return [np.array(self._compute(array))]

    def close(self) -> None:
        """Release the function."""
        self._compute = None


def dense(weights: Array, bias: Array) -> FakeSession:
    """Return float32 [1, n] -> [1, m] by weights [m, n] and bias [m]."""
    count, size = weights.shape
    return FakeSession(
        TensorSpec(name="in", dtype="float32", shape=(1, size)),
        TensorSpec(name="out", dtype="float32", shape=(1, count)),
        lambda x: (x @ weights.T + bias).astype(np.float32),
    )
