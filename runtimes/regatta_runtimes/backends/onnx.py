"""ONNX Runtime, for variants in ONNX: on the processor, or on a GPU by the CUDA or TensorRT provider.

`delegate` is cpu, ref (the processor's without graph optimizations, for golden samples), cuda or tensorrt. Options are
the provider's own. By itself ONNX Runtime leaves nodes to the processor in silence, and a whole model when a provider
cannot be loaded, so both are refused as a CpuFallback. Its tensors state no quantization: a quantized model does that
inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np

from regatta_protocol.errors import Rejected
from regatta_protocol.values import TensorSpec
from regatta_runtimes.backends.vendor_log import taken_in
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.errors import (
    CpuFallback,
    CreateFailed,
    InvokeFailed,
    PrepareFailed,
    RuntimeMissing,
    one_line,
)
from regatta_runtimes.worker.session import Array, Session, check_kinds, check_shapes

__all__ = ["OnnxSession", "open_session", "version"]

_PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
_CPU = "CPUExecutionProvider"
_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")  # the same module; a board has one of them
_NO_FALLBACK = "fallback to CPU EP has been explicitly disabled"
_DTYPES = {"float": "float32", "double": "float64"}  # others are numpy's own names


def _vendor() -> Any:  # noqa: ANN401 - an untyped module
    try:
        return import_module("onnxruntime")
    except ImportError as err:
        raise RuntimeMissing(f"ONNX Runtime cannot be imported ({err}): pip install 'regatta-edge[onnx]'") from err


def version() -> str:
    """Return the version that is installed, after importing it."""
    return str(_vendor().__version__)


def _vendor_errors() -> tuple[type[Exception], ...]:
    """Return what ONNX Runtime raises: its exceptions have no common base of their own."""
    state = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    own = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*own, RuntimeError, ValueError, SystemError)


def open_session(candidate: Candidate, model_path: Path) -> Session:
    """Return the model opened by ONNX Runtime.

    Raises:
        CreateFailed: when the provider is not here, or ONNX Runtime refuses the model.
        CpuFallback: when the processor would compute it under the accelerator's name.
    """
    vendor = _vendor()
    options = vendor.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = candidate.threads, 1
    options.log_severity_level = 3  # errors
    providers: list[Any] = [_CPU]
    if candidate.delegate == "ref":
        options.graph_optimization_level = vendor.GraphOptimizationLevel.ORT_DISABLE_ALL
    elif candidate.delegate != "cpu":
        providers = [(_provider(vendor, candidate), dict(candidate.plugin.options) if candidate.plugin else {})]
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        with taken_in() as log:
            session = vendor.InferenceSession(str(model_path), sess_options=options, providers=providers)
    except _vendor_errors() as err:
        kind = CpuFallback if _NO_FALLBACK in str(err) else CreateFailed
        raise kind(f"{candidate.id} cannot build {model_path.name}: {one_line(err)}") from err
    opened = OnnxSession.over(session, candidate)
    first = session.get_providers()[0]
    wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
    if first != wanted:
        raise CpuFallback(
            f"{candidate.id} would be computed by {first}: {log.causes() or f'{wanted} cannot be loaded'}"
        )
    return opened


def _provider(vendor: Any, candidate: Candidate) -> str:  # noqa: ANN401
    """Return the vendor's name of the accelerator's provider."""
    available = [name for name, provider in _PROVIDERS.items() if provider in vendor.get_available_providers()]
    if candidate.delegate not in available:
        installed = ", ".join(name for name in _DISTRIBUTIONS if _is_installed(name)) or "this build"
        raise CreateFailed(
            f"{candidate.id}: {installed} has no provider {candidate.delegate} (it has "
            f"{', '.join(available) or 'only the processor'}): install the onnxruntime-gpu of this board"
        )
    return _PROVIDERS[candidate.delegate]


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


class OnnxSession:
    """A Session over an InferenceSession."""

    def __init__(self, session: Any, candidate: Candidate, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:  # noqa: ANN401
        self._session: Any = session
        self._candidate = candidate
        self._errors = _vendor_errors()
        self._inputs = tuple(_spec(node) for node in inputs)
        self._outputs = tuple(_spec(node) for node in outputs)
        self._names = [spec.name for spec in self._inputs]
        self._dtypes = [np.dtype(spec.dtype) for spec in self._inputs]

    @classmethod
    def over(cls, session: Any, candidate: Candidate) -> OnnxSession:  # noqa: ANN401
        """Return a session over an opened model.

        Raises:
            PrepareFailed: when an input or output is no tensor of numbers.
        """
        try:
            return cls(session, candidate, session.get_inputs(), session.get_outputs())
        except (TypeError, ValueError) as err:
            raise PrepareFailed(f"{candidate.id} cannot prepare its tensors: {one_line(err)}") from err

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    @property
    def delegated_nodes(self) -> int:
        """One for all: none is left to the processor, and ONNX Runtime does not tell how many there are."""
        return 1

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Return one array per output; see Session."""
        if self._session is None:
            raise Rejected(f"{self._candidate.id} is closed: open a new session")
        check_kinds(inputs, self._inputs, self._dtypes)
        check_shapes(inputs, self._inputs)
        try:
            return list(self._session.run(None, dict(zip(self._names, inputs, strict=True))))
        except self._errors as err:
            raise InvokeFailed(f"{self._candidate.id} failed to infer: {one_line(err)}") from err

    def close(self) -> None:
        """Release the model."""
        self._session = None


def _spec(node: Any) -> TensorSpec:  # noqa: ANN401
    """Return the spec of an input or output; a size that has a name, or none, may be any.

    Raises:
        ValueError: when it is no tensor of numbers.
    """
    if not node.type.startswith("tensor(") or node.type == "tensor(string)":
        raise ValueError(f"{node.name!r} is a {node.type}: only tensors of numbers can be served")
    dtype = node.type[len("tensor(") : -1]
    shape = tuple(size if isinstance(size, int) else -1 for size in node.shape)
    return TensorSpec(name=node.name, dtype=np.dtype(_DTYPES.get(dtype, dtype)).name, shape=shape)
