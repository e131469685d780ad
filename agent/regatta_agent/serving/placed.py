"""The placed candidate: opened, tested on golden samples, and answering infer requests. Only the engine's thread
calls it once it is open.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from regatta_agent.processing.processor import Processor
from regatta_agent.serving.failover import Failover, Opened, Switch, open_failover
from regatta_agent.serving.inference import InferRequest, NamedTensor
from regatta_agent.serving.interface import ModelInterface, body_limit_bytes, image_input
from regatta_agent.serving.processed import MAX_PROCESSED_BYTES, infer_processed, open_processor
from regatta_agent.serving.spec import ServeSpec
from regatta_agent.serving.stacked import infer_stacked
from regatta_protocol.codec import decode
from regatta_protocol.durable import read_bounded
from regatta_protocol.errors import Rejected
from regatta_protocol.manifest import MAX_MANIFEST_BYTES, Manifest
from regatta_protocol.processing import Processing
from regatta_runtimes.session import Session

__all__ = ["Answer", "PlacedModel", "open_placed", "read_labels"]

MAX_LABELS_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Answer:
    """The tensors of an answer with whether each goes as binary, output 0's class, and the runtime's own time."""

    tensors: list[tuple[NamedTensor, bool]]
    predicted: int | None
    compute_ns: int


class PlacedModel:
    """An opened session with its interface."""

    def __init__(self, session: Session, interface: ModelInterface, processor: Processor) -> None:
        self._session = session
        self.interface = interface
        self.processor = processor

    def body_limit_bytes(self) -> int:
        """Return how long the body of an infer request may be."""
        limit = body_limit_bytes(self.interface.inputs)
        return limit if self.processor.takes_raw else max(limit, MAX_PROCESSED_BYTES)

    def infer(self, request: InferRequest) -> Answer:
        """Return the model's answer.

        Raises:
            Rejected: when the request does not fit the model.
            Retryable: when the runtime fails.
        """
        if request.processed:
            done = infer_processed(self.processor, self.interface, self._session, request)
            return Answer(done.tensors, self.interface.predicted_class(done.outputs), done.compute_ns)
        wanted = self.interface.wanted(request)
        if request.stacked:
            outputs, real, compute_ns = infer_stacked(self.interface, self._session, request)
            return Answer(self.interface.answer(outputs, wanted, real=real), None, compute_ns)
        natives, real = self.interface.to_native(request)
        began_ns = time.perf_counter_ns()
        outputs = self._session.run(natives)
        compute_ns = time.perf_counter_ns() - began_ns
        tensors = self.interface.answer(outputs, wanted, real=real)
        return Answer(tensors, self.interface.predicted_class(outputs), compute_ns)

    def close(self) -> None:
        """Release the runtime."""
        self._session.close()


def read_labels(path: Path | None) -> tuple[str, ...]:
    """Return the labels of the classes, one a line.

    Raises:
        Rejected: when the file is not UTF-8 text, or too large.
    """
    if path is None:
        return ()
    try:
        return tuple(read_bounded(path, MAX_LABELS_BYTES).decode().splitlines())
    except UnicodeDecodeError as err:
        raise Rejected(f"the labels in {path} are not UTF-8 text") from err


def open_placed(
    spec: ServeSpec, on_switch: Callable[[Switch], None], on_slow: Callable[[], None]
) -> tuple[PlacedModel, Failover, Opened]:
    """Return the model opened as `spec` says.

    Args:
        spec: of the worker.
        on_switch: told when another candidate serves; see Failover.
        on_slow: told when what serves has become slow.

    Raises:
        Rejected: when a file is missing or damaged, or the self-test fails.
        Retryable: when the runtime fails.
    """
    for path in (spec.manifest_path, spec.labels_path, spec.golden_path):
        if path is not None and not path.is_file():
            raise Rejected(f"{path} of {spec.model}:{spec.version} is not there: fetch the version again")
    processing, labels = Processing(), read_labels(spec.labels_path)
    if spec.manifest_path is not None:
        manifest = decode(Manifest, read_bounded(spec.manifest_path, MAX_MANIFEST_BYTES), MAX_MANIFEST_BYTES)
        processing = manifest.processing
    failover, opened = open_failover(spec, on_switch, on_slow)
    if processing.image is None and processing.audio is None:
        processing = processing.model_copy(update={"image": image_input(failover.inputs)})
    interface = ModelInterface(failover.inputs, failover.outputs, labels, processing.image)
    return PlacedModel(failover, interface, open_processor(processing, interface)), failover, opened
