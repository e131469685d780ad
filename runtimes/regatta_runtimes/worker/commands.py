"""What a worker process does: opens one candidate, checks it, times it, and answers line by line.

It runs in a process forked by forkserver.py, so whatever vendor code does to it (crash, hang, eat memory) ends here
and is told apart by nursery.py. Expected failures are answers; anything else is a crash, with a traceback in the log.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from regatta_protocol.codec import decode
from regatta_protocol.errors import Misuse, Rejected
from regatta_runtimes.candidate import Candidate, parse_candidate_id
from regatta_runtimes.choice.paired import right_answers
from regatta_runtimes.errors import CpuFallback, CreateFailed, InvokeFailed, PrepareFailed, RuntimeMissing
from regatta_runtimes.model.flatbuffer import survey
from regatta_runtimes.model.onnxfile import survey_onnx
from regatta_runtimes.runtime import runtime_facts
from regatta_runtimes.worker.job import (
    MAX_ANSWER_BYTES,
    MAX_EVALUATED_SAMPLES,
    Answer,
    Check,
    Checked,
    Command,
    CommandLine,
    Describe,
    Described,
    Evaluate,
    Evaluated,
    Failed,
    Open,
    Opened,
    Reference,
    Referenced,
    Time,
    Timed,
)
from regatta_runtimes.worker.reference import compare, write_reference
from regatta_runtimes.worker.samples import EvaluationSet, GoldenSet, noise, read_evaluation, read_golden
from regatta_runtimes.worker.score import is_correct
from regatta_runtimes.worker.session import Session, open_session

__all__ = ["serve_commands"]

_TIMED_INPUTS = 16  # distinct inputs that timing cycles through, ready quantized


class _Worker:
    """The state between commands: at most one open session."""

    def __init__(self, runtime: str, backends: Mapping[str, str]) -> None:
        self._runtime = runtime
        self._backends = backends
        self._variant = ""
        self._session: Session | None = None
        self._golden: GoldenSet | None = None
        self._evaluation: EvaluationSet | None = None

    def answer(self, command: Command) -> Answer:
        """Return what doing the command gave."""
        if isinstance(command, Open):
            return self._open(command)
        if isinstance(command, Describe):
            return _describe(self._runtime, Path(command.model_path), self._backends)
        if isinstance(command, Reference):
            return _reference(self._runtime, command, self._backends)
        if self._session is None:
            raise Misuse(f"{command.kind} came before open")
        if isinstance(command, Check):
            return self._check(self._session, command)
        if isinstance(command, Evaluate):
            return self._evaluate(self._session, command)
        return self._time(self._session, command)

    def _open(self, command: Open) -> Answer:
        candidate = replace(parse_candidate_id(command.candidate_id), plugin=command.plugin)
        begun = time.perf_counter()
        session = open_session(candidate, Path(command.model_path), self._backends)
        session.run(noise(session.inputs))
        first_us = (time.perf_counter() - begun) * 1e6
        self._variant, self._session = candidate.variant, session
        try:
            if command.golden is not None:
                self._golden = read_golden(Path(command.golden), candidate.variant, session.inputs)
            if command.evaluation is not None:
                self._evaluation = read_evaluation(Path(command.evaluation), session.inputs[0])
        except Rejected as err:
            return Failed(stage="samples", reason=str(err))
        return Opened(delegated_nodes=session.delegated_nodes, first_us=round(first_us, 1))

    def _check(self, session: Session, command: Check) -> Answer:
        if self._golden is None or self._golden.outputs is None:
            return Checked(samples=0, snr_db=None, sound=True, detail=f"no golden outputs for {self._variant}")
        try:
            verdict = compare(session, self._golden, command.budget_s)
        except Rejected as err:
            return Failed(stage="samples", reason=str(err))
        return Checked(
            samples=verdict.samples, snr_db=round(verdict.snr_db, 2), sound=verdict.sound, detail=verdict.detail
        )

    def _evaluate(self, session: Session, command: Evaluate) -> Answer:
        evaluation = self._evaluation
        if evaluation is None:
            raise Misuse("evaluate came without an evaluation set")
        deadline = time.perf_counter() + command.budget_s
        spec = session.inputs[0]
        rest = noise(session.inputs)[1:]
        rights: list[bool] = []
        for index in range(min(len(evaluation.y), MAX_EVALUATED_SAMPLES)):
            outputs = session.run([evaluation.sample(index, spec), *rest])
            rights.append(is_correct(outputs[0], int(evaluation.y[index])))
            if time.perf_counter() > deadline:
                break
        answers = right_answers(rights, len(evaluation.y))
        return Evaluated(right=answers.text(), total=answers.total, available=answers.available)

    def _time(self, session: Session, command: Time) -> Answer:
        inputs = self._golden.inputs[:_TIMED_INPUTS] if self._golden is not None else [noise(session.inputs)]
        run, clock = session.run, time.perf_counter_ns
        warm = clock() + int(command.warmup_s * 1e9)
        number = 0
        while number < command.warmup or clock() < warm:
            run(inputs[number % len(inputs)])
            number += 1
        samples_ns: list[int] = []
        now = clock()
        stop = now + int(command.budget_s * 1e9)
        while len(samples_ns) < command.max_samples and (now < stop or len(samples_ns) < command.min_samples):
            feed = inputs[len(samples_ns) % len(inputs)]
            before = clock()
            run(feed)
            now = clock()
            samples_ns.append(now - before)
        return Timed(samples_us=tuple(round(ns / 1000, 2) for ns in samples_ns))


def _describe(runtime: str, path: Path, backends: Mapping[str, str]) -> Answer:
    """Return what the file is, and whether `runtime` can build and run it."""
    with path.open("rb") as file:
        # never closed by hand: after Rejected its traceback still holds views, and closing would raise BufferError
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        found = survey_onnx(view) if runtime_facts(runtime).model_format == "onnx" else survey(view)
    specs = None
    refusal: str | None = None
    try:
        session = open_session(Candidate(runtime, "model", runtime_facts(runtime).plain, 1), path, backends)
        session.run(noise(session.inputs))
        specs = session.inputs, session.outputs
    except CreateFailed as err:
        refusal, specs = str(err), err.specs
    except InvokeFailed as err:
        refusal = str(err)
    inputs, outputs = specs or ((), ())
    return Described(
        inputs=inputs,
        outputs=outputs,
        operators=tuple(sorted(found.operators)),
        precision=found.precision,
        requires=found.requires,
        refusal=refusal,
    )


def _reference(runtime: str, command: Reference, backends: Mapping[str, str]) -> Answer:
    try:
        samples, skipped = write_reference(runtime, command, backends)
    except Rejected as err:
        return Failed(stage="samples", reason=str(err))
    return Referenced(samples=samples, skipped=skipped)


def _guarded(worker: _Worker, command: Command) -> Answer:
    """Return the answer, with the failures that are expected of vendor code as answers too."""
    try:
        return worker.answer(command)
    except RuntimeMissing as err:
        return Failed(stage="missing", reason=str(err))
    except CpuFallback as err:
        return Failed(stage="fallback", reason=str(err))
    except PrepareFailed as err:
        return Failed(stage="prepare", reason=str(err))
    except CreateFailed as err:
        return Failed(stage="create", reason=str(err))
    except InvokeFailed as err:
        return Failed(stage="invoke", reason=str(err))
    except MemoryError:
        return Failed(stage="memory", reason="the worker's memory limit was reached")
    except (Rejected, OSError) as err:
        return Failed(stage="model", reason=str(err))
    except Misuse as err:
        return Failed(stage="misuse", reason=str(err))


def serve_commands(runtime: str, backends: Mapping[str, str], commands: int, answers: int) -> None:
    """Answer the commands that come on one descriptor on the other, until it is closed."""
    worker = _Worker(runtime, backends)
    with open(commands, "rb") as lines, suppress(BrokenPipeError):
        while line := lines.readline(MAX_ANSWER_BYTES):
            answer = _guarded(worker, decode(CommandLine, line, MAX_ANSWER_BYTES).root)
            data = memoryview(answer.model_dump_json().encode() + b"\n")
            while data:
                data = data[os.write(answers, data) :]
