"""A board on which candidates' true times are known: real heats, trials and judge over a clock that inferences move.

What a board does to timings is modelled as it was seen: single inferences scatter, everything drifts, bursts of load
last for parts of a second and slow several threads more than one, and every inference may meet an interrupt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from regatta_protocol.manifest import Policy
from regatta_runtimes.board.thermal import Heat
from regatta_runtimes.candidate import parse_candidate_id
from regatta_runtimes.choice.judge import Verdict, judge
from regatta_runtimes.choice.yardstick import Yardstick
from regatta_runtimes.power.sensor import UnknownPower
from regatta_runtimes.race.heat import Heats
from regatta_runtimes.worker.job import Time
from regatta_runtimes.worker.nursery import Nursery
from regatta_runtimes.worker.trial import Trial, TrialFiles, TrialLimits

__all__ = ["SimulatedBoard", "SimulatedTrial", "simulate"]

_ASK_S = 0.001  # a command and its answer


@dataclass
class SimulatedBoard:
    """The clock, and what is going on."""

    seed: int
    scatter: float = 0.02  # relative standard deviation of one inference
    drift: float = 0.0  # relative slow-down over a minute
    bursts_per_s: float = 0.0
    burst_s: float = 0.2  # on average
    burst_factor: float = 1.5  # with one thread; squared with more
    now_s: float = 0.0
    turns: list[str] = field(default_factory=list)  # whose turn it was

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self._burst_ends_s = 0.0
        self._next_burst_s = self._until_burst_s()

    def clock(self) -> float:
        return self.now_s

    def infer_us(self, true_us: float, threads: int) -> float:
        """Let one inference happen, and return how long it took."""
        while self._next_burst_s <= self.now_s:
            self._burst_ends_s = self._next_burst_s + self.random.expovariate(1 / self.burst_s)
            self._next_burst_s = self._burst_ends_s + self._until_burst_s()
        load = self.burst_factor ** min(threads, 2) if self.now_s < self._burst_ends_s else 1.0
        spike = 3.0 if self.random.random() < 0.02 else 1.0
        scatter = self.random.lognormvariate(0, self.scatter)
        taken_us = true_us * (1 + self.drift * self.now_s / 60) * load * spike * scatter
        self.now_s += taken_us / 1e6
        return taken_us

    def _until_burst_s(self) -> float:
        return self.random.expovariate(self.bursts_per_s) if self.bursts_per_s else float("inf")


@dataclass
class SimulatedTrial(Trial):
    """A trial whose worker is the simulated board."""

    board: SimulatedBoard = field(default_factory=lambda: SimulatedBoard(0))
    true_us: float = 1000.0
    open_s: float = 0.05
    opened: int = 0  # how many workers it had
    cold_rounds: int = 0  # that take three times as long

    def open(self, nursery: Nursery) -> bool:
        """Take some time, the first inference's included."""
        self.board.now_s += self.open_s
        self.first_us = self.open_s * 1e6
        self.memory_bytes, self.inferences = [], []
        self.opened += 1
        return True

    def time(self, command: Time) -> bool:
        """Do as a worker does, on the board's clock."""
        board, threads = self.board, self.candidate.threads
        board.turns.append(self.candidate.id)
        board.now_s += _ASK_S
        true_us = self.true_us * (3 if len(self.rounds) < self.cold_rounds else 1)
        warm = board.now_s + command.warmup_s
        warmup = 0
        while warmup < command.warmup or board.now_s < warm:
            board.infer_us(true_us, threads)
            warmup += 1
        stop = board.now_s + command.budget_s
        samples: list[float] = []
        while len(samples) < command.max_samples and (board.now_s < stop or len(samples) < command.min_samples):
            samples.append(board.infer_us(true_us, threads))
        self.rounds.append(samples)
        self.memory_bytes.append(50_000_000)
        self.inferences.append(len(samples))
        return True


def simulate(
    board: SimulatedBoard,
    true_us: Mapping[str, float],
    policy: Policy | None = None,
    budget_s: float = 20.0,
    cold_rounds: Mapping[str, int] | None = None,
    open_s: float = 0.05,
) -> tuple[Verdict, Sequence[SimulatedTrial]]:
    """Return the verdict and the trials of a race among candidates, id -> microseconds of an inference."""
    trials = [
        SimulatedTrial(
            parse_candidate_id(name),
            TrialFiles(Path("/model.tflite")),
            TrialLimits(),
            board=board,
            true_us=true,
            open_s=open_s,
            cold_rounds=(cold_rounds or {}).get(name, 0),
        )
        for name, true in true_us.items()
    ]
    nurseries = {trial.candidate.runtime: Nursery(trial.candidate.runtime) for trial in trials}  # none is entered
    heats = Heats(
        trials,
        nurseries,
        policy or Policy(),
        Yardstick(None, policy or Policy()),
        budget_s,
        lambda _line: None,
        read_heat=lambda: Heat(40 + board.now_s, board.now_s > 1),
        clock=board.clock,
    )
    heats.qualify()
    heats.evaluate()
    heats.rounds()
    heats.weigh(UnknownPower("simulated"))
    return judge([trial.result() for trial in trials], policy or Policy(), None), trials
