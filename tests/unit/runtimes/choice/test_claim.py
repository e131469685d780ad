"""What an earlier race claims here, and when figures of this board bear it out: the decision table."""

from __future__ import annotations

from collections.abc import Collection
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regatta_protocol.ids import Digest, digest_of_bytes
from regatta_protocol.manifest import Policy
from regatta_protocol.measurement import BoardFacts, CandidateResult, Outcome, PriorRace, RaceReport
from regatta_protocol.values import Accuracy, Latency, Power
from regatta_runtimes.candidate import Candidate, parse_candidate_id
from regatta_runtimes.choice.claim import RATIO_FACTOR, Claim, claim_of, disagreement, untried
from regatta_runtimes.choice.judge import judge
from regatta_runtimes.choice.yardstick import Floor

KEY = digest_of_bytes(b"this board")
DEFAULT = Policy()
P50S = {
    "litert/int8/xnnpack/t2": 10.0,
    "litert/int8/xnnpack/t1": 15.0,
    "litert/float32/xnnpack/t2": 20.0,
    "litert/int8/none/t1": 40.0,
    "tflite/int8/none/t1": 80.0,
    "tflite/int8/none/t2": 90.0,
}
WINNER, SECOND, THIRD, ANCHOR, *REST = P50S
CANDIDATES = tuple(parse_candidate_id(text) for text in P50S)


def result(
    name: str, p50_us: float | None = None, outcome: Outcome = Outcome.MEASURED, **more: object
) -> CandidateResult:
    candidate = parse_candidate_id(name)
    p50_us = P50S[name] if p50_us is None else p50_us
    return CandidateResult.model_validate(
        {
            "id": name,
            "runtime": candidate.runtime,
            "variant": candidate.variant,
            "delegate": candidate.delegate,
            "threads": candidate.threads,
            "outcome": outcome,
            "latency": Latency(samples=9, p50_us=p50_us, p90_us=p50_us, p99_us=p50_us * 2),
            **more,
        }
    )


def prior(*changed: CandidateResult, key: Digest = KEY, **fields: object) -> PriorRace:
    """Return a full race of the neighbor, with some results changed."""
    results = {name: result(name) for name in P50S} | {one.id: one for one in changed}
    report = RaceReport(
        model="m",
        version=1,
        board=BoardFacts(),
        candidates=tuple(results.values()),
        placement=WINNER,
        reason="r",
        duration_s=1,
        key=key,
    )
    return PriorRace.model_validate({"device": "neighbor", "at": 5.0, "report": report.model_copy(update=fields)})


def claimed(
    heard: PriorRace,
    policy: Policy = DEFAULT,
    floor: Floor | None = None,
    quarantined: Collection[str] = (),
    candidates: tuple[Candidate, ...] = CANDIDATES,
) -> Claim | str:
    return claim_of(heard, KEY, candidates, policy, floor, quarantined, Random(1))


def claim() -> Claim:
    made = claimed(prior())
    assert isinstance(made, Claim), made
    return made


def doubt(*changed: CandidateResult, policy: Policy = DEFAULT) -> str | None:
    """Return the disagreement when this board measures what the neighbor did, but for some results."""
    made = claim()
    here = {candidate.id: result(candidate.id) for candidate in made.tried} | {one.id: one for one in changed}
    return disagreement(made, judge(list(here.values()), policy, None), policy)


def test_the_best_three_an_anchor_and_one_by_lot_are_tried() -> None:
    """The placement first; the anchor is the simplest on the CPU with the placement's variant."""
    made = claim()

    assert [candidate.id for candidate in made.tried[:3]] == [WINNER, SECOND, THIRD]
    assert made.anchor is not None
    assert made.anchor.id == ANCHOR
    assert made.ratio == pytest.approx(0.25)
    assert made.origin.device == "neighbor"
    assert 4 <= len(made.tried) <= 5


def test_the_lot_reaches_every_candidate() -> None:
    """So that devices of one kind find out together which was wrongly called slow."""
    tried: set[str] = set()
    for seed in range(50):
        made = claim_of(prior(), KEY, CANDIDATES, Policy(), None, (), Random(seed))
        assert isinstance(made, Claim)
        tried |= {candidate.id for candidate in made.tried}

    assert tried == set(P50S)


@pytest.mark.parametrize(
    ("heard", "why"),
    [
        (prior(key=digest_of_bytes(b"another board")), "this board's key"),
        (prior(basis="confirmed"), "no full race"),
        (prior(candidates=(result(WINNER),)), f"nothing about {SECOND}"),
        (prior(candidates=()), f"nothing about {WINNER}"),
        (prior(*(result(name, outcome=Outcome.CRASHED) for name in P50S)), "none of its candidates"),
        (prior(result(SECOND, outcome=Outcome.QUARANTINED)), f"{SECOND} was quarantined"),
        (prior(result(SECOND, outcome=Outcome.INACCURATE)), f"{SECOND} was too inaccurate"),
    ],
)
def test_a_prior_that_cannot_be_confirmed_is_no_claim(heard: PriorRace, why: str) -> None:
    """Of another key, itself only confirmed, incomplete, or overtaken by what may take part now."""
    made = claimed(heard)

    assert isinstance(made, str)
    assert why in made


def test_a_changed_policy_is_judged_from_the_stored_figures() -> None:
    """The same race names another winner under another objective or limit; no new race for that."""
    heavy = prior(result(WINNER, peak_rss_bytes=2**30), *(result(name, peak_rss_bytes=2**20) for name in [*P50S][1:]))

    made = claimed(heavy, Policy(max_memory_bytes=2**25))

    assert isinstance(made, Claim)
    assert made.placement.id == SECOND


def test_a_looser_accuracy_asks_for_a_full_race_and_a_stricter_one_does_not() -> None:
    """What was too inaccurate then has no figures to judge; what is too inaccurate now has."""
    sloppy = Accuracy(correct=90, total=100)
    out = prior(result(WINNER, outcome=Outcome.INACCURATE, accuracy=sloppy))
    in_ = prior(result(WINNER, accuracy=sloppy))

    loosened, kept, tightened = (
        claimed(out, floor=Floor(0.8, 100)),
        claimed(out, floor=Floor(0.95, 100)),
        claimed(in_, floor=Floor(0.95, 100)),
    )

    assert isinstance(loosened, str)
    assert isinstance(kept, Claim)
    assert isinstance(tightened, Claim)
    assert kept.placement.id == tightened.placement.id == SECOND


def test_a_candidate_quarantined_on_both_boards_is_no_obstacle() -> None:
    """It is not tried here either."""
    made = claimed(prior(result(SECOND, outcome=Outcome.QUARANTINED)), quarantined={SECOND})

    assert isinstance(made, Claim)
    assert SECOND not in {candidate.id for candidate in made.tried}


def test_energy_is_not_confirmed() -> None:
    """A sensor needs seconds for each candidate."""
    power = Power(method="measured", power_mw=100, energy_per_inference_mj=1)

    made = claimed(prior(*(result(name, power=power) for name in P50S)), Policy(objective="energy"))

    assert isinstance(made, str)
    assert "energy" in made


def test_candidates_that_this_board_lacks_do_not_count() -> None:
    """A made-up one, however fast it claims to be, is not looked at."""
    made = claimed(prior(candidates=(result("litert/int8/warp/t1", 0.1), *(result(name) for name in P50S))))

    assert isinstance(made, Claim)
    assert made.placement.id == WINNER
    assert "litert/int8/warp/t1" not in made.results


def test_a_single_candidate_has_no_anchor() -> None:
    """There is nothing to choose; that it is sound is all there is to confirm."""
    made = claimed(prior(), candidates=CANDIDATES[:1])

    assert isinstance(made, Claim)
    assert made.anchor is None
    assert made.tried == CANDIDATES[:1]
    assert disagreement(made, judge([result(WINNER, 5000.0)], Policy(), None), Policy()) is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (result(WINNER, outcome=Outcome.WRONG_OUTPUT, reason="−3 dB"), "wrong_output here: −3 dB"),
        (result(WINNER, outcome=Outcome.INACCURATE), "inaccurate here"),
        (result(SECOND, outcome=Outcome.CRASHED), f"{SECOND} is crashed here"),
        (result(ANCHOR, outcome=Outcome.HUNG), f"{ANCHOR} is hung here"),
        (result(SECOND, 5.0), f"{SECOND} beats {WINNER} here: 2.00 times"),
        (result(WINNER, 12.0), None),  # slower, and still the fastest
        (result(WINNER, 10.0 * RATIO_FACTOR * 0.9), None),
        (result(WINNER, 5.0), None),  # wins by more than was claimed
        (result(SECOND, 9.5), None),  # within noise
        (result(SECOND, outcome=Outcome.INACCURATE), None),  # out by itself; it was never to be placed
    ],
)
def test_the_decision_table(changed: CandidateResult, words: str | None) -> None:
    """All sound, the winner within noise of the best, and not much slower than claimed."""
    found = doubt(changed)

    assert (found is None) if words is None else (found is not None and words in found), found


def test_a_winner_that_lost_its_lead_over_the_anchor_is_doubted() -> None:
    """Even where it still wins: an accelerator that fell behind says that this is not the board of the prior."""
    slow = [result(name, 30.0) for name in (WINNER, SECOND, THIRD)]

    found = doubt(*slow)

    assert found is not None
    assert f"{WINNER} takes 0.75 times the time of {ANCHOR} here and 0.25 times on neighbor" in found


def test_a_busy_board_is_not_doubted() -> None:
    """Everything five times as slow is the same choice."""
    assert doubt(*(result(name, 5 * us) for name, us in P50S.items() if name not in REST)) is None


def test_a_winner_that_breaks_the_policy_here_is_doubted() -> None:
    """Constraints hold for what this board measured."""
    found = doubt(policy=Policy(max_p99_us=15))

    assert found is not None
    assert "does not meet the policy" in found


@given(st.dictionaries(st.sampled_from(list(P50S)), st.floats(1.0, 1000.0)))
def test_no_figure_of_the_prior_gets_into_a_report(p50s: dict[str, float]) -> None:
    """What was not tried here has words about the other device, and no figures."""
    made = claimed(prior(*(result(name, us) for name, us in p50s.items())))

    assert isinstance(made, Claim)
    rest = untried(made)
    assert {one.id for one in rest} | {candidate.id for candidate in made.tried} == set(P50S)
    for one in rest:
        assert (one.latency, one.accuracy, one.outcome) == (None, None, Outcome.DROPPED)
        assert "on neighbor" in (one.reason or "")
