"""A contender opened and tested: in this process, or in a runner when a vendor's library computes it.

A seat answers in the tensors of the candidate that the worker began with, so that a client notices nothing of a change
of places between variants: what differs in dtype or quantization is converted by way of real values.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from regatta_agent.serving.events import SelfTest
from regatta_agent.serving.fpga import hold_overlay
from regatta_agent.serving.guarded import GuardedSession
from regatta_agent.serving.pace import Pace
from regatta_agent.serving.spec import Contender, ServeSpec
from regatta_agent.serving.tensors import Array
from regatta_protocol.errors import Rejected
from regatta_protocol.values import TensorSpec
from regatta_runtimes.candidate import parse_candidate_id
from regatta_runtimes.errors import CreateFailed
from regatta_runtimes.runtime import is_own
from regatta_runtimes.worker.reference import compare
from regatta_runtimes.worker.samples import GoldenSet, random_inputs, read_golden
from regatta_runtimes.worker.session import Session, dequantize, open_session, quantize, run_each, samples_of

if TYPE_CHECKING:
    from regatta_runtimes.fpga.loader import Hold

__all__ = ["Seat", "Signature", "is_guarded", "open_seat"]

_SELF_TEST_BUDGET_S = 1.0  # at least two samples are compared however long they take
# An answer later than this is called a hang: ten times the slow ones of the race, and not less than half a second, for
# a busy machine may withhold the processor that long; so the next best one answers within a second.
_HANG_FACTOR = 10.0
_HANG_FLOOR_S = 0.5
_TIMED = 9


@dataclass(frozen=True)
class Signature:
    """The tensors that a worker's clients see."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def is_guarded(candidate_id: str, guarded: bool) -> bool:
    """Return whether the candidate runs in a runner: always when a vendor's library computes it."""
    candidate = parse_candidate_id(candidate_id)
    return guarded or not is_own(candidate.runtime, candidate.delegate)


class Seat:
    """A session with what it needs to be judged. Used by one thread at a time."""

    def __init__(
        self, contender: Contender, session: Session, signature: Signature, max_slowdown: float,
        hold: Hold | None = None,
    ) -> None:  # fmt: skip
        self.contender = contender
        self.signature = signature
        self.session = session
        self._hold = hold
        self.pace = Pace(None if contender.latency is None else contender.latency.p50_us, max_slowdown)
        self.compute_ns = 0  # of the last inference, inside the runtime
        self.running_since_ns: int | None = None  # an inference in this process; any thread may read it
        self._rows = 1  # of the inference at hand
        self._own = Signature(session.inputs, session.outputs)
        self._same = _kinds(self._own) == _kinds(signature)

    @property
    def id(self) -> str:
        """The candidate's id."""
        return self.contender.candidate_id

    def run_rows(self, inputs: Sequence[Array], rows: int) -> list[Array]:
        """Return the outputs for inputs of so many requests joined, which may take so many times as long; see run."""
        self._rows = rows
        session = self.session
        patience_s = session.patience_s if isinstance(session, GuardedSession) else 0.0
        try:
            if isinstance(session, GuardedSession):
                session.patience_s = patience_s * rows
            return self.run(inputs)
        finally:
            self._rows = 1
            if isinstance(session, GuardedSession):
                session.patience_s = patience_s

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Return the outputs in the worker's signature; raises as Session.run."""
        if not self._same:
            inputs = _converted(inputs, self.signature.inputs, self._own.inputs)
        outputs = self.run_own(inputs)
        return outputs if self._same else _converted(outputs, self._own.outputs, self.signature.outputs)

    def run_each(self, stacks: Sequence[Array]) -> list[Array]:
        """Return each output of many samples, [n, …], computed one after another; raises as Session.run.

        Args:
            stacks: of each input n samples along the first dimension, where the signature has 1 or -1.
        """
        if not self._same:
            stacks = _converted(stacks, self.signature.inputs, self._own.inputs)
        answers = [self.run_own(one) for one in samples_of(stacks)] if self.is_remote else self._run_each_own(stacks)
        outputs = [np.concatenate(column) for column in zip(*answers, strict=True)]
        return outputs if self._same else _converted(outputs, self._own.outputs, self.signature.outputs)

    def _run_each_own(self, stacks: Sequence[Array]) -> list[list[Array]]:
        """Return run_own of each sample; what surrounds that would cost a tenth of a small model's inference."""
        clock_ns, answers = time.perf_counter_ns, list[list[Array]]()
        began_ns = self.running_since_ns = clock_ns()
        try:
            for outputs in run_each(self.session, stacks):
                answers.append(outputs)
                self.running_since_ns = clock_ns()
        finally:
            self.running_since_ns = None
        self.compute_ns = (clock_ns() - began_ns) // max(1, len(answers))
        return answers

    def run_own(self, inputs: Sequence[Array]) -> list[Array]:
        """Return the candidate's own outputs for its own inputs, and note how long it computed."""
        session = self.session
        if isinstance(session, GuardedSession):
            outputs = session.run(inputs)
            self.compute_ns = session.compute_ns
            return outputs
        began_ns = time.perf_counter_ns()
        self.running_since_ns = began_ns
        try:
            outputs = session.run(inputs)
        finally:
            self.running_since_ns = None
        self.compute_ns = time.perf_counter_ns() - began_ns
        return outputs

    def time_us(self, golden: Path | None) -> float:
        """Return the median of a few inferences, one after another as in the race."""
        inputs = _samples(golden, self.contender, self.session).inputs
        times = []
        for number in range(_TIMED + 1):
            self.run_own(inputs[number % len(inputs)])
            times.append(self.compute_ns)
        return float(np.median(times[1:])) / 1000

    def self_test(self, golden: Path | None) -> SelfTest:
        """Return how it does on golden samples, by the race's own measure; without any it must infer once.

        Raises:
            Rejected: when the golden file does not fit the model.
            Retryable: when the runtime fails.
        """
        goldens = _samples(golden, self.contender, self.session)
        if goldens.outputs is None:
            self.session.run(goldens.inputs[0])
            return SelfTest(samples=0, passed=True, reason="no golden outputs of its variant: one inference succeeded")
        found = compare(self.session, goldens, _SELF_TEST_BUDGET_S)
        return SelfTest(samples=found.samples, snr_db=found.snr_db, passed=found.sound, reason=found.detail)

    @property
    def is_remote(self) -> bool:
        """Whether it runs in a runner."""
        return isinstance(self.session, GuardedSession)

    def is_alive(self) -> bool:
        """Return False when its runner has ended."""
        return not isinstance(self.session, GuardedSession) or self.session.is_alive()

    def hang_s(self) -> float:
        """Return after how long an inference is called hanging."""
        return _hang_s(self.contender) * self._rows

    def samples(self, golden: Path | None) -> list[list[Array]]:
        """Return inputs to try it with, in its own dtypes: the golden samples, or noise."""
        return _samples(golden, self.contender, self.session).inputs

    def close(self) -> None:
        """Release the model, and after it the FPGA. May be called twice."""
        self.session.close()
        if self._hold is not None:
            self._hold.close()


def open_seat(
    contender: Contender, spec: ServeSpec, signature: Signature | None, *, guarded: bool = False
) -> tuple[Seat, SelfTest]:
    """Return the contender opened and tested.

    Args:
        contender: which one.
        spec: of the worker.
        signature: what the worker's clients see; None: the candidate's own tensors.
        guarded: run it in a runner also when it computes on the processor.

    Raises:
        Rejected: when a file is missing, the runtime or delegate refuses, the self-test fails, or its tensors cannot
            stand for the signature's.
        Retryable: when the runtime fails.
        RegattaError: when the FPGA overlay that it needs cannot be loaded.
    """
    if not contender.variant_path.is_file():
        raise Rejected(f"{contender.variant_path} of {spec.model}:{spec.version} is not there: fetch the version again")
    with ExitStack() as stack:  # what was taken is released again, unless the seat takes it over
        hold = hold_overlay(spec, contender)
        if hold is not None:
            stack.enter_context(hold)
        session = _open(contender, spec, guarded)
        stack.callback(session.close)
        own = Signature(session.inputs, session.outputs)
        if signature is not None and _shapes(own) != _shapes(signature):
            raise CreateFailed(f"{contender.candidate_id} has other tensors than what is served: it cannot stand in")
        seat = Seat(contender, session, signature or own, spec.max_slowdown, hold)
        tested = seat.self_test(spec.golden_path)
        if not tested.passed:
            name = f"{contender.candidate_id} of {spec.model}:{spec.version}"
            raise Rejected(f"{name} fails its self-test: {tested.reason}")
        stack.pop_all()
    if isinstance(session, GuardedSession):
        session.patience_s = min(_hang_s(contender), spec.limits.hang_s)
    return seat, tested


def _open(contender: Contender, spec: ServeSpec, guarded: bool) -> Session:
    candidate = replace(parse_candidate_id(contender.candidate_id), plugin=contender.plugin)
    winner_guarded = spec.guarded and contender.candidate_id == spec.candidate_id
    if not is_guarded(contender.candidate_id, guarded or winner_guarded):
        return open_session(candidate, contender.variant_path)
    try:
        session = GuardedSession(contender, spec.limits.runner_bytes, spec.limits.open_s)
    except OSError as err:
        raise CreateFailed(f"no runner can be started for {contender.candidate_id}: {err}") from err
    if not is_own(candidate.runtime, candidate.delegate) and session.delegated_nodes == 0:
        session.close()
        raise CreateFailed(f"{candidate.delegate} took no node of the model: is the accelerator still there?")
    return session


def _hang_s(contender: Contender) -> float:
    latency = contender.latency
    return math.inf if latency is None else max(_HANG_FLOOR_S, _HANG_FACTOR * latency.p99_us / 1e6)


def _samples(golden: Path | None, contender: Contender, session: Session) -> GoldenSet:
    """Return golden samples, or one sample of noise when there are none."""
    if golden is not None:
        return read_golden(golden, parse_candidate_id(contender.candidate_id).variant, session.inputs)
    noise = random_inputs([[spec] for spec in session.inputs], count=1, seed=0)
    sample = [
        quantize(array[0].reshape([max(size, 1) for size in spec.shape]), spec)
        for array, spec in zip(noise, session.inputs, strict=True)
    ]
    return GoldenSet([sample], None)


def _kinds(signature: Signature) -> list[tuple[object, ...]]:
    return [(s.dtype, s.shape, s.scale, s.zero_point) for s in (*signature.inputs, *signature.outputs)]


def _shapes(signature: Signature) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    return [spec.shape for spec in signature.inputs], [spec.shape for spec in signature.outputs]


def _converted(arrays: Sequence[Array], given: Sequence[TensorSpec], wanted: Sequence[TensorSpec]) -> list[Array]:
    """Return the arrays in the dtypes wanted, the same real values as near as those can hold them."""
    converted = []
    for array, source, target in zip(arrays, given, wanted, strict=True):
        real = dequantize(np.asarray(array), source) if source.scale is not None else array
        converted.append(quantize(real, target))
    return converted
