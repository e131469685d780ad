"""The Pareto front: no member is dominated, and every candidate off it is dominated by a member."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from regatta_protocol.measurement import CandidateResult, Outcome
from regatta_protocol.values import Accuracy, Latency, Power, unknown_power
from regatta_runtimes.choice.pareto import dominates, pareto_front

MIB = 1 << 20


def candidate(
    name: str,
    p50_us: float | None,
    correct: int | None = None,
    *,
    energy_mj: float | None = None,
    mib: int | None = None,
    outcome: Outcome = Outcome.MEASURED,
) -> CandidateResult:
    return CandidateResult(
        id=name,
        runtime="litert",
        variant=name,
        delegate="none",
        threads=1,
        outcome=outcome,
        latency=None if p50_us is None else Latency(samples=9, p50_us=p50_us, p90_us=p50_us, p99_us=p50_us),
        accuracy=None if correct is None else Accuracy(correct=correct, total=100),
        power=unknown_power("no sensor")
        if energy_mj is None
        else Power(method="measured", power_mw=1, energy_per_inference_mj=energy_mj),
        peak_rss_bytes=None if mib is None else mib * MIB,
    )


def test_the_front_is_what_could_be_had_for_what() -> None:
    """The accurate and slow one stands beside the fast one; one that is worse in both does not."""
    front = pareto_front(
        [
            candidate("float", 90, 98),
            candidate("int8", 10, 96),
            candidate("slow-int8", 20, 96),
            candidate("bad", 95, 90),
        ]
    )

    assert front == ("int8", "float")


def test_a_slow_one_that_was_dropped_and_an_inaccurate_one_stand_too() -> None:
    """The front is no verdict: the policy chooses, the front shows what there is."""
    dropped = candidate("float", 90, 98, outcome=Outcome.DROPPED)
    pruned = candidate("pruned", 5, 60, outcome=Outcome.INACCURATE)
    wrong = candidate("wrong", 1, 99, outcome=Outcome.WRONG_OUTPUT)

    assert pareto_front([candidate("int8", 10, 96), dropped, pruned, wrong]) == ("pruned", "int8", "float")


def test_a_respect_that_a_finalist_does_not_know_does_not_count() -> None:
    """Without its energy nobody can say that it is worse."""
    known, unknown = candidate("a", 10, energy_mj=1), candidate("b", 20)

    assert pareto_front([known, unknown]) == ("a",)


def test_memory_counts_in_whole_mebibytes() -> None:
    """Some pages more or less are no advantage."""
    small = candidate("a", 10, mib=50)
    pages = candidate("b", 20).model_copy(update={"peak_rss_bytes": 50 * MIB - 8192})

    assert pareto_front([small, pages, candidate("c", 20, mib=40)]) == ("a", "c")


_figures = st.builds(
    lambda number, p50, correct, energy, mib, outcome: candidate(
        f"c{number}", p50, correct, energy_mj=energy, mib=mib, outcome=outcome
    ),
    st.integers(0, 10**6),
    st.none() | st.integers(1, 6).map(float),
    st.none() | st.integers(1, 4),
    st.none() | st.integers(1, 4).map(float),
    st.none() | st.integers(1, 4),
    st.sampled_from([Outcome.MEASURED, Outcome.MEASURED, Outcome.DROPPED, Outcome.INACCURATE, Outcome.CRASHED]),
)


@given(st.lists(_figures, max_size=12, unique_by=lambda one: one.id))
def test_members_are_not_dominated_and_the_others_are(results: list[CandidateResult]) -> None:
    """Over the respects that every finalist knows, for any figures and gaps, in any order."""
    front = pareto_front(results)

    timed = [
        one
        for one in results
        if one.latency is not None and one.outcome in (Outcome.MEASURED, Outcome.DROPPED, Outcome.INACCURATE)
    ]
    finalists = [one for one in timed if one.outcome == Outcome.MEASURED] or timed
    rows = {one.id: _costs(one) for one in timed}
    counted = [index for index in range(4) if all(_costs(one)[index] is not None for one in finalists)]
    pool: dict[str, tuple[float, ...]] = {}
    for name, row in rows.items():
        picked = [row[index] for index in counted]
        if None not in picked:
            pool[name] = tuple(value for value in picked if value is not None)
    assert set(front) <= set(pool)
    for name, costs in pool.items():
        beaten_by = [other for other in front if dominates(pool[other], costs)]
        assert bool(beaten_by) == (name not in front)
    assert set(pareto_front(results[::-1])) == set(front)
    assert [pool[name][0] for name in front] == sorted(pool[name][0] for name in front)


def _costs(one: CandidateResult) -> tuple[float | None, ...]:
    return (
        one.latency.p50_us if one.latency else None,
        1 - one.accuracy.value if one.accuracy else None,
        one.power.energy_per_inference_mj,
        one.peak_rss_bytes / MIB if one.peak_rss_bytes else None,
    )
