"""One candidate's way through its worker: opened, held against the golden samples, evaluated, timed.

Turns every answer and every end of a worker into facts of `Trial`, never into an exception, except that a bad golden or
evaluation file raises Rejected: then no candidate can be judged and the bundle is at fault.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from regatta_protocol.errors import Rejected
from regatta_protocol.measurement import CandidateResult, Conditions, Outcome, PairedDrop
from regatta_protocol.values import Accuracy, Latency, Power, unknown_power
from regatta_runtimes.board.thermal import Heat
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.choice.paired import RightAnswers
from regatta_runtimes.errors import RuntimeMissing
from regatta_runtimes.worker.job import (
    MAX_TIMED_SAMPLES,
    Answer,
    Check,
    Checked,
    Command,
    Evaluate,
    Evaluated,
    Failed,
    Open,
    Opened,
    Time,
    Timed,
)
from regatta_runtimes.worker.leak import goes_on, leaked_bytes_per_inference
from regatta_runtimes.worker.nursery import DEFAULT_MEMORY_BYTES, Nursery, WorkerEnded, WorkerProcess
from regatta_runtimes.worker.percentile import latency_of, percentile
from regatta_runtimes.worker.quarantine import Ledger, Quarantine
from regatta_runtimes.worker.steady import is_steady

__all__ = ["Trial", "TrialFiles", "TrialLimits"]

_LEAK_LOOK_S = 2.0  # for a second look at what seems to leak, at most

_OUTCOMES = {
    "missing": Outcome.UNAVAILABLE,
    "create": Outcome.CREATE_FAILED,
    "prepare": Outcome.PREPARE_FAILED,
    "fallback": Outcome.CPU_FALLBACK,
    "model": Outcome.CREATE_FAILED,
    "invoke": Outcome.INVOKE_FAILED,
    "memory": Outcome.OUT_OF_MEMORY,
}


@dataclass(frozen=True)
class TrialFiles:
    model: Path
    golden: Path | None = None
    evaluation: Path | None = None


@dataclass(frozen=True)
class TrialLimits:
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    open_s: float = 20.0  # the first GPU inference may take seconds (runtimes.md)
    answer_s: float = 20.0  # beyond the budget that a command itself was given


@dataclass
class Trial:
    """A candidate under way. `outcome` is None while it is still in the race."""

    candidate: Candidate
    files: TrialFiles
    limits: TrialLimits
    pair: str | None = None  # see quarantine.py
    ledger: Ledger = field(default_factory=lambda: Ledger(Quarantine()))
    outcome: Outcome | None = None
    reason: str | None = None
    first_us: float | None = None
    golden_snr_db: float | None = None
    accuracy: Accuracy | None = None
    accuracy_drop: PairedDrop | None = None
    power: Power = field(default_factory=lambda: unknown_power("not measured"))
    peak_rss_bytes: int | None = None
    rounds: list[list[float]] = field(default_factory=list)  # microseconds of single inferences, by round
    warmup_rounds: int = 1  # of them, those that do not count once there are others
    temperature_c: float | None = None  # the hottest seen beside its rounds
    throttled: bool | None = None
    worker: WorkerProcess | None = None
    memory_bytes: list[int] = field(default_factory=list)  # of this worker, after each of its rounds
    inferences: list[int] = field(default_factory=list)  # of each of its rounds

    @property
    def alive(self) -> bool:
        """Whether it may still win."""
        return self.outcome is None

    def end(self, outcome: Outcome, reason: str) -> None:
        """Take the candidate out, and its worker with it."""
        self.outcome, self.reason = outcome, reason
        self.retire()

    def retire(self) -> None:
        """End the worker; the candidate may come back with `open`."""
        if self.worker is not None:
            self._note_memory()
            self.worker.close()
            self.worker = None

    def open(self, nursery: Nursery) -> bool:
        """Start a worker and open the model in it; return whether that worked."""
        refused = self.ledger.refuses(self.pair)
        if refused is not None:
            self.end(Outcome.QUARANTINED, refused)
            return False
        self.memory_bytes, self.inferences = [], []
        try:
            self.worker = nursery.start(self.limits.memory_bytes)
        except RuntimeMissing as err:
            self.end(Outcome.CRASHED, str(err))
            return False
        answer = self._ask(
            Open(
                candidate_id=self.candidate.id,
                model_path=str(self.files.model.absolute()),
                golden=None if self.files.golden is None else str(self.files.golden.absolute()),
                evaluation=None if self.files.evaluation is None else str(self.files.evaluation.absolute()),
                plugin=self.candidate.plugin,
            ),
            self.limits.open_s,
        )
        if not isinstance(answer, Opened):
            return False
        if self.candidate.delegate not in ("none", "ref") and answer.delegated_nodes == 0:
            self.end(
                Outcome.NO_OP,
                f"{self.candidate.delegate} took no node of this model, so the runtime's own kernels would run: "
                f"see {self.candidate.runtime}/{self.candidate.variant}/none",
            )
            return False
        if self.first_us is None:
            self.first_us = answer.first_us
        return True

    def check(self, budget_s: float) -> bool:
        """Hold it against the golden samples; return whether it is sound."""
        answer = self._ask(Check(budget_s=budget_s), budget_s + self.limits.answer_s)
        if not isinstance(answer, Checked):
            return False
        self.golden_snr_db = answer.snr_db
        if not answer.sound:
            self.end(Outcome.WRONG_OUTPUT, f"its outputs are wrong: {answer.detail}")
        return answer.sound

    def evaluate(self, budget_s: float) -> RightAnswers | None:
        """Return which samples of the evaluation set it answers right; None when that did not work."""
        answer = self._ask(Evaluate(budget_s=budget_s), budget_s + self.limits.answer_s)
        if not isinstance(answer, Evaluated):
            return None
        answers = RightAnswers(int(answer.right, 16), answer.total, answer.available)
        self.accuracy = answers.accuracy
        return answers

    def time(self, command: Time) -> bool:
        """Time it for a round; return whether that worked."""
        answer = self._ask(command, command.budget_s + self.limits.answer_s)
        if not isinstance(answer, Timed):
            return False
        self.rounds.append(list(answer.samples_us))
        assert self.worker is not None
        self.memory_bytes.append(self.worker.anonymous_bytes())
        self.inferences.append(len(answer.samples_us))
        return True

    def time_again(self, command: Time) -> bool:
        """Time it a second time and keep the better of its last two rounds; return whether that worked."""
        if not self.time(command):
            return False
        self.rounds[-2:] = [min(self.rounds[-2:], key=_median_us)]
        return True

    def keeps_memory(self) -> bool:
        """Return False, with the candidate out, when its memory grows with every inference."""
        leaked = leaked_bytes_per_inference(self.memory_bytes, self.inferences)
        if leaked is None:
            return True
        if not self._leaks_on(leaked):
            return self.alive
        grown = (self.memory_bytes[-1] - self.memory_bytes[0]) / 1e6
        self.end(
            Outcome.LEAKING,
            f"its memory grew all the time, by {grown:.1f} MB in {sum(self.inferences[1:])} inferences "
            f"({leaked / 1e3:.1f} KB each): it would not last",
        )
        return False

    def _leaks_on(self, leaked: float) -> bool:
        """Have it infer as often again, and return whether its memory grew on; if not, its memory is watched anew."""
        busy_s = sum(sum(samples) for samples in self.rounds[-len(self.inferences) :]) / 1e6
        again = min(sum(self.inferences[1:]), MAX_TIMED_SAMPLES)
        look = Time(budget_s=min(busy_s, _LEAK_LOOK_S), min_samples=3, max_samples=max(3, again), warmup=0)
        answer = self._ask(look, look.budget_s + self.limits.answer_s)
        if not isinstance(answer, Timed):
            return False
        assert self.worker is not None
        before, after = self.memory_bytes[-1], self.worker.anonymous_bytes()
        if goes_on(leaked, after - before, len(answer.samples_us)):
            return True
        self.memory_bytes, self.inferences = [after], [0]
        return False

    def note_heat(self, heat: Heat) -> None:
        """Take in what the board felt during its last round."""
        if heat.temperature_c is not None:
            self.temperature_c = max(heat.temperature_c, self.temperature_c or heat.temperature_c)
        if heat.throttled is not None:
            self.throttled = heat.throttled or bool(self.throttled)

    def latency(self) -> Latency | None:
        """Return the percentiles over the rounds that count."""
        samples = [sample for samples in self._counted() for sample in samples]
        return latency_of(samples) if samples else None

    @property
    def p50_us(self) -> float:
        """The median so far; infinite before the first round."""
        latency = self.latency()
        return math.inf if latency is None else latency.p50_us

    def is_steady(self) -> bool:
        """Whether its last rounds were steady, by the rule in steady.py."""
        return is_steady([_median_us(samples) for samples in self._counted()])

    def _counted(self) -> list[list[float]]:
        """Return the rounds after the warm-up; all of them when there is nothing after it."""
        return self.rounds[self.warmup_rounds :] or self.rounds

    def _throughput_per_s(self) -> float | None:
        inferences = sum(len(samples) for samples in self._counted())
        busy_us = sum(sum(samples) for samples in self._counted())
        return inferences / busy_us * 1e6 if busy_us > 0 else None

    def result(self) -> CandidateResult:
        """Return what is known of it, for the report."""
        self._note_memory()
        return CandidateResult(
            id=self.candidate.id,
            runtime=self.candidate.runtime,
            variant=self.candidate.variant,
            delegate=self.candidate.delegate,
            threads=self.candidate.threads,
            option_set=self.candidate.option_set,
            plugin=self.candidate.plugin,
            outcome=self.outcome or Outcome.MEASURED,
            reason=self.reason,
            latency=self.latency(),
            throughput_per_s=self._throughput_per_s(),
            first_us=self.first_us,
            accuracy=self.accuracy,
            accuracy_drop=self.accuracy_drop,
            golden_snr_db=self.golden_snr_db,
            power=self.power,
            peak_rss_bytes=self.peak_rss_bytes,
            pair=self.pair,
            conditions=Conditions(
                rounds=len(self._counted()),
                steady=self.is_steady(),
                temperature_c=self.temperature_c,
                throttled=self.throttled,
            ),
        )

    def _note_memory(self) -> None:
        if self.worker is not None:
            self.peak_rss_bytes = max(self.peak_rss_bytes or 0, self.worker.peak_rss_bytes) or None

    def _ask(self, command: Command, timeout_s: float) -> Answer | None:
        """Return the answer; None when the candidate is out because of it."""
        assert self.worker is not None
        try:
            answer = self.worker.ask(command, timeout_s)
        except WorkerEnded as err:
            self.peak_rss_bytes = max(self.peak_rss_bytes or 0, err.peak_rss_bytes or 0) or None
            reason = f"its worker {err.reason}"
            self.ledger.note(self.pair, self.candidate.id, err.outcome, reason)
            self.end(err.outcome, reason)
            return None
        if isinstance(answer, Failed):
            if answer.stage in ("samples", "misuse"):
                self.retire()
                raise Rejected(answer.reason)
            self.end(_OUTCOMES[answer.stage], answer.reason)
            return None
        return answer


def _median_us(samples: list[float]) -> float:
    return percentile(sorted(samples), 0.5)
