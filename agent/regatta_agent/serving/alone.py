"""A model file served without a fleet: a worker of its own for as long as a command needs it.

A model is code, so even a single command lets a worker open it. The candidate is the plain one of the file's format:
LiteRT with XNNPACK (tflite-runtime where that is all there is), or ONNX Runtime on the processor.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from regatta_agent.serving.events import Failed, Ready, parse_event
from regatta_agent.serving.spec import ServeLimits, ServeSpec
from regatta_protocol.errors import Rejected, Retryable
from regatta_protocol.ids import ModelName, digest_of_file
from regatta_protocol.manifest import FileRef, Manifest, Variant
from regatta_protocol.plain import to_json
from regatta_protocol.processing import Processing, as_json

__all__ = ["MODEL_NAME", "ModelFile", "is_model_file", "serve_alone"]

MODEL_NAME = ModelName("model")
_SUFFIXES = (".tflite", ".onnx")
_START_LIMITS = ServeLimits(drain_quiet_s=0.0, drain_s=5.0)
_END_S = 10.0
_MAX_LINE_BYTES = 65_536


@dataclass(frozen=True)
class ModelFile:
    """A model file with what its manifest would say."""

    path: Path
    labels: Path | None = None  # one a line
    processing: Processing | None = None
    threads: int = 1


def is_model_file(text: str) -> bool:
    """Return whether a command's MODEL names a file and not a served model."""
    return text.endswith(_SUFFIXES)


@contextlib.contextmanager
def serve_alone(model: ModelFile) -> Iterator[Path]:
    """Serve the file under the name MODEL_NAME, and yield the socket's path; end the worker afterwards.

    Raises:
        Rejected: when the file is not there, or no runtime here serves it.
        Retryable: when the worker ends at once without a word.
    """
    if not model.path.is_file():
        raise Rejected(f"{model.path} is not there")
    with tempfile.TemporaryDirectory(prefix="regatta-") as folder:
        spec = _spec(model, Path(folder))
        spec_path = Path(folder) / "spec.json"
        spec_path.write_bytes(to_json(spec))
        worker = subprocess.Popen(
            [sys.executable, "-m", "regatta_agent.serving", str(spec_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait_until_ready(worker, model.path)
            yield spec.socket_path
        finally:
            _end(worker)


def _spec(model: ModelFile, folder: Path) -> ServeSpec:
    ref = FileRef(digest=digest_of_file(model.path), size_bytes=model.path.stat().st_size)
    processing = model.processing or Processing()
    manifest = Manifest(
        name=MODEL_NAME,
        version=1,
        created_at="",
        variants=(Variant(name="given", file=ref, precision="given", inputs=(), outputs=()),),
        golden=ref,
        input=as_json(processing.image),
        audio=as_json(processing.audio),
        result=as_json(processing.result),
    )
    (folder / "manifest.json").write_bytes(manifest.model_dump_json(exclude_none=True).encode())
    return ServeSpec(
        model=MODEL_NAME,
        version=1,
        candidate_id=_candidate(model),
        variant_path=model.path.resolve(),
        manifest_path=folder / "manifest.json",
        labels_path=None if model.labels is None else model.labels.resolve(),
        socket_path=folder / "model.sock",
        limits=_START_LIMITS,
    )


def _candidate(model: ModelFile) -> str:
    if model.path.suffix == ".onnx":
        return f"onnx/given/cpu/t{model.threads}"
    runtime = "litert" if find_spec("ai_edge_litert") is not None else "tflite"
    return f"{runtime}/given/xnnpack/t{model.threads}"


def _wait_until_ready(worker: subprocess.Popen[bytes], path: Path) -> None:
    """Return when the worker serves; its own limit for loading and testing bounds the wait."""
    assert worker.stdout is not None
    line = worker.stdout.readline(_MAX_LINE_BYTES)
    said = parse_event(line) if line else None
    if isinstance(said, Failed):
        raise Rejected(f"{path} cannot be served: {said.reason}")
    if not isinstance(said, Ready):
        raise Retryable(f"the worker for {path} ended at once: try `regatta-agent race {path}`")


def _end(worker: subprocess.Popen[bytes]) -> None:
    try:
        worker.communicate(timeout=_END_S)  # its input ends, and so it drains
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()
