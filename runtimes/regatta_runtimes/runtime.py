"""The runtimes, as data: which module drives each, which model format it takes, and its own ways on the processor.

Imports neither numpy nor a runtime. They stand in order of preference, the simplest first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = [
    "PLUGIN_RUNTIMES",
    "RUNTIMES",
    "ModelFormat",
    "RuntimeFacts",
    "format_of",
    "is_own",
    "runtime_facts",
    "runtime_for",
]

ModelFormat = Literal["tflite", "onnx"]

PLUGIN_RUNTIMES = ("litert", "tflite")  # those that load a TFLite delegate from a library


@dataclass(frozen=True)
class RuntimeFacts:
    """One runtime. `cpu_delegates` are its ways of using the processor, `plain` the simplest of them."""

    module: str
    model_format: ModelFormat = "tflite"
    cpu_delegates: tuple[str, ...] = ("xnnpack", "none")
    probe: str = "probe.tflite"  # the smallest model, which it must run to count as usable here
    memory_in_files: bool = (
        False  # its drivers hold memory as anonymous files (Mesa's llvmpipe), which count as written
    )

    @property
    def plain(self) -> str:
        return self.cpu_delegates[-1]


RUNTIMES: Mapping[str, RuntimeFacts] = {
    "litert": RuntimeFacts("regatta_runtimes.backends.litert"),
    "tflite": RuntimeFacts("regatta_runtimes.backends.tflite"),
    "compiled": RuntimeFacts("regatta_runtimes.backends.compiled", cpu_delegates=("cpu",), memory_in_files=True),
    "onnx": RuntimeFacts("regatta_runtimes.backends.onnx", "onnx", ("cpu",), "probe.onnx", memory_in_files=True),
}


def runtime_facts(name: str) -> RuntimeFacts:
    """Return what is known of a runtime; one that a caller added is taken for an interpreter of TFLite models."""
    return RUNTIMES.get(name) or RuntimeFacts(module="")


def runtime_for(model_format: ModelFormat, preferred: str) -> str:
    """Return the runtime to open a format with: the preferred one where it takes it, or the first that does."""
    if runtime_facts(preferred).model_format == model_format:
        return preferred
    return next(name for name, facts in RUNTIMES.items() if facts.model_format == model_format)


def is_own(runtime: str, delegate: str) -> bool:
    """Return whether the runtime's own kernels compute, on the processor: no vendor's library is in the way."""
    return delegate in (*runtime_facts(runtime).cpu_delegates, "ref")


def format_of(path: Path) -> ModelFormat:
    """Return a model file's format by its first bytes; a file that is neither counts as TFLite, and is refused there.

    ONNX has no magic number: an exporter writes field 1 (ir_version, a varint: 0x08) first, as protobuf's own
    serializers do.

    Raises:
        OSError: when it cannot be read.
    """
    head = _head(path)
    return "onnx" if head[:1] == b"\x08" and head[4:8] != b"TFL3" else "tflite"


def is_model(path: Path) -> bool:
    """Return whether a file begins as a TFLite or an ONNX model does; raises OSError when it cannot be read."""
    head = _head(path)
    return head[:1] == b"\x08" or head[4:8] == b"TFL3"


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)
