"""The placed candidate: opened, tested on golden samples, and answering infer requests. Only the engine's thread
calls it once it is open.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regatta_agent.serving.events import SelfTest
from regatta_agent.serving.inference import InferRequest, NamedTensor
from regatta_agent.serving.interface import ModelInterface, image_input
from regatta_agent.serving.spec import ServeSpec
from regatta_agent.serving.tensors import Array
from regatta_protocol.codec import decode
from regatta_protocol.durable import read_bounded
from regatta_protocol.errors import Rejected
from regatta_protocol.manifest import MAX_MANIFEST_BYTES, Manifest
from regatta_runtimes.candidate import parse_candidate_id
from regatta_runtimes.samples import random_inputs, read_golden
from regatta_runtimes.score import snr_db
from regatta_runtimes.session import Session, dequantize, open_session, quantize

__all__ = ["Answer", "PlacedModel", "judge_golden", "open_placed", "read_labels"]

MAX_LABELS_BYTES = 4 * 1024 * 1024
_SELF_TEST_SAMPLES = 16  # what write_golden makes; each costs one inference before the worker is ready
_MIN_SNR_DB = 20.0  # a tenth of the signal's amplitude; sound int8 kernels differ by 1 LSB, 40 dB and better
_MIN_AGREEMENT = 0.9  # of top-1: on noise a sound int8 model may be far from the reference and yet decide alike


@dataclass(frozen=True)
class Answer:
    """The tensors of an answer with whether each goes as binary, output 0's class, and the runtime's own time."""

    tensors: list[tuple[NamedTensor, bool]]
    predicted: int | None
    compute_ns: int


class PlacedModel:
    """An opened session with its interface."""

    def __init__(self, session: Session, interface: ModelInterface) -> None:
        self._session = session
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
        """Return how the model does on golden samples; without any it must at least infer once.

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
        samples = goldens.inputs[:_SELF_TEST_SAMPLES]
        answers = [self._session.run(sample) for sample in samples]
        if goldens.outputs is None:
            return SelfTest(
                samples=0, passed=True, reason=f"no golden outputs of variant {variant}: inferences succeeded"
            )
        if len(goldens.outputs) != len(self.interface.outputs):
            raise Rejected(
                f"the golden samples have {len(goldens.outputs)} outputs of variant {variant} and the model "
                f"{len(self.interface.outputs)}"
            )
        real = [
            np.stack([dequantize(answer[index], spec) for answer in answers])
            for index, spec in enumerate(self.interface.outputs)
        ]
        return judge_golden(real, [output[: len(samples)] for output in goldens.outputs])

    def close(self) -> None:
        """Release the runtime."""
        self._session.close()


def judge_golden(outputs: Sequence[Array], references: Sequence[Array]) -> SelfTest:
    """Return the verdict over real values, one array [n, …] per output.

    It passes with an SNR of 20 dB, or when 90 % of the samples have the same largest element in output 0.
    """
    n = len(outputs[0])
    shaped = [np.reshape(reference, output.shape) for output, reference in zip(outputs, references, strict=True)]
    snr = snr_db(outputs, shaped)
    first, expected = outputs[0].reshape(n, -1), shaped[0].reshape(n, -1)
    agreement = float(np.mean(first.argmax(axis=1) == expected.argmax(axis=1))) if first.shape[1] > 1 else None
    finite = all(bool(np.isfinite(output).all()) for output in outputs)
    passed = finite and (snr >= _MIN_SNR_DB or (agreement or 0.0) >= _MIN_AGREEMENT)
    words = "" if agreement is None else f", {agreement:.0%} agree on the largest element"
    reason = f"{n} golden samples: {snr:.1f} dB to the reference{words}"
    if not finite:
        reason += "; an output is NaN or infinite"
    return SelfTest(samples=n, snr_db=snr, top1_agreement=agreement, passed=passed, reason=reason)


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
    """
    candidate = parse_candidate_id(spec.candidate_id)
    for path in (spec.variant_path, spec.manifest_path, spec.labels_path, spec.golden_path):
        if path is not None and not path.is_file():
            raise Rejected(f"{path} of {spec.model}:{spec.version} is not there: fetch the version again")
    image, labels = None, read_labels(spec.labels_path)
    if spec.manifest_path is not None:
        image = decode(Manifest, read_bounded(spec.manifest_path, MAX_MANIFEST_BYTES), MAX_MANIFEST_BYTES).input
    session = open_session(candidate, spec.variant_path)
    image = image or image_input(session.inputs)
    placed = PlacedModel(session, ModelInterface(session.inputs, session.outputs, labels, image))
    self_test = placed.self_test(spec.golden_path, candidate.variant)
    if not self_test.passed:
        placed.close()
        raise Rejected(f"{spec.candidate_id} of {spec.model}:{spec.version} fails its self-test: {self_test.reason}")
    return placed, self_test
