"""A session over LiteRT's CompiledModel: the file's own words for its tensors, and buffers that are used again.

Set, infer and get of a tiny model take 3.3 us so. The vendor's package is untyped: its objects stay inside as Any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from regatta_protocol.errors import Rejected
from regatta_protocol.values import TensorSpec
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.errors import InvokeFailed, PrepareFailed, one_line
from regatta_runtimes.model.flatbuffer import Graph, Survey
from regatta_runtimes.worker.samples import fixed_shape
from regatta_runtimes.worker.session import Array, check_kinds, check_shapes

__all__ = ["VENDOR_ERRORS", "CompiledModelFile", "CompiledSession"]

VENDOR_ERRORS = (RuntimeError, ValueError, SystemError)


@dataclass(frozen=True)
class CompiledModelFile:
    """A model file, and what it says of itself."""

    path: Path
    found: Survey
    graph: Graph

    @property
    def specs(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        return self.graph.inputs, self.graph.outputs


class CompiledSession:
    """A Session over a CompiledModel, whose tensor buffers are made once and used again."""

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - untyped vendor
        candidate: Candidate,
        file: CompiledModelFile,
        order: tuple[tuple[int, ...], tuple[int, ...]],
    ) -> None:
        """Keep the parts; `order` says where each input, and each output, stands in the vendor's signature."""
        self._model: Any = model
        self._candidate = candidate
        self._inputs, self._outputs = file.specs
        self._order = order
        self._operators = sum(file.found.operators.values())
        self._dtypes = [np.dtype(spec.dtype) for spec in self._inputs]
        self._shapes = [fixed_shape(spec) for spec in self._inputs]
        self._in_buffers: list[Any] = []
        self._out_buffers: list[Any] = []
        self._results: list[tuple[int, np.dtype[Any], tuple[int, ...]]] = []  # size, type and shape of each output
        self._make_buffers()

    @classmethod
    def over(cls, model: Any, candidate: Candidate, file: CompiledModelFile) -> CompiledSession:  # noqa: ANN401
        """Return a session over a compiled model.

        Raises:
            PrepareFailed: when its buffers cannot be made, or LiteRT has no buffers of the tensors' types.
        """
        try:
            key = next(iter(model.get_signature_list()))
            order = (
                _places(model.get_input_tensor_details(key), file.graph.input_tensors),
                _places(model.get_output_tensor_details(key), file.graph.output_tensors),
            )
            return cls(model, candidate, file, order)
        except (*VENDOR_ERRORS, TypeError, LookupError, StopIteration) as err:
            raise PrepareFailed(f"{candidate.id} cannot prepare its tensors: {one_line(err)}", file.specs) from err

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    @property
    def delegated_nodes(self) -> int:
        return self._operators

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Return one array per output; see Session."""
        if self._model is None:
            raise Rejected(f"{self._candidate.id} is closed: open a new session")
        check_kinds(inputs, self._inputs, self._dtypes)
        if any(array.shape != shape for array, shape in zip(inputs, self._shapes, strict=True)):
            self._resize(inputs)
        try:
            for array, place in zip(inputs, self._order[0], strict=True):
                self._in_buffers[place].write(array)
            self._model.run_by_index(0, self._in_buffers, self._out_buffers)
            return [
                self._out_buffers[place].read(count, dtype).reshape(shape)
                for place, (count, dtype, shape) in zip(self._order[1], self._results, strict=True)
            ]
        except VENDOR_ERRORS as err:
            raise InvokeFailed(f"{self._candidate.id} failed to infer: {one_line(err)}") from err

    def close(self) -> None:
        """Release the model."""
        if self._model is not None:
            self._in_buffers, self._out_buffers = [], []
            self._model.close()
            self._model = None

    def _resize(self, inputs: Sequence[Array]) -> None:
        """Give inputs of changeable size their new shape."""
        check_shapes(inputs, self._inputs)
        try:
            for array, place in zip(inputs, self._order[0], strict=True):
                self._model.resize_input_tensor(place, array.shape, strict=False)
            self._shapes = [array.shape for array in inputs]
            self._make_buffers()
        except VENDOR_ERRORS as err:
            raise InvokeFailed(f"{self._candidate.id} cannot take this shape: {one_line(err)}") from err

    def _make_buffers(self) -> None:
        """Make the buffers anew, for the shapes as they are."""
        self._in_buffers = self._model.create_input_buffers(0)
        self._out_buffers = self._model.create_output_buffers(0)
        key = next(iter(self._model.get_signature_list()))
        details = list(self._model.get_output_tensor_details(key).values())
        self._results = []
        for place, spec in zip(self._order[1], self._outputs, strict=True):
            shape = tuple(int(size) for size in details[place]["shape"])
            self._results.append((int(np.prod(shape, dtype=np.int64)), np.dtype(spec.dtype), shape))


def _places(details: Mapping[str, Any], tensors: tuple[int, ...]) -> tuple[int, ...]:
    """Return for each tensor its place in the signature, whose order and names may differ from the graph's."""
    numbers = [int(detail["index"]) for detail in details.values()]
    return tuple(numbers.index(tensor) for tensor in tensors)
