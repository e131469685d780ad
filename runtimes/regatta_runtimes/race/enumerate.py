"""Which candidates a bundle has on this board, and why others cannot be.

Runtime × variant × delegate × threads × options. What is absent is told once: a runtime that cannot be used is a
result of its own, not one for each variant that it would have run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from regatta_protocol.measurement import BoardFacts, CandidateResult, Outcome
from regatta_protocol.values import Plugin
from regatta_runtimes.board.delegates import DELEGATES, DelegateFacts, find_plugin
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.runtime import PLUGIN_RUNTIMES, ModelFormat, runtime_facts

__all__ = ["Entrant", "default_threads", "enumerate_candidates", "unavailable"]


@dataclass(frozen=True)
class Entrant:
    """A variant as the bundle states it."""

    name: str
    requires: tuple[str, ...] = ()
    model_format: ModelFormat = "tflite"
    precision: str | None = None


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
    refusals: Mapping[str, str] = MappingProxyType({}),
) -> tuple[list[Candidate], list[CandidateResult]]:
    """Return the candidates to race, and a result with its reason for each that cannot take part.

    The CPU's come first, simplest first: a delegate that hangs must not eat the time of those.

    Args:
        runtimes: name -> None when it works here, or why it does not; in order of preference.
        threads: thread counts to try; an accelerator gets one.
        rows: the delegates that are known.
        root: where the board's file system lies, for the delegates' libraries.
        refusals: delegate -> why it cannot work now, for example that its FPGA overlay is not loaded.
    """
    candidates: list[Candidate] = []
    absent: dict[str, CandidateResult] = {}  # by runtime, or by candidate where a delegate is what is absent
    for entrant in entrants:
        for runtime, reason in _of_format(runtimes, entrant).items():
            if entrant.requires:
                continue
            if reason is not None:
                gone = Candidate(runtime, entrant.name, runtime_facts(runtime).plain, 1)
                absent.setdefault(runtime, unavailable(gone, reason))
                continue
            candidates += [
                Candidate(runtime, entrant.name, delegate, count)
                for count in threads
                for delegate in runtime_facts(runtime).cpu_delegates
            ]
    candidates.sort(key=lambda candidate: candidate.threads)
    for entrant in entrants:
        usable = _of_format(runtimes, entrant)
        for name in entrant.requires or _volunteers(entrant, rows, board, root):
            plugin = refusals.get(name) or find_plugin(name, board, rows, root)
            drivers = rows[name].runtimes if name in rows else PLUGIN_RUNTIMES
            if isinstance(plugin, str):
                lost = Candidate(drivers[0], entrant.name, name, 1)
                absent.setdefault(lost.id, unavailable(lost, plugin))
                continue
            for runtime in drivers:
                reason = usable.get(runtime, "this race leaves it out")
                if reason is None:
                    candidates += _by_options(Candidate(runtime, entrant.name, name, 1, plugin), rows[name])
                elif entrant.requires:  # else the runtime's absence is told with the CPU's candidates
                    absent.setdefault(runtime, unavailable(Candidate(runtime, entrant.name, name, 1), reason))
    return candidates, list(absent.values())


def _of_format(runtimes: Mapping[str, str | None], entrant: Entrant) -> dict[str, str | None]:
    """Return the runtimes that take the entrant's format."""
    return {
        name: reason for name, reason in runtimes.items() if runtime_facts(name).model_format == entrant.model_format
    }


def _by_options(plain: Candidate, facts: DelegateFacts) -> list[Candidate]:
    """Return the candidate with the row's own options, and one for each named set of further options."""
    assert plain.plugin is not None
    found = [plain]
    for name, options in facts.option_sets.items():
        plugin = replace(plain.plugin, options={**plain.plugin.options, **options})
        found.append(Candidate(plain.runtime, plain.variant, plain.delegate, plain.threads, plugin, name))
    return found


def _volunteers(entrant: Entrant, rows: Mapping[str, DelegateFacts], board: BoardFacts, root: Path) -> list[str]:
    """Return the delegates to try on a variant unasked: those that this board may have, and all that a user added."""
    return [
        name
        for name, facts in rows.items()
        if facts.can_be_driven
        and not facts.compiled_only
        and facts.takes(entrant.precision)
        and (
            facts is not DELEGATES.get(name)
            or any(accelerator in facts.accelerators for accelerator in board.accelerators)
            or (bool(facts.libraries) and isinstance(find_plugin(name, board, rows, root), Plugin))
        )
    ]
