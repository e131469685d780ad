"""Which candidates a bundle has on this board, and why others cannot be: runtime × variant × delegate × threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from regatta_protocol.measurement import BoardFacts, CandidateResult, Outcome
from regatta_runtimes.candidate import Candidate, Plugin
from regatta_runtimes.delegates import DELEGATES, DelegateFacts, find_plugin

__all__ = ["CPU_DELEGATES", "Entrant", "default_threads", "enumerate_candidates", "unavailable"]

CPU_DELEGATES = ("xnnpack", "none")
_PLUGIN_RUNTIMES = ("litert", "tflite")  # those that load external delegates


@dataclass(frozen=True)
class Entrant:
    """A variant as the bundle states it."""

    name: str
    requires: tuple[str, ...] = ()
    refusal: str | None = None  # why no delegate can run it now, for example that its FPGA overlay is not loaded


def default_threads(cores: int | None) -> tuple[int, ...]:
    """Return the thread counts worth a try: 1, 2, 4 … and all cores, at most 8."""
    most = max(1, min(cores or 1, 8))
    return tuple(sorted({1, most, *(count for count in (2, 4) if count <= most)}))


def unavailable(candidate: Candidate, reason: str) -> CandidateResult:
    """Return the result of a candidate that cannot take part."""
    return CandidateResult(
        id=candidate.id,
        runtime=candidate.runtime,
        variant=candidate.variant,
        delegate=candidate.delegate,
        threads=candidate.threads,
        outcome=Outcome.UNAVAILABLE,
        reason=reason,
    )


def enumerate_candidates(
    entrants: Sequence[Entrant],
    runtimes: Mapping[str, str | None],
    board: BoardFacts,
    threads: Sequence[int],
    rows: Mapping[str, DelegateFacts] = DELEGATES,
    root: Path = Path("/"),
) -> tuple[list[Candidate], list[CandidateResult]]:
    """Return the candidates to race, and a result with its reason for each that cannot take part.

    The CPU's come first, simplest first: a delegate that hangs must not eat the time of those.

    Args:
        runtimes: name -> None when it works here, or why it does not; in order of preference.
        threads: thread counts to try; an external delegate gets one.
        rows: the delegates that are known.
        root: where the board's file system lies, for the delegates' libraries.
    """
    candidates: list[Candidate] = []
    absent: list[CandidateResult] = []
    for entrant in entrants:
        if entrant.requires:
            continue
        for runtime, reason in runtimes.items():
            if reason is not None:
                absent.append(unavailable(Candidate(runtime, entrant.name, "none", 1), reason))
                continue
            candidates += [
                Candidate(runtime, entrant.name, delegate, count) for count in threads for delegate in CPU_DELEGATES
            ]
    candidates.sort(key=lambda candidate: candidate.threads)
    for entrant in entrants:
        for name in entrant.requires or _volunteers(rows, board, root):
            plugin = entrant.refusal or find_plugin(name, board, rows, root)
            if isinstance(plugin, str):
                absent.append(unavailable(Candidate("litert", entrant.name, name, 1), plugin))
                continue
            for runtime in _PLUGIN_RUNTIMES:
                candidate = Candidate(runtime, entrant.name, name, 1, plugin)
                reason = runtimes.get(runtime, "this race leaves it out")
                if reason is None:
                    candidates.append(candidate)
                elif entrant.requires:  # else the runtime's absence is told with the CPU's candidates
                    absent.append(unavailable(candidate, reason))
    return candidates, absent


def _volunteers(rows: Mapping[str, DelegateFacts], board: BoardFacts, root: Path) -> list[str]:
    """Return the delegates to try on any variant: those that this board may have, and all that a user added."""
    return [
        name
        for name, facts in rows.items()
        if facts.libraries
        and not facts.compiled_only
        and (
            facts is not DELEGATES.get(name)
            or any(accelerator in facts.accelerators for accelerator in board.accelerators)
            or isinstance(find_plugin(name, board, rows, root), Plugin)
        )
    ]
