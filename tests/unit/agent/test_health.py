"""The verdict on a new version, with its words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from regatta_agent.core.facts import ShadowFacts, WorkerFacts
from regatta_agent.core.health import judge_accuracy, judge_shadow, judge_trial
from regatta_agent.core.installs import Install, RaceSummary
from regatta_protocol.ids import ModelName
from regatta_protocol.values import Accuracy


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


@pytest.mark.parametrize(
    ("shadow", "words"),
    [
        (None, "was shown no live request"),
        (ShadowFacts("old", 9, 0, 9, 9, None), "was shown no live request"),
        (ShadowFacts("next", 412, 0, 412, 407, None), "agreed on 98.8 % of 412 live requests"),
        (ShadowFacts("next", 30, 2, 0, 0, 31.25), "answered like it to an SNR of 31.2 dB, failed 2 of 30"),
        (ShadowFacts("next", 30, 0, 0, 0, None), "answered 30 live requests equally"),
        (ShadowFacts("next", 7, 7, 0, 0, None), "failed 7 of 7"),
    ],
)
def test_a_shadow_is_told_in_words(shadow: ShadowFacts | None, words: str) -> None:
    """Counts of another worker than the one that was just in the shadow say nothing."""
    verdict = judge_shadow(*_in_shadow(60.0, ready_for_s=60.0, shadow=shadow))

    assert (verdict.passed, verdict.reason) == (True, f"in the shadow of digits:1 it {words}")


def test_only_a_new_version_that_replaces_another_waits_in_its_shadow() -> None:
    """For the policy's time since its worker was ready; one that served here before does not wait."""
    install, worker, replaced, serving = _in_shadow(60.0, ready_for_s=59.0)

    assert judge_shadow(install, worker, replaced, serving).passed is None
    assert judge_shadow(install, worker, replaced, None).passed is None
    assert judge_shadow(install, worker, None, None).passed is True
    assert judge_shadow(install.model_copy(update={"committed_at": 1.0}), worker, replaced, serving).passed is True
    assert judge_shadow(*_in_shadow(0.0, ready_for_s=0.0)).passed is True


def test_the_trial_begins_after_the_shadow() -> None:
    """The worker was ready all the time that it was in the shadow, but answered nobody."""
    install, worker, replaced, _ = _in_shadow(60.0, ready_for_s=64.0)
    install = install.model_copy(update={"agreement": "it agreed"})

    assert judge_trial(install, worker, replaced).passed is None
    assert judge_trial(install, replace(worker, ready_for_s=65.0), replaced).passed is True


def _in_shadow(
    shadow_s: float, *, ready_for_s: float, shadow: ShadowFacts | None = None
) -> tuple[Install, WorkerFacts, Install, WorkerFacts]:
    """Return a placed version 2 and its worker, and version 1 with its own, which tells `shadow`."""
    race = RaceSummary(placement="c", shadow_s=shadow_s)
    install = Install(name=ModelName("digits"), version=2, race=race, trial_s=5.0)
    return install, WorkerFacts("c", True, ready_for_s, "next"), _install(1, 0.9), WorkerFacts(
        "c", True, 999.0, "one", shadow=shadow
    )  # fmt: skip
