"""What devices measure: latency, accuracy, power, races and what is served, in the shape that files and wire share.

Unknown is never 0: a figure that was not measured is None beside a `reason`. Times are microseconds on a monotonic
clock, energy is millijoules, power milliwatts, memory bytes. Nothing here measures.
"""

from __future__ import annotations

import json

from pydantic import Field, model_validator

from regatta_protocol.enums import OpenStrEnum, Word
from regatta_protocol.ids import DeviceIdField, DigestField
from regatta_protocol.policy import Policy
from regatta_protocol.values import Accuracy, Latency, Plugin, Power, unknown_power
from regatta_protocol.wire import Wire

__all__ = [
    "BoardFacts",
    "CandidateResult",
    "Conditions",
    "Outcome",
    "PairedDrop",
    "PriorRace",
    "RaceOrigin",
    "RaceReport",
]


class PairedDrop(Wire):
    """How much accuracy a candidate loses against the reference candidate, on the same labelled samples.

    `drop` is the reference's share of right answers less the candidate's: above 0 it loses. [low, high] is the 95 %
    interval of that difference (regatta_runtimes/choice/paired.py says which).
    """

    reference: str  # id of the candidate that it is compared with; its own id: it is the reference
    drop: float = Field(ge=-1, le=1)
    low: float = Field(ge=-1, le=1)
    high: float = Field(ge=-1, le=1)
    samples: int = Field(ge=1)  # that both answered
    available: int = Field(ge=1)  # in the evaluation set; samples is less when the time for evaluation ended first

    @model_validator(mode="after")
    def _ordered(self) -> PairedDrop:
        if not self.low <= self.drop <= self.high or self.samples > self.available:
            raise ValueError(
                f"drop {self.drop} must lie in [{self.low}, {self.high}], over at most {self.available} samples"
            )
        return self


class Outcome(OpenStrEnum):
    """How a candidate's part in the race ended."""

    MEASURED = "measured"
    UNAVAILABLE = "unavailable"  # the runtime, delegate or hardware is not on this board
    CREATE_FAILED = "create_failed"  # no interpreter could be built
    PREPARE_FAILED = "prepare_failed"  # it was built, but tensors or the delegate could not be prepared
    INVOKE_FAILED = "invoke_failed"
    CRASHED = "crashed"  # ended by a signal
    HUNG = "hung"  # over its time limit
    OUT_OF_MEMORY = "out_of_memory"
    NO_OP = "no_op"  # the delegate took no node
    CPU_FALLBACK = "cpu_fallback"  # the runtime claims the accelerator, and the processor computed
    LEAKING = "leaking"  # its memory grows with every inference
    WRONG_OUTPUT = "wrong_output"  # far from the reference kernels on golden samples
    INACCURATE = "inaccurate"  # loses more accuracy than the policy allows
    DROPPED = "dropped"  # clearly slower in an early round; its latency is from that round
    QUARANTINED = "quarantined"  # crashed too often with this model: not tried until library, runtime or model changes


class Conditions(Wire):
    """The circumstances of a candidate's timed rounds; None where they could not be read."""

    rounds: int = Field(default=0, ge=0)
    steady: bool = False  # the rounds' medians had settled, by the rule in steady.py
    temperature_c: float | None = None  # the hottest of its rounds
    throttled: bool | None = None  # the board slowed itself down in one of its rounds


class CandidateResult(Wire):
    """One way of running the model on this board, what it measured, or why it could not."""

    id: str  # runtime/variant/delegate[+option_set]/tN, for example litert/int8/xnnpack/t2
    runtime: str
    variant: str
    delegate: str
    threads: int = Field(ge=1)
    outcome: Outcome
    reason: str | None = None
    latency: Latency | None = None
    throughput_per_s: float | None = None  # inferences a second, one after another, over the rounds that count
    first_us: float | None = None  # create + allocate + first inference, from the worker's start of work
    accuracy: Accuracy | None = None
    accuracy_drop: PairedDrop | None = None
    golden_snr_db: float | None = None
    power: Power = Field(default_factory=lambda: unknown_power("not measured"))
    peak_rss_bytes: int | None = None
    conditions: Conditions = Conditions()
    option_set: str = ""  # the name of the delegate's set of options, where it has several
    plugin: Plugin | None = None  # of a delegate that is loaded or told something: serving opens exactly this
    pair: str | None = None  # names the delegate's library, runtime and model together: what a quarantine is about


class BoardFacts(Wire):
    """What the board is; every field is None when it could not be found out."""

    model: str | None = None
    machine: str | None = None
    cpu: str | None = None
    cores: int | None = None
    memory_bytes: int | None = None
    kernel: str | None = None
    cpu_features: tuple[str, ...] = ()  # those that kernels are chosen by: avx2, asimddp, …
    accelerators: tuple[str, ...] = ()
    drivers: dict[str, str] = Field(default_factory=dict)  # driver, firmware or library -> version
    power_sensor: str | None = None
    temperature_c: float | None = None
    throttled: bool | None = None  # slowed down by heat or low voltage now

    def fingerprint_text(self) -> str:
        """Return what identifies the kind of board: equal on two boards of a kind, and from start to start.

        Memory counts by its class, because what the firmware takes off differs. What changes from minute to minute is
        left out, and so are drivers and kernel: whoever compares boards compares those apart.
        """
        kind = (self.model, self.machine, self.cpu, self.cores, _memory_class(self.memory_bytes))
        return json.dumps([*kind, sorted(self.cpu_features), sorted(self.accelerators)], separators=(",", ":"))


def _memory_class(size_bytes: int | None) -> int | None:
    """Return the MiB of the chips: the next 2^n or 3·2^n above the size, which firmware and kernel have lessened."""
    if size_bytes is None:
        return None
    power = 64
    while power << 20 < size_bytes:
        power *= 2
    return power * 3 // 4 if size_bytes <= (power * 3 // 4) << 20 else power


class RaceOrigin(Wire):
    """Whose full race a confirmation run was held against."""

    device: DeviceIdField
    at: float  # seconds since 1970, by that device's clock
    placement: str  # what that race's figures make the winner, under the policy of the device that confirms


class RaceReport(Wire):
    """A race on one device: every candidate, the winner, and why.

    `basis` is "full" when every candidate was raced here, "confirmed" when an earlier result with the same key was
    confirmed by a short run; the figures are this device's own either way.
    """

    schema_version: int = 1
    model: str
    version: int
    board: BoardFacts
    candidates: tuple[CandidateResult, ...]
    pareto: tuple[str, ...] = ()  # ids that no other beats in every measured respect, the fastest first
    placement: str | None = None  # the winner's id; absent on the wire when none (codec.py leaves None out)
    reason: str  # plain words: why this one, or why none
    objective: str = "latency_p50"  # what it was judged by; another than the policy's where that is unknown here
    policy: Policy | None = None  # what was asked for; None in reports of older agents
    duration_s: float = Field(ge=0)
    conditions: dict[str, str] = Field(default_factory=dict)
    key: DigestField | None = None  # what the figures depend on (regatta_runtimes.race.key); results are shared by it
    basis: Word = "full"  # neither is what only a newer agent knows: it is shown, and no evidence for other devices
    prior: RaceOrigin | None = None  # what was confirmed

    def placed(self) -> CandidateResult | None:
        """Return the winner's result, or None when nothing was placed."""
        return next((result for result in self.candidates if result.id == self.placement), None)


class PriorRace(Wire):
    """A full race that was run before, with who ran it and when: what devices of one kind share. A hint, no verdict."""

    device: DeviceIdField
    at: float  # seconds since 1970, by that device's clock
    report: RaceReport
