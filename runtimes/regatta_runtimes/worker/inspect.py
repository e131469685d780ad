"""What a model file is: its tensors, operators and precision. Models are code, so a worker process reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from regatta_protocol.errors import Misuse, Rejected, Retryable
from regatta_protocol.manifest import MAX_FILE_BYTES
from regatta_protocol.measurement import Outcome
from regatta_protocol.values import TensorSpec
from regatta_runtimes.errors import RuntimeMissing
from regatta_runtimes.runtime import ModelFormat, format_of
from regatta_runtimes.worker.job import Command, Describe, Described, Failed
from regatta_runtimes.worker.nursery import Nursery, WorkerEnded

__all__ = ["ModelFacts", "inspect_model"]

# tried in this order; one that can run the model is enough
_RUNTIMES: Mapping[ModelFormat, tuple[str, ...]] = {"tflite": ("litert", "tflite"), "onnx": ("onnx",)}


@dataclass(frozen=True)
class ModelFacts:
    """What a .tflite or .onnx file says of itself.

    `requires` names the delegates without which it cannot run (edgetpu for a file of the Edge TPU compiler).
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: tuple[str, ...]  # names, each once, sorted
    precision: str  # float32, float16, int8, uint8, int16x8, int8-dynamic
    requires: tuple[str, ...]
    size_bytes: int
    model_format: ModelFormat = "tflite"


def inspect_model(path: Path, timeout_s: float = 20.0, *, backends: Mapping[str, str] | None = None) -> ModelFacts:
    """Return what the model is, after building it and inferring once with the first runtime that can.

    Raises:
        Rejected: when it is neither TFLite nor ONNX, is cut off or damaged, crashes or hangs the runtimes, or holds an
            operator that no runtime here supports (the message names it).
        Misuse: when no runtime is installed.
    """
    if not path.is_file():
        raise Rejected(f"{path} is not a file")
    size_bytes = path.stat().st_size
    if not 8 <= size_bytes <= MAX_FILE_BYTES:
        raise Rejected(f"{path} has {size_bytes} bytes: a model has 8 to {MAX_FILE_BYTES}. Is it the .tflite or .onnx?")
    refusals: list[str] = []
    missing: list[str] = []
    model_format = format_of(path)
    for runtime in _RUNTIMES[model_format]:
        try:
            found = _describe(runtime, path, timeout_s, backends)
        except RuntimeMissing as err:
            missing.append(str(err))
            continue
        if found.refusal is None or (found.requires and found.inputs):
            return ModelFacts(
                found.inputs,
                found.outputs,
                found.operators,
                found.precision,
                found.requires,
                size_bytes,
                model_format,
            )
        refusals.append(found.refusal)
    if not refusals:
        raise Misuse(f"no runtime is installed to inspect {path.name}: {'; '.join(missing)}")
    raise Rejected(
        f"no runtime here can run {path.name}: {'; '.join(dict.fromkeys(refusals))}. "
        "Convert it with built-in operators only, or push it beside a variant that runs here"
    )


def _describe(runtime: str, path: Path, timeout_s: float, backends: Mapping[str, str] | None) -> Described:
    """Return what one runtime says of the file."""
    command: Command = Describe(model_path=str(path.absolute()))
    try:
        with Nursery(runtime, backends) as nursery:
            answer = nursery.start().ask(command, timeout_s)
    except WorkerEnded as err:
        what = "hangs" if err.outcome == Outcome.HUNG else "crashes"
        raise Rejected(f"{path.name} {what} {runtime}: the worker that opened it {err.reason}") from err
    if isinstance(answer, Failed):
        if answer.stage == "missing":
            raise RuntimeMissing(answer.reason)
        raise Rejected(f"{path.name} cannot be used: {answer.reason}")
    if not isinstance(answer, Described):
        raise Retryable(f"the worker answered describe with {answer.kind}")
    return answer
