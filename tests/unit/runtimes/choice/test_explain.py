"""A race's choice in plain words, read from its report alone."""

from __future__ import annotations

import pytest

from regatta_protocol.measurement import BoardFacts, CandidateResult, Conditions, Outcome, PairedDrop, RaceReport
from regatta_protocol.policy import Policy
from regatta_protocol.values import Accuracy, Latency, Power, unknown_power
from regatta_runtimes.candidate import parse_candidate_id
from regatta_runtimes.choice.explain import explain
from regatta_runtimes.choice.judge import judge
from regatta_runtimes.choice.pareto import pareto_front
from regatta_runtimes.choice.report import OUTCOME_WORDS, race_document

WINNER, NEXT, NAIVE = "litert/int8/xnnpack/t2", "litert/float/xnnpack/t2", "tflite/int8/none/t1"


def one(text: str, p50_us: float | None, outcome: Outcome = Outcome.MEASURED, **more: object) -> CandidateResult:
    candidate = parse_candidate_id(text)
    latency = None if p50_us is None else Latency(samples=400, p50_us=p50_us, p90_us=p50_us, p99_us=p50_us * 2)
    fields: dict[str, object] = {
        "id": text,
        "runtime": candidate.runtime,
        "variant": candidate.variant,
        "delegate": candidate.delegate,
        "threads": candidate.threads,
        "outcome": outcome,
        "reason": None if outcome == Outcome.MEASURED else f"it {outcome}",
        "latency": latency,
        "power": unknown_power("no INA3221 here"),
        "peak_rss_bytes": 40 << 20,
        **more,
    }
    return CandidateResult.model_validate(fields)


FIELD = (
    one(WINNER, 100, accuracy=Accuracy(correct=96, total=100), conditions=Conditions(rounds=5, steady=True)),
    one(NEXT, 150, accuracy=Accuracy(correct=97, total=100)),
    one(NAIVE, 1320, Outcome.DROPPED),
    one("litert/pruned/xnnpack/t2", 80, Outcome.INACCURATE, accuracy=Accuracy(correct=60, total=100)),
    one("litert/int8/edgetpu/t1", None, Outcome.UNAVAILABLE),
    one("litert/int8/vx/t1", None, Outcome.CRASHED),
    one("litert/int8/qnn/t1", None, Outcome.CRASHED),
)


def report(results: tuple[CandidateResult, ...] = FIELD, policy: Policy | None = None) -> RaceReport:
    """Return the report that a race of these results would leave."""
    policy = policy or Policy()
    verdict = judge(results, policy, None)
    return RaceReport(
        model="m",
        version=1,
        board=BoardFacts(model="Raspberry Pi 5", cores=4),
        candidates=verdict.candidates,
        pareto=pareto_front(verdict.candidates),
        placement=verdict.placement,
        reason=verdict.reason,
        objective=verdict.objective,
        policy=policy,
        duration_s=6.2,
        conditions={"load_1m": "0.30"},
    )


def test_it_says_what_was_asked_and_by_how_much_what_won() -> None:
    """The objective and limits, the margin over the next and over the naive default."""
    text = "\n".join(explain(report(policy=Policy(max_p99_us=5000))))

    assert "Asked for: the least median latency (p50), at most 2 points of accuracy lost, p99 at most 5000 us." in text
    assert f"Chosen: {WINNER}, p50 100 us, 1.50 times as fast as the next, {NEXT} (p50 150 us)" in text
    assert "13.2 times as fast as the naive default (tflite-runtime, one thread: p50 1320 us)" in text


def test_what_is_out_is_grouped_by_why() -> None:
    """Alike ones once, with their number, names and the first's reason."""
    lines = explain(report())

    assert "  crashed (2): litert/int8/qnn/t1, litert/int8/vx/t1 (the first: it crashed)" in lines
    assert "  loses too much accuracy (1): litert/pruned/xnnpack/t2 (it inaccurate)" in lines
    assert "  not on this board (1): litert/int8/edgetpu/t1 (it unavailable)" in lines
    assert any(line.startswith(f"  measured to the end, and not the best (1): {NEXT}") for line in lines)


def test_what_is_not_known_is_said_with_why() -> None:
    """Power by its reason, temperature, throttling, and each limit that nobody could check."""
    text = "\n".join(explain(report(policy=Policy(max_power_mw=900))))

    assert "Unknown: power and energy (no INA3221 here); temperature (no sensor" in text
    assert "The policy's limit of 900 mW on power could not be checked: power is unknown (no INA3221 here)." in text


def test_a_tie_is_told_with_why_the_simpler_won() -> None:
    """Within 1 %, fewer threads."""
    text = "\n".join(explain(report((one("litert/int8/xnnpack/t1", 100.5), one(WINNER, 100)))))

    assert f"Close, within 1% of the best, so that the simplest was taken: {WINNER} (p50 100 us; " in text
    assert "the placed one is simpler: fewer threads" in text


def test_a_far_shorter_tail_for_a_little_more_is_pointed_out() -> None:
    """Half the p99 for at most half as much again of the p50; with p99 asked for there is nothing to say."""
    steady = Latency(samples=400, p50_us=120, p90_us=130, p99_us=150)
    jumpy = Latency(samples=400, p50_us=100, p90_us=300, p99_us=900)
    results = (one(WINNER, 100, latency=jumpy), one("litert/int8/xnnpack/t1", 120, latency=steady))

    text = "\n".join(explain(report(results)))

    assert "Mind the tail: its p99 900 us, and litert/int8/xnnpack/t1 has p99 150 us at 1.20 times the p50." in text
    assert "Mind the tail" not in "\n".join(explain(report(results, Policy(objective="latency_p99"))))
    assert "Mind the tail" not in "\n".join(explain(report()))


def test_what_was_kept_though_another_was_better_is_told_with_why() -> None:
    """A new race beside what serves moves it only for a clear gain (docs/failover.md)."""
    kept = report().model_copy(update={"placement": NEXT, "reason": f"{NEXT} stays: {WINNER} won, but by less"})

    assert f"It is not the best of this race: {NEXT} stays: {WINNER} won, but by less." in explain(kept)


def test_the_conditions_are_told() -> None:
    """Board, time, rounds and what the race noted."""
    last = explain(report())[-1]

    assert last.startswith(
        "Measured on Raspberry Pi 5 with 4 cores in 6.2 s; 400 inferences of the placed one in 5 rounds"
    )
    assert "load 1m 0.30" in last


@pytest.mark.parametrize(
    ("drop", "words"),
    [
        (
            PairedDrop(reference=NEXT, drop=0.01, low=-0.02, high=0.05, samples=100, available=100),
            f"1.0 points lost against {NEXT} on the same 100 samples, 95 % interval -2.0 to 5.0.",
        ),
        (
            PairedDrop(reference=WINNER, drop=0, low=0, high=0, samples=100, available=100),
            "it is what the others are compared with.",
        ),
    ],
)
def test_accuracy_is_told_with_its_interval(drop: PairedDrop, words: str) -> None:
    """The paired difference against the reference; the reference itself is named as such."""
    winner = one(WINNER, 100, accuracy=Accuracy(correct=96, total=100), accuracy_drop=drop)

    assert any(words in line for line in explain(report((winner,))))


def test_energy_without_a_sensor_says_what_stood_in() -> None:
    """The objective that was asked for and the one that was judged by."""
    text = explain(report(policy=Policy(objective="energy")))[0]

    assert "the least energy per inference" in text
    assert "That objective is unknown here, so the least median latency (p50) stood in for it." in text


def test_an_objective_of_a_newer_fleet_is_named_as_it_came() -> None:
    """The explanation does not fail on a word, and says what stood in."""
    text = explain(report(policy=Policy(objective="carbon")))[0]

    assert "carbon, which this program does not know" in text
    assert "the least median latency (p50) stood in for it." in text


def test_energy_is_compared_as_energy() -> None:
    """Not as speed."""
    results = (
        one(WINNER, 100, power=Power(method="measured", power_mw=900.0, energy_per_inference_mj=1.0)),
        one(NEXT, 50, power=Power(method="measured", power_mw=900.0, energy_per_inference_mj=4.0)),
    )

    text = "\n".join(explain(report(results, Policy(objective="energy"))))

    assert f"25 % of the energy of the next, {NEXT} (4 mJ an inference)" in text


def test_nothing_placed_says_so_and_why() -> None:
    """A policy that nobody meets."""
    text = "\n".join(explain(report(policy=Policy(max_p99_us=1))))

    assert "Nothing was placed: none of 7 candidates" in text
    assert "over a limit of the policy (2)" in text


def test_a_report_of_an_older_agent_is_told_without_its_policy() -> None:
    """Unknown is said, not guessed."""
    text = explain(report().model_copy(update={"policy": None}))[0]

    assert "an older agent wrote this report" in text


def test_every_outcome_has_words() -> None:
    """None is shown by its bare name."""
    assert set(OUTCOME_WORDS) == set(Outcome)
    assert not any("_" in words for words in OUTCOME_WORDS.values())


def test_the_document_names_what_programs_read() -> None:
    """candidates with id, p50_us and p99_us or a reason; placement; and the whole report besides."""
    document = race_document(report())

    assert document["placement"] == WINNER
    assert [document["candidates"][0][key] for key in ("id", "p50_us", "p99_us")] == [WINNER, 100, 200]
    assert all(one["p50_us"] is not None or one["reason"] for one in document["candidates"])
    assert RaceReport.model_validate(document).placement == WINNER
