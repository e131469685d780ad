"""Races and devices are put into the same words for the command line and the page."""

from __future__ import annotations

import pytest

from regatta_fleet import verdicts
from regatta_protocol.measurement import Outcome, RaceReport
from regatta_runtimes.choice.report import ranked
from sample_fleet import device, harbor, race


def test_the_winner_comes_first_and_failures_last() -> None:
    """Candidates are ordered by what a reader looks for."""
    found = ranked(RaceReport.model_validate(race()))

    assert found[0].id == "litert/int8-pruned/xnnpack/t2"
    measured = [one.latency.p50_us for one in found if one.outcome == Outcome.MEASURED and one.latency]
    assert measured == sorted(measured)
    assert found[-1].latency is None


@pytest.mark.parametrize(
    ("candidate", "words"),
    [
        ("litert/int8-pruned/xnnpack/t2", "placed"),
        ("litert/int8/xnnpack/t2", "1.44× the placed one's p50"),
        ("litert/int8/edgetpu/t1", "crashed: signal 11 in libedgetpu.so.1 while preparing"),
        ("litert/float16/xnnpack/t2", "wrong outputs: 9 dB SNR against the reference, 30 asked"),
    ],
)
def test_each_candidate_is_told_why(candidate: str, words: str) -> None:
    """Winner, slower and failed ones each get their phrase."""
    report = RaceReport.model_validate(race())
    result = next(one for one in report.candidates if one.id == candidate)

    assert verdicts.candidate_verdict(result, report) == words


@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_outcome_has_words(outcome: Outcome) -> None:
    """No outcome is shown by its bare name, and none fails without a reason or a winner."""
    report = RaceReport.model_validate({**race(), "placement": None})
    result = report.candidates[0].model_copy(update={"outcome": outcome, "reason": None})

    words = verdicts.candidate_verdict(result, report)

    assert words
    assert "_" not in words


def test_a_device_shows_what_serves_and_what_failed() -> None:
    """An older version that no longer serves is left out."""
    crane = harbor().devices["crane-1"]
    serving, failed = crane.models
    retired = serving.model_copy(update={"serving": False, "version": 0})

    shown = verdicts.shown_models(crane.model_copy(update={"models": (retired, failed, serving)}))

    assert [(model.version, model.serving) for model in shown] == [(1, True), (2, False)]


def test_links_are_told_apart() -> None:
    """Up, down since, never seen, revoked."""
    up = device("a")

    assert verdicts.up_since(up, 0) == "up"
    assert verdicts.up_since(up.model_copy(update={"up": False, "last_seen": 40.0}), 100.0) == "down, 60 s ago"
    assert verdicts.up_since(up.model_copy(update={"up": False, "last_seen": None}), 100.0) == "never seen"
    assert verdicts.up_since(up.model_copy(update={"revoked": True}), 100.0) == "revoked"
