"""Makes a float .tflite of whatever a user has: the typed front of the conversions.

A .tflite is copied. Everything else is code or needs a framework, and is converted in a child process, where a crash, a
hang or memory without end becomes an error.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from regatta_fleet.optimize.process import DEFAULT_MEMORY_BYTES, ChildAnswer, run_module
from regatta_fleet.optimize.sources.kinds import SourceKind, name_source
from regatta_protocol.wire import Wire

__all__ = ["ConvertAnswer", "ConvertSpec", "resolve_source"]

Layout = Literal["as-is", "channels-last"]


class ConvertSpec(Wire):
    """One conversion, as the child reads it."""

    kind: SourceKind
    place: str
    factory: str | None = None
    output: str
    samples: str  # .npz: a PyTorch or ONNX model is traced with the first
    layout: Layout = "as-is"
    signature: str | None = None


class ConvertAnswer(ChildAnswer):
    """What was done, in words."""

    words: tuple[str, ...] = ()


def resolve_source(
    source: str,
    output: Path,
    *,
    samples: Path,
    layout: Layout = "as-is",
    signature: str | None = None,
    timeout_s: float = 600.0,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
) -> tuple[str, ...]:
    """Write the model that `source` names to `output` as a .tflite; returns what was done, in words.

    Args:
        samples: .npz with x; PyTorch and ONNX models are traced with its first, which fixes every shape.
        layout: channels-last makes the 4-dimensional inputs of a PyTorch or ONNX model [n, h, w, c].
        signature: the one to take of a SavedModel with several.

    Raises:
        Rejected: when there is no such model, or it cannot be converted; the text names the operator where one is.
        Misuse: when an extra is not installed; the text names it.
    """
    named = name_source(source)
    if named.kind == "tflite":
        shutil.copyfile(named.place, output)
        return ("as given",)
    spec = ConvertSpec(
        kind=named.kind,
        place=named.place,
        factory=named.factory,
        output=str(output),
        samples=str(samples),
        layout=layout,
        signature=signature,
    )
    return run_module(
        "regatta_fleet.optimize.sources.child",
        spec,
        ConvertAnswer,
        what=f"converting {source}",
        timeout_s=timeout_s,
        memory_bytes=memory_bytes,
    ).words
