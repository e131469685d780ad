"""The placed candidate: opened, tested on golden samples, and answering infer requests. Only the engine's thread
calls it once it is open.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from regatta_agent.serving.events import SelfTest
from regatta_agent.serving.fpga import hold_overlay
from regatta_agent.serving.inference import InferRequest, NamedTensor
from regatta_agent.serving.interface import ModelInterface, image_input
from regatta_agent.serving.spec import ServeSpec
from regatta_protocol.codec import decode
from regatta_protocol.durable import read_bounded
from regatta_protocol.errors import RegattaError, Rejected
from regatta_protocol.manifest import MAX_MANIFEST_BYTES, Manifest
from regatta_runtimes.candidate import parse_candidate_id
from regatta_runtimes.fpga import Hold
from regatta_runtimes.reference import compare
from regatta_runtimes.samples import random_inputs, read_golden
from regatta_runtimes.session import Session, open_session, quantize

__all__ = ["Answer", "PlacedModel", "open_placed", "read_labels"]

MAX_LABELS_BYTES = 4 * 1024 * 1024
_SELF_TEST_BUDGET_S = 1.0  # at least two samples are compared however long they take


@dataclass(frozen=True)
class Answer:
    """The tensors of an answer with whether each goes as binary, output 0's class, and the runtime's own time."""

    tensors: list[tuple[NamedTensor, bool]]
    predicted: int | None
    compute_ns: int


class PlacedModel:
    """An opened session with its interface."""

    def __init__(self, session: Session, interface: ModelInterface, hold: Hold | None = None) -> None:
        self._session = session
        self._hold = hold
        self.interface = interface

    def infer(self, request: InferRequest) -> Answer:
        """Return the model's answer.

        Raises:
            Rejected: when the request does not fit the model.
            Retryable: when the runtime fails.
        """
        wanted = self.interface.wanted(request)
        natives, real = self.interface.to_native(request)
        began_ns = time.perf_counter_ns()
        outputs = self._session.run(natives)
        compute_ns = time.perf_counter_ns() - began_ns
        tensors = self.interface.answer(outputs, wanted, real=real)
        return Answer(tensors, self.interface.predicted_class(outputs), compute_ns)

    def self_test(self, golden: Path | None, variant: str) -> SelfTest:
        """Return how the model does on golden samples, by the race's own measure; without any it must infer once.

        Raises:
            Rejected: when the golden file does not fit the model.
            Retryable: when the runtime fails.
        """
        specs = self.interface.inputs
        if golden is None:
            noise = random_inputs([[spec] for spec in specs], count=1, seed=0)
            sample = [
                quantize(array[0].reshape([max(size, 1) for size in spec.shape]), spec)
                for array, spec in zip(noise, specs, strict=True)
            ]
            self._session.run(sample)
            return SelfTest(samples=0, passed=True, reason="no golden samples: one inference on noise succeeded")
        goldens = read_golden(golden, variant, specs)
        if goldens.outputs is None:
            self._session.run(goldens.inputs[0])
            return SelfTest(samples=0, passed=True, reason=f"no golden outputs of variant {variant}: it infers")
        found = compare(self._session, goldens, _SELF_TEST_BUDGET_S)
        return SelfTest(samples=found.samples, snr_db=found.snr_db, passed=found.sound, reason=found.detail)

    def close(self) -> None:
        """Release the runtime, and after it the FPGA."""
        self._session.close()
        if self._hold is not None:
            self._hold.close()


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


def open_placed(spec: ServeSpec) -> tuple[PlacedModel, SelfTest]:
    """Return the model opened as `spec` says, and its self-test.

    Raises:
        Rejected: when a file is missing or damaged, or the self-test fails.
        Retryable: when the runtime fails.
        RegattaError: when the FPGA overlay that the candidate needs cannot be loaded.
    """
    candidate = replace(parse_candidate_id(spec.candidate_id), plugin=spec.plugin)
    for path in (spec.variant_path, spec.manifest_path, spec.labels_path, spec.golden_path):
        if path is not None and not path.is_file():
            raise Rejected(f"{path} of {spec.model}:{spec.version} is not there: fetch the version again")
    image, labels = None, read_labels(spec.labels_path)
    if spec.manifest_path is not None:
        image = decode(Manifest, read_bounded(spec.manifest_path, MAX_MANIFEST_BYTES), MAX_MANIFEST_BYTES).input
    hold = hold_overlay(spec, candidate)
    try:
        session = open_session(candidate, spec.variant_path)
    except RegattaError:
        if hold is not None:
            hold.close()
        raise
    image = image or image_input(session.inputs)
    placed = PlacedModel(session, ModelInterface(session.inputs, session.outputs, labels, image), hold)
    self_test = placed.self_test(spec.golden_path, candidate.variant)
    if not self_test.passed:
        placed.close()
        raise Rejected(f"{spec.candidate_id} of {spec.model}:{spec.version} fails its self-test: {self_test.reason}")
    return placed, self_test
