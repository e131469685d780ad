"""An opened model: native tensors in, native tensors out. Only worker processes import this, for it needs numpy.

A backend is a module with `open_session(candidate, model_path)`; BACKENDS names one per runtime, and vendor code is
imported by the backend alone, when it opens. Real value of a quantized tensor = (q − zero_point) · scale
(Jacob et al. 2018, eq. 1).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt

from regatta_protocol.errors import Rejected
from regatta_protocol.values import TensorSpec
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.errors import RuntimeMissing
from regatta_runtimes.runtime import RUNTIMES

__all__ = [
    "BACKENDS",
    "Array",
    "Backend",
    "Repeating",
    "Session",
    "check_kinds",
    "check_shapes",
    "dequantize",
    "load_backend",
    "open_session",
    "quantize",
    "run_each",
    "samples_of",
]

Array = npt.NDArray[Any]

BACKENDS: dict[str, str] = {name: facts.module for name, facts in RUNTIMES.items()}


class Session(Protocol):
    """A model ready to infer. Not thread-safe; one owner."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def delegated_nodes(self) -> int:
        """How many nodes of the graph the delegate took over; 0 when it silently took none."""

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Return one array per output, owned by the caller.

        Raises:
            Rejected: when the inputs do not match the specs in count, dtype or shape.
            InvokeFailed: when the runtime fails.
        """

    def close(self) -> None:
        """Release the model. May be called twice; nothing else may follow."""


@runtime_checkable
class Repeating(Protocol):
    """A session that computes many samples with less around each than as many calls of `run` have."""

    def run_each(self, stacks: Sequence[Array]) -> Iterator[list[Array]]:
        """Yield what `run` returns for each sample; see the function of the same name."""


class Backend(Protocol):
    """What a backend module offers."""

    def version(self) -> str:
        """Return the runtime's version; importing it is allowed here.

        Raises:
            RuntimeMissing: when it is not installed.
        """

    def open_session(self, candidate: Candidate, model_path: Path) -> Session:
        """Return the opened model.

        Raises:
            RuntimeMissing: when the runtime is not installed.
            CreateFailed: when it cannot build this model.
        """


def load_backend(runtime: str, extra: Mapping[str, str] | None = None) -> Backend:
    """Return the backend of `runtime`, from `extra` (name -> module) or BACKENDS.

    Raises:
        RuntimeMissing: when there is none of that name, or its module is absent.
    """
    modules = {**BACKENDS, **(extra or {})}
    if runtime not in modules:
        raise RuntimeMissing(f"runtime {runtime!r} is not known here; there are {', '.join(sorted(modules))}")
    try:
        return cast(Backend, importlib.import_module(modules[runtime]))
    except ImportError as err:
        raise RuntimeMissing(
            f"the backend of runtime {runtime!r}, {modules[runtime]}, cannot be imported: {err}"
        ) from err


def open_session(candidate: Candidate, model_path: Path, extra: Mapping[str, str] | None = None) -> Session:
    """Return `model_path` opened as `candidate` says.

    Raises:
        RuntimeMissing: when the runtime is not installed; the message says how to get it.
        CreateFailed: when the runtime cannot build the model.
    """
    return load_backend(candidate.runtime, extra).open_session(candidate, model_path)


def run_each(session: Session, stacks: Sequence[Array]) -> Iterator[list[Array]]:
    """Yield the outputs of many samples, one after another; raises as Session.run when it comes to one.

    Args:
        session: what computes.
        stacks: of each input n samples along the first dimension, where the model has 1 or -1.
    """
    if isinstance(session, Repeating):
        return session.run_each(stacks)
    return (session.run(sample) for sample in samples_of(stacks))


def samples_of(stacks: Sequence[Array]) -> Iterator[tuple[Array, ...]]:
    """Yield the inputs of each sample, [1, …], without copying."""
    return zip(*(stack[:, np.newaxis] for stack in stacks), strict=True)


def check_kinds(inputs: Sequence[Array], specs: Sequence[TensorSpec], dtypes: Sequence[np.dtype[Any]]) -> None:
    """Do nothing when the inputs are as many as the model takes, and of its dtypes.

    Args:
        inputs: what was given.
        specs: what the model takes.
        dtypes: of `specs`, made once: this runs with every inference.

    Raises:
        Rejected: otherwise.
    """
    if len(inputs) != len(specs):
        raise Rejected(f"the model takes {len(specs)} inputs and got {len(inputs)}")
    for array, spec, dtype in zip(inputs, specs, dtypes, strict=True):
        if array.dtype != dtype:
            raise Rejected(f"input {spec.name!r} is {spec.dtype} and got {array.dtype}")


def check_shapes(inputs: Sequence[Array], specs: Sequence[TensorSpec]) -> None:
    """Do nothing when the inputs' shapes may be given for the tensors.

    Raises:
        Rejected: otherwise.
    """
    for array, spec in zip(inputs, specs, strict=True):
        if not _fits(array.shape, spec):
            raise Rejected(f"input {spec.name!r} has shape {list(spec.shape)} and got {list(array.shape)}")


def _fits(shape: tuple[int, ...], spec: TensorSpec) -> bool:
    """Return whether an array of this shape may be given for the tensor, whose size -1 may be any."""
    return len(shape) == len(spec.shape) and all(want in (-1, got) for got, want in zip(shape, spec.shape, strict=True))


def quantize(real: Array, spec: TensorSpec) -> Array:
    """Return real values as the tensor's native dtype, same shape.

    Integers are rounded half to even and clipped to the dtype's range; q = real / scale + zero_point.

    Raises:
        Rejected: when a value is not finite and the tensor is of integers.
    """
    dtype = np.dtype(spec.dtype)
    if dtype.kind in "fb":
        return np.ascontiguousarray(real, dtype=dtype)
    if spec.scale is None and np.asarray(real).dtype == dtype:
        return np.ascontiguousarray(real)
    values = np.array(real, dtype=np.float64)  # a copy, and then in place: temporaries cost more than the arithmetic
    if not np.isfinite(values).all():
        raise Rejected(f"tensor {spec.name!r} of {spec.dtype} cannot hold NaN or infinity: remove them from the input")
    if spec.scale is not None:
        values /= spec.scale
        values += spec.zero_point or 0
    info = np.iinfo(dtype)
    np.rint(values, out=values)
    np.clip(values, info.min, info.max, out=values)
    return np.ascontiguousarray(values.astype(dtype))


def dequantize(native: Array, spec: TensorSpec) -> npt.NDArray[np.float32]:
    """Return the tensor's real values as float32, same shape."""
    if spec.scale is None:
        return np.asarray(native, dtype=np.float32)
    shifted = np.asarray(native, dtype=np.float64) - (spec.zero_point or 0)
    return cast("npt.NDArray[np.float32]", (shifted * spec.scale).astype(np.float32))
