"""The judge: policy in, placement out, and a reason for every loser."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regatta_protocol.manifest import Policy
from regatta_protocol.measurement import CandidateResult, Conditions, Outcome, PairedDrop
from regatta_protocol.policy import OBJECTIVE_WORDS
from regatta_protocol.values import Accuracy, Latency, Power
from regatta_runtimes.candidate import parse_candidate_id
from regatta_runtimes.choice.judge import TIE, Verdict, judge
from regatta_runtimes.choice.objective import OBJECTIVES
from regatta_runtimes.choice.yardstick import Floor


def entry(
    text: str,
    p50_us: float | None = 100.0,
    *,
    p99_us: float | None = None,
    outcome: Outcome = Outcome.MEASURED,
    correct: int | None = None,
    energy_mj: float | None = None,
    rss: int | None = None,
    temperature_c: float | None = None,
    power_mw: float = 1.0,
    per_s: float | None = None,
    drop: PairedDrop | None = None,
) -> CandidateResult:
    candidate = parse_candidate_id(text)
    known = p50_us is not None
    return CandidateResult(
        id=text,
        runtime=candidate.runtime,
        variant=candidate.variant,
        delegate=candidate.delegate,
        threads=candidate.threads,
        outcome=outcome,
        reason=None if outcome == Outcome.MEASURED else f"it {outcome}",
        latency=Latency(samples=9, p50_us=p50_us, p90_us=p50_us, p99_us=p99_us or p50_us) if p50_us and known else None,
        accuracy=None if correct is None else Accuracy(correct=correct, total=100),
        power=Power(method="measured", power_mw=power_mw, energy_per_inference_mj=energy_mj)
        if energy_mj is not None
        else Power(method="none", reason="no sensor"),
        peak_rss_bytes=rss,
        throughput_per_s=per_s,
        accuracy_drop=drop,
        conditions=Conditions(temperature_c=temperature_c),
    )


def reason_of(verdict: Verdict, text: str) -> str:
    return next(result.reason or "" for result in verdict.candidates if result.id == text)


A, B, C, D = "litert/int8/none/t1", "litert/int8/xnnpack/t1", "litert/int8/xnnpack/t2", "tflite/int8/none/t1"
FLOOR = Floor(0.90, 100)
LOSES = PairedDrop(reference=B, drop=0.03, low=0.01, high=0.06, samples=100, available=100)
CUT_SHORT = PairedDrop(reference=B, drop=0.03, low=0.01, high=0.06, samples=100, available=400)
SURELY_LOSES = PairedDrop(reference=B, drop=0.05, low=0.03, high=0.09, samples=100, available=400)

CASES = [
    ("the fastest wins", [entry(A, 100), entry(B, 50)], Policy(), None, B),
    ("a tie goes to fewer threads", [entry(B, 100), entry(C, 99.5)], Policy(), None, B),
    ("a tie goes to no delegate", [entry(A, 100.5), entry(B, 100)], Policy(), None, A),
    ("a tie goes to litert", [entry(D, 99.5), entry(A, 100)], Policy(), None, A),
    ("three percent is no tie", [entry(B, 103), entry(C, 100)], Policy(), None, C),
    ("the inaccurate is out", [entry(A, 10, correct=80), entry(B, 50, correct=91)], Policy(), FLOOR, B),
    ("unknown accuracy is no gate", [entry(A, 10), entry(B, 50)], Policy(), FLOOR, A),
    ("p99 over the limit is out", [entry(A, 10, p99_us=900), entry(B, 50)], Policy(max_p99_us=500), None, B),
    (
        "memory over the limit is out",
        [entry(A, 10, rss=90), entry(B, 50, rss=50)],
        Policy(max_memory_bytes=60),
        None,
        B,
    ),
    ("unknown memory refuses nobody", [entry(A, 10), entry(B, 50, rss=50)], Policy(max_memory_bytes=60), None, A),
    ("a paired loss is out", [entry(A, 10, drop=LOSES), entry(B, 50)], Policy(), None, B),
    (
        "an allowed paired loss",
        [entry(A, 10, drop=LOSES), entry(B, 50)],
        Policy(max_accuracy_drop=0.03),
        None,
        A,
    ),
    ("a loss by chance, cut short", [entry(A, 10, drop=CUT_SHORT), entry(B, 50)], Policy(), None, A),
    ("a sure loss, cut short", [entry(A, 10, drop=SURELY_LOSES), entry(B, 50)], Policy(), None, B),
    (
        "too hot",
        [entry(A, 10, temperature_c=81), entry(B, 50, temperature_c=60)],
        Policy(max_temperature_c=80),
        None,
        B,
    ),
    ("unknown heat", [entry(A, 10), entry(B, 50, temperature_c=60)], Policy(max_temperature_c=80), None, A),
    (
        "too much power",
        [entry(A, 10, energy_mj=1, power_mw=900), entry(B, 50, energy_mj=1, power_mw=300)],
        Policy(max_power_mw=500),
        None,
        B,
    ),
    ("unknown power refuses nobody", [entry(A, 10), entry(B, 50)], Policy(max_power_mw=500), None, A),
    ("throughput", [entry(A, 10, per_s=90), entry(B, 50, per_s=900)], Policy(objective="throughput"), None, B),
    ("throughput unknown: latency", [entry(A, 10), entry(B, 50, per_s=900)], Policy(objective="throughput"), None, A),
    ("p99 as objective", [entry(A, 10, p99_us=90), entry(B, 20, p99_us=30)], Policy(objective="latency_p99"), None, B),
    ("energy", [entry(A, 10, energy_mj=9), entry(B, 50, energy_mj=1)], Policy(objective="energy"), None, B),
    ("energy unknown: latency", [entry(A, 10), entry(B, 50, energy_mj=1)], Policy(objective="energy"), None, A),
    ("the crashed cannot win", [entry(A, None, outcome=Outcome.CRASHED), entry(B, 50)], Policy(), None, B),
    ("the dropped cannot win", [entry(A, 5, outcome=Outcome.DROPPED), entry(B, 50)], Policy(), None, B),
    ("nobody fits", [entry(A, 900), entry(B, 901)], Policy(max_p99_us=5), None, None),
    ("nobody at all", [], Policy(), None, None),
]


@pytest.mark.parametrize(
    ("results", "policy", "floor", "winner"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_the_placement(results: list[CandidateResult], policy: Policy, floor: Floor | None, winner: str | None) -> None:
    """Each rule of the docstring, one line each; every candidate keeps or gets a reason."""
    verdict = judge(results, policy, floor)

    assert verdict.placement == winner
    assert verdict.reason
    assert all(result.reason for result in verdict.candidates)


def test_reasons_carry_the_figures() -> None:
    """A person can follow why each lost."""
    verdict = judge([entry(A, 300), entry(B, 100), entry(C, 10, correct=50)], Policy(), FLOOR)

    assert "3.00 times the time of litert/int8/xnnpack/t1" in reason_of(verdict, A)
    assert "0.500 (50 of 100) is under the 0.900" in reason_of(verdict, C)
    assert [result.outcome for result in verdict.candidates] == [Outcome.MEASURED, Outcome.MEASURED, Outcome.INACCURATE]


def test_nothing_placed_lists_every_candidate() -> None:
    """The reason names each that could not be, and why."""
    verdict = judge([entry(A, None, outcome=Outcome.CRASHED), entry(B, None, outcome=Outcome.HUNG)], Policy(), None)

    assert verdict.placement is None
    assert A in verdict.reason
    assert "it hung" in verdict.reason


def test_an_energy_policy_without_a_sensor_says_what_it_did() -> None:
    """The fallback to latency is told with the sensor's reason."""
    verdict = judge([entry(A)], Policy(objective="energy"), None)

    assert verdict.objective == "latency_p50"
    assert "energy is unknown: no sensor" in verdict.reason


def test_an_objective_that_only_a_newer_fleet_knows_falls_back_and_says_so() -> None:
    """The fastest wins, and the reason tells the operator what was not understood and what to do."""
    verdict = judge([entry(A), entry(B)], Policy(objective="carbon"), None)

    assert set(OBJECTIVES) == set(OBJECTIVE_WORDS)
    assert verdict.objective == "latency_p50"
    assert verdict.placement is not None
    assert "judged by latency p50, for this agent does not know the objective carbon: update it" in verdict.reason


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (Policy(max_temperature_c=80), "limit of 80 °C on temperature could not be checked"),
        (Policy(max_power_mw=2500), "limit of 2500 mW on power could not be checked: power is unknown (no sensor)"),
        (Policy(max_memory_bytes=64 << 20), "limit of 64 MiB on memory could not be checked"),
    ],
)
def test_a_limit_that_cannot_be_checked_is_told(policy: Policy, words: str) -> None:
    """Unknown is neither 0 nor a breach: the candidate is placed, and the verdict says what nobody could look at."""
    verdict = judge([entry(A)], policy, None)

    assert verdict.placement == A
    assert words in verdict.reason


def test_what_is_over_a_limit_is_told_with_both_figures() -> None:
    """The value and the limit, in one unit."""
    verdict = judge([entry(A, 10, rss=90 << 20), entry(B, 50)], Policy(max_memory_bytes=60 << 20), None)

    assert "memory of 90 MiB is over the policy's 60 MiB" in reason_of(verdict, A)


def test_a_tie_says_why_the_simpler_is_simpler() -> None:
    """Both the winner's and the tied one's reason name it."""
    verdict = judge([entry(B, 100), entry(C, 99.5)], Policy(), None)

    assert "within 1% of litert/int8/xnnpack/t2 (p50 99.5 us) and simpler (fewer threads)" in reason_of(verdict, B)
    assert "is a tie within 1%, and litert/int8/xnnpack/t1 is simpler (fewer threads)" in reason_of(verdict, C)


_results = st.lists(
    st.builds(
        lambda runtime, delegate, threads, p50, correct, outcome: entry(
            f"{runtime}/v/{delegate}/t{threads}", p50, correct=correct, outcome=outcome
        ),
        st.sampled_from(["litert", "tflite"]),
        st.sampled_from(["none", "xnnpack"]),
        st.integers(1, 4),
        st.floats(1, 1e6),
        st.none() | st.integers(0, 100),
        st.sampled_from([Outcome.MEASURED, Outcome.MEASURED, Outcome.DROPPED, Outcome.CRASHED]),
    ),
    max_size=12,
    unique_by=lambda result: result.id,
)


@given(_results, st.none() | st.just(FLOOR))
def test_the_winner_is_eligible_and_near_the_best(results: list[CandidateResult], floor: Floor | None) -> None:
    """Whatever raced: no ineligible winner, a tie costs 1 % at most, and order does not matter."""
    verdict = judge(results, Policy(), floor)

    eligible = [
        result
        for result in results
        if result.outcome == Outcome.MEASURED and (floor is None or floor.refuses(result.accuracy) is None)
    ]
    assert (verdict.placement is None) == (not eligible)
    if eligible:
        winner = next(result for result in eligible if result.id == verdict.placement)
        best = min(result.latency.p50_us for result in eligible if result.latency)
        assert winner.latency is not None
        assert winner.latency.p50_us <= best * (1 + TIE) + 1e-6
    assert judge(results[::-1], Policy(), floor).placement == verdict.placement
