"""Who is left alone: pairs of library, runtime and model that crashed twice in a row, and nobody else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regatta_protocol.codec import decode, encode
from regatta_protocol.measurement import CandidateResult, Outcome
from regatta_protocol.values import Plugin
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.worker.quarantine import MAX_PAIRS, MAX_STRIKES, Ledger, Quarantine, pair_of

CANDIDATE = Candidate("litert", "int8", "vx", 1, Plugin(library="/usr/lib/libvx.so", options={"cache": "1"}))


def _result(outcome: Outcome, pair: str | None = "p", name: str = "litert/int8/vx/t1") -> CandidateResult:
    return CandidateResult(
        id=name, runtime="litert", variant="int8", delegate="vx", threads=1, outcome=outcome, reason="why", pair=pair
    )


@pytest.mark.parametrize("outcome", list(Outcome))
def test_what_each_outcome_does_to_a_pair_that_crashed_before(outcome: Outcome) -> None:
    """Crashes and hangs strike; what ran clears; whatever else leaves it as it is."""
    before = Quarantine().struck("p", "c", "why")

    after = before.after((_result(outcome),))

    count = after.pairs["p"].count if "p" in after.pairs else 0
    ran = outcome in (Outcome.MEASURED, Outcome.DROPPED, Outcome.INACCURATE)
    assert count == (2 if outcome in (Outcome.CRASHED, Outcome.HUNG) else 0 if ran else 1)


def test_a_crash_outweighs_a_success_of_the_same_pair() -> None:
    """With one thread it ran, with two it crashed: the pair is not cleared by the first."""
    after = Quarantine().after((_result(Outcome.CRASHED), _result(Outcome.MEASURED)))

    assert after.pairs["p"].count == 1


def test_a_pair_is_refused_from_its_second_crash_on_with_the_reason() -> None:
    """Once may be chance."""
    once = Quarantine().struck("p", "litert/int8/vx/t1", "was ended by SIGSEGV")
    twice = once.struck("p", "litert/int8/vx/t1", "was ended by SIGBUS")

    assert once.refuses("p") is None
    assert "SIGBUS" in (twice.refuses("p") or "")
    assert twice.refuses("q") is None


@pytest.mark.parametrize(
    "other",
    [
        pair_of(CANDIDATE, "library 2", "2.3", "model"),
        pair_of(CANDIDATE, "library", "2.4", "model"),
        pair_of(CANDIDATE, "library", "2.3", "model 2"),
        pair_of(Candidate("tflite", "int8", "vx", 1, CANDIDATE.plugin), "library", "2.3", "model"),
        pair_of(Candidate("litert", "int8", "vx", 1, Plugin(library="x", options={})), "library", "2.3", "model"),
    ],
)
def test_any_change_makes_another_pair(other: str) -> None:
    """Library, runtime version, model, runtime, options."""
    assert other != pair_of(CANDIDATE, "library", "2.3", "model")


def test_threads_and_the_place_of_the_library_make_no_difference() -> None:
    """The same library at another path, with another number of threads, crashes as well."""
    moved = Candidate("litert", "float32", "vx", 4, Plugin(library="/opt/libvx.so", options={"cache": "1"}))

    assert pair_of(moved, "library", "2.3", "model") == pair_of(CANDIDATE, "library", "2.3", "model")


@given(st.lists(st.tuples(st.integers(0, 400), st.booleans()), max_size=1000))
def test_a_pair_is_refused_just_when_it_crashed_twice_since_it_last_ran(events: list[tuple[int, bool]]) -> None:
    """For any history of crashes (True) and successes, within the number of pairs that is remembered."""
    quarantine = Quarantine()
    counts: dict[int, int] = {}
    for pair, crashed in events:
        quarantine = quarantine.struck(str(pair), "c", "r") if crashed else quarantine.cleared(str(pair))
        counts[pair] = counts.pop(pair, 0) + 1 if crashed else 0

    remembered = [pair for pair, count in counts.items() if count > 0][-MAX_PAIRS:]
    if len([count for count in counts.values() if count > 0]) <= MAX_PAIRS:
        assert {int(pair) for pair in quarantine.pairs} == set(remembered)
        for pair, count in counts.items():
            assert (quarantine.refuses(str(pair)) is not None) == (count >= MAX_STRIKES)
    assert len(quarantine.pairs) <= MAX_PAIRS


def test_a_full_quarantine_fits_its_file_and_comes_back() -> None:
    """Longest reasons, most pairs: within what is read back."""
    quarantine = Quarantine()
    for number in range(MAX_PAIRS + 10):
        quarantine = quarantine.struck(f"{number:064x}", "c" * 200, "r" * 1000)

    data = encode(quarantine, 256 * 1024)

    assert decode(Quarantine, data, 256 * 1024) == quarantine
    assert len(quarantine.pairs) == MAX_PAIRS


def test_a_ledger_stops_a_pair_within_one_race() -> None:
    """Its third thread count is not tried after two crashed; a memory limit strikes nobody."""
    ledger = Ledger(Quarantine())
    ledger.note("q", "c", Outcome.OUT_OF_MEMORY, "r")
    ledger.note("q", "c", Outcome.OUT_OF_MEMORY, "r")
    ledger.note("p", "c", Outcome.CRASHED, "r")
    assert ledger.refuses("p") is None

    ledger.note("p", "c", Outcome.HUNG, "r")

    assert ledger.refuses("p") is not None
    assert ledger.refuses("q") is None
    assert ledger.refuses(None) is None
