"""The verdict on a new version, with its words."""

from __future__ import annotations

import pytest

from regatta_agent.core.facts import WorkerFacts
from regatta_agent.core.health import judge_accuracy, judge_trial
from regatta_agent.core.installs import Install, RaceSummary
from regatta_protocol.ids import ModelName
from regatta_protocol.measurement import Accuracy


def _install(version: int, accuracy: float | None, allowed: float = 0.05, committed_at: float | None = None) -> Install:
    measured = Accuracy(correct=round(accuracy * 1000), total=1000) if accuracy is not None else None
    race = RaceSummary(placement="c", accuracy=measured, max_trial_accuracy_drop=allowed)
    return Install(name=ModelName("digits"), version=version, race=race, committed_at=committed_at, trial_s=5.0)


@pytest.mark.parametrize(
    ("new", "old", "passed"),
    [(0.98, 0.98, True), (0.93, 0.98, True), (0.929, 0.98, False), (0.99, 0.5, True), (None, 0.98, True)],
)
def test_the_allowed_drop_is_the_limit(new: float | None, old: float | None, passed: bool) -> None:
    """A drop above the policy's fails; what cannot be compared does not."""
    assert judge_accuracy(_install(2, new), _install(1, old)).passed is passed


def test_the_reason_has_both_figures_and_the_limit() -> None:
    """The words that the fleet and `regatta-agent why` show."""
    verdict = judge_accuracy(_install(2, 0.41), _install(1, 0.98))

    assert verdict.reason == "accuracy 0.41 is 57 points below digits:1's 0.98; allowed 5"


def test_a_version_that_served_here_before_may_come_back() -> None:
    """Going back is the operator's wish, not a regression."""
    assert judge_accuracy(_install(1, 0.5, committed_at=1.0), _install(2, 0.98)).passed is True


@pytest.mark.parametrize(
    ("ready_for_s", "requests", "errors", "passed"),
    [(4.9, 0, 0, None), (5.0, 0, 0, True), (1.0, 20, 11, False), (1.0, 10, 10, None), (6.0, 100, 50, True)],
)
def test_a_trial_is_time_alive_and_few_errors(
    ready_for_s: float, requests: int, errors: int, passed: bool | None
) -> None:
    """Alive through trial_s passes; most of at least 20 requests failing ends it early."""
    worker = WorkerFacts("c", True, ready_for_s, "s", requests=requests, errors=errors)

    assert judge_trial(_install(2, 0.9), worker, None).passed is passed
