"""The session over a TFLite `Interpreter`, an API that LiteRT and tflite-runtime share.

Both vendors' packages are untyped: their objects stay inside this module as Any. XNNPACK is the default delegate of
the AUTO resolver; it may take no node at all (tflite-runtime 2.14 on int8 models), hence `delegated_nodes`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regatta_protocol.errors import Rejected
from regatta_protocol.values import TensorSpec
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.errors import CreateFailed, InvokeFailed, PrepareFailed, one_line
from regatta_runtimes.worker.session import Array, check_kinds, check_shapes, samples_of

__all__ = ["RESOLVERS", "InterpreterSession"]

# delegate -> member of the vendor's OpResolverType; external delegates get the nodes before any other would
RESOLVERS = {"xnnpack": "AUTO", "none": "BUILTIN_WITHOUT_DEFAULT_DELEGATES", "ref": "BUILTIN_REF"}
_PLAIN = RESOLVERS["none"]


def _spec(detail: dict[str, Any]) -> TensorSpec:
    """Return the spec of an interpreter's tensor; only per-tensor quantization has a scale."""
    quantization = detail["quantization_parameters"]
    scales, zero_points = quantization["scales"], quantization["zero_points"]
    signature = detail.get("shape_signature")
    shape = detail["shape"] if signature is None or len(signature) != len(detail["shape"]) else signature
    return TensorSpec(
        name=detail["name"],
        dtype=np.dtype(detail["dtype"]).name,
        shape=tuple(int(size) for size in shape),
        scale=float(scales[0]) if len(scales) == 1 else None,
        zero_point=int(zero_points[0]) if len(scales) == 1 else None,
    )


class InterpreterSession:
    """A Session over an interpreter of `vendor`, a module with Interpreter and OpResolverType."""

    def __init__(self, interpreter: Any, candidate: Candidate, delegated_nodes: int) -> None:  # noqa: ANN401 - untyped vendor
        self._interpreter: Any = interpreter
        self._candidate = candidate
        self._input_details: list[dict[str, Any]] = interpreter.get_input_details()
        self._output_details: list[dict[str, Any]] = interpreter.get_output_details()
        self._inputs = tuple(_spec(detail) for detail in self._input_details)
        self._outputs = tuple(_spec(detail) for detail in self._output_details)
        self._shapes = [tuple(int(n) for n in detail["shape"]) for detail in self._input_details]
        self._dtypes = [np.dtype(detail["dtype"]) for detail in self._input_details]
        self._delegated_nodes = delegated_nodes

    @classmethod
    def open(cls, vendor: Any, candidate: Candidate, model_path: Path) -> InterpreterSession:  # noqa: ANN401
        """Return the model built with the vendor's interpreter.

        Raises:
            CreateFailed: when the delegate cannot be loaded, or the vendor refuses the model.
            PrepareFailed: when the delegate refuses the graph, or the tensors cannot be allocated.
        """
        delegates = []
        if candidate.delegate not in RESOLVERS:
            from regatta_runtimes.backends.plugin import load_plugin  # brings the table of delegates, half a megabyte

            delegates.append(load_plugin(vendor, candidate))
        try:
            interpreter = vendor.Interpreter(
                model_path=str(model_path),
                num_threads=candidate.threads,
                experimental_op_resolver_type=getattr(vendor.OpResolverType, RESOLVERS.get(candidate.delegate, _PLAIN)),
                experimental_delegates=delegates,
            )
        except (RuntimeError, ValueError, SystemError) as err:
            # the constructor also applies the delegate, which fails with a RuntimeError; a bad file is a ValueError
            kind = PrepareFailed if delegates and isinstance(err, RuntimeError) else CreateFailed
            raise kind(f"{candidate.id} cannot build {model_path.name}: {one_line(err)}") from err
        try:
            interpreter.allocate_tensors()
            operators = [str(operator["op_name"]) for operator in interpreter._get_ops_details()]
        except (RuntimeError, ValueError, SystemError) as err:
            specs = (
                tuple(_spec(detail) for detail in interpreter.get_input_details()),
                tuple(_spec(detail) for detail in interpreter.get_output_details()),
            )
            raise PrepareFailed(f"{candidate.id} cannot prepare {model_path.name}: {one_line(err)}", specs) from err
        return cls(interpreter, candidate, operators.count("DELEGATE"))

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    @property
    def delegated_nodes(self) -> int:
        return self._delegated_nodes

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Return one array per output; see Session."""
        if self._interpreter is None:
            raise Rejected(f"{self._candidate.id} is closed: open a new session")
        check_kinds(inputs, self._inputs, self._dtypes)
        if any(array.shape != shape for array, shape in zip(inputs, self._shapes, strict=True)):
            self._resize(inputs)
        try:
            for array, detail in zip(inputs, self._input_details, strict=True):
                self._interpreter.set_tensor(detail["index"], array)
            self._interpreter.invoke()
            return [self._interpreter.get_tensor(detail["index"]) for detail in self._output_details]
        except (RuntimeError, ValueError, SystemError) as err:
            raise InvokeFailed(f"{self._candidate.id} failed to infer: {one_line(err)}") from err

    def run_each(self, stacks: Sequence[Array]) -> Iterator[list[Array]]:
        """Yield the outputs of each sample; see session.run_each."""
        if self._interpreter is None:
            raise Rejected(f"{self._candidate.id} is closed: open a new session")
        check_kinds(stacks, self._inputs, self._dtypes)
        first = [stack[:1] for stack in stacks]
        if any(array.shape != shape for array, shape in zip(first, self._shapes, strict=True)):
            self._resize(first)
        put, invoke, get = self._interpreter.set_tensor, self._interpreter.invoke, self._interpreter.get_tensor
        inputs = [detail["index"] for detail in self._input_details]
        outputs = [detail["index"] for detail in self._output_details]
        try:
            for sample in samples_of(stacks):
                for index, array in zip(inputs, sample, strict=True):
                    put(index, array)
                invoke()
                yield [get(index) for index in outputs]
        except (RuntimeError, ValueError, SystemError) as err:
            raise InvokeFailed(f"{self._candidate.id} failed to infer: {one_line(err)}") from err

    def _resize(self, inputs: Sequence[Array]) -> None:
        """Give inputs of changeable size their new shape."""
        check_shapes(inputs, self._inputs)
        try:
            for array, detail in zip(inputs, self._input_details, strict=True):
                self._interpreter.resize_tensor_input(detail["index"], list(array.shape))
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError, SystemError) as err:
            raise InvokeFailed(f"{self._candidate.id} cannot take this shape: {one_line(err)}") from err
        self._shapes = [array.shape for array in inputs]

    def close(self) -> None:
        """Release the model."""
        self._interpreter = None
