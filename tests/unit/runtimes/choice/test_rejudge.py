"""When an earlier race answers for a changed policy, and when only a new one can."""

from __future__ import annotations

import pytest

from regatta_protocol.measurement import BoardFacts, CandidateResult, Outcome, RaceReport
from regatta_protocol.policy import Policy
from regatta_protocol.values import Latency
from regatta_runtimes.candidate import parse_candidate_id
from regatta_runtimes.choice.judge import judge
from regatta_runtimes.choice.rejudge import rejudge

FAST, SLOW = "litert/int8/xnnpack/t2", "litert/int8/none/t1"


def result(text: str, p50_us: float, p99_us: float, outcome: Outcome = Outcome.MEASURED) -> CandidateResult:
    candidate = parse_candidate_id(text)
    return CandidateResult(
        id=text,
        runtime=candidate.runtime,
        variant=candidate.variant,
        delegate=candidate.delegate,
        threads=candidate.threads,
        outcome=outcome,
        latency=Latency(samples=9, p50_us=p50_us, p90_us=p50_us, p99_us=p99_us),
        peak_rss_bytes=50 << 20,
    )


def raced(policy: Policy) -> RaceReport:
    results = (result(FAST, 10, 90), result(SLOW, 20, 22), result("tflite/int8/none/t1", 80, 90, Outcome.DROPPED))
    verdict = judge(results, policy, None)
    return RaceReport(
        model="m",
        version=1,
        board=BoardFacts(),
        candidates=verdict.candidates,
        placement=verdict.placement,
        reason=verdict.reason,
        objective=verdict.objective,
        policy=policy,
        duration_s=1,
    )


@pytest.mark.parametrize(
    ("before", "after", "answers"),
    [
        pytest.param(Policy(), Policy(max_p99_us=100), True, id="a limit that the winner keeps"),
        pytest.param(Policy(max_p99_us=100), Policy(), True, id="a limit taken away that refused nobody better"),
        pytest.param(Policy(), Policy(max_accuracy_drop=0.01), True, id="less accuracy to lose"),
        pytest.param(Policy(), Policy(max_slowdown=9), True, id="what no race looks at"),
        pytest.param(Policy(), Policy(max_p99_us=50), False, id="a limit that the winner breaks"),
        pytest.param(Policy(max_p99_us=50), Policy(), False, id="another wins when the limit goes"),
        pytest.param(Policy(), Policy(max_accuracy_drop=0.05), False, id="more accuracy to lose"),
        pytest.param(Policy(), Policy(objective="latency_p99"), False, id="another objective"),
        pytest.param(Policy(max_p99_us=1), Policy(), False, id="nothing was placed"),
    ],
)
def test_only_the_same_winner_needs_no_race(before: Policy, after: Policy, answers: bool) -> None:
    """Each clause of the rule, one line each."""
    found = rejudge(raced(before), after, None)

    assert (found is not None) == answers
    if found is not None:
        assert found.placement == raced(before).placement
        assert found.policy == after
        assert "the earlier race answers for it" in found.reason


def test_a_report_without_its_policy_is_raced_again() -> None:
    """An older agent's report does not say what it was judged by."""
    assert rejudge(raced(Policy()).model_copy(update={"policy": None}), Policy(), None) is None
