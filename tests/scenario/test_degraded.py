"""A device whose placement fails: what its workers say reaches the record, the report and the next start."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from device_rig import MODEL, Rig
from regatta_agent.disk.quarantine_file import QuarantineFile
from regatta_agent.loop import Loop
from regatta_agent.serving import giving_way
from regatta_agent.serving.events import Degraded, Drifted, Recovered, WorkerEvent
from regatta_agent.serving.spec import MAX_SPEC_BYTES, ServeSpec
from regatta_protocol.measurement import CandidateResult, PriorRace, RaceReport
from regatta_protocol.messages import ModelReport
from regatta_protocol.plain import read_json, to_json
from regatta_protocol.policy import Policy

WINNER, STANDBY = "litert/int8/xnnpack/t1", "litert/int8/none/t1"
REASON = "the runner was ended by SIGSEGV"
DEGRADED = Degraded(winner=WINNER, placement=STANDBY, reason=REASON, since=7.0, retried=(6.0,))


class _Asking(Rig):
    """A device whose races say by which policy they chose, as real ones do."""

    policy: Policy | None = None

    def race(self, model: str, version: int, prior: PriorRace | None) -> RaceReport:
        return super().race(model, version, prior).model_copy(update={"policy": self.policy})


def installed(folder: Path, policy: Policy | None = None) -> Rig:
    """Return a rig that serves version 1."""
    rig = _Asking(folder)
    rig.policy = policy
    rig.start()
    rig.fleet.push(1)
    rig.fleet.assign(1)
    assert rig.run(until=rig.committed(1)), rig.install(1)
    return rig


def say(rig: Rig, event: WorkerEvent) -> None:
    """Let the worker that serves say something, and the agent act on it."""
    (worker,) = rig.launcher.alive("worker:")
    worker.say(to_json(event))
    rig.run(2.0)


def spec_of(rig: Rig) -> ServeSpec:
    """Return what the youngest worker was told."""
    return read_json(ServeSpec, Path(rig.launcher.alive("worker:")[-1].argv[3]).read_bytes(), MAX_SPEC_BYTES)


def reported(rig: Rig) -> ModelReport:
    return rig.fleet.reports[-1].models[0]


def test_the_fleet_sees_degraded_with_the_reason_and_what_really_serves(tmp_path: Path) -> None:
    """From the worker's word to the report, and back when the winner serves again; nothing is restarted."""
    rig = installed(tmp_path)
    before = rig.launcher.alive("worker:")
    say(rig, DEGRADED)

    assert (reported(rig).placement, reported(rig).degraded) == (STANDBY, REASON)
    assert (reported(rig).serving, reported(rig).state) == (True, "committed")
    say(rig, Recovered(placement=WINNER, retried=(6.0, 9.0)))
    assert (reported(rig).placement, reported(rig).degraded) == (WINNER, None)
    assert rig.launcher.alive("worker:") == before
    say(rig, DEGRADED)
    rig.fleet.assign(None, "gone")
    assert rig.run(until=lambda: rig.state(1) == "retired")
    assert rig.run(until=lambda: reported(rig).state == "retired")
    assert reported(rig).degraded is None


def test_crashes_while_serving_count_as_those_in_races_do_until_it_serves_again(tmp_path: Path) -> None:
    """A hang counts, an answer that was wrong does not; after the second crash the next race leaves the winner out."""
    rig = installed(tmp_path)
    file = QuarantineFile(rig.config.state_dir)
    say(rig, DEGRADED)
    assert not file.load().pairs
    say(rig, replace(DEGRADED, crashed=True))
    say(rig, replace(DEGRADED, crashed=True))

    refused = file.load().refuses("the pair of xnnpack")
    assert refused is not None and REASON in refused
    say(rig, Recovered(placement=WINNER))
    assert not file.load().pairs


def test_a_worker_is_told_who_may_stand_in_and_what_the_race_measured(tmp_path: Path) -> None:
    """The spec holds the standbys, their figures and the policy's slow-down."""
    spec = spec_of(installed(tmp_path))

    assert (spec.candidate_id, [one.candidate_id for one in spec.standbys]) == (WINNER, [STANDBY])
    assert spec.latency is not None and spec.standbys[0].latency is not None
    assert (spec.latency.p50_us, spec.standbys[0].latency.p50_us, spec.max_slowdown) == (50.0, 80.0, 3.0)
    assert (spec.guarded, spec.resting, spec.retried, spec.companions) == (False, None, (), ())


@pytest.mark.parametrize(("pool_size", "companions"), [(1, []), (2, [STANDBY]), (4, [STANDBY])])
def test_a_policy_lets_the_next_best_serve_too(tmp_path: Path, pool_size: int, companions: list[str]) -> None:
    """As many as it asks for, and as there are; they stand in for the winner as before."""
    spec = spec_of(installed(tmp_path, Policy(pool_size=pool_size)))

    assert [one.candidate_id for one in spec.companions] == companions
    assert [one.candidate_id for one in spec.standbys] == [STANDBY]


def test_retries_are_remembered_over_a_power_cut(tmp_path: Path) -> None:
    """A board that starts again and again does not begin its back-off anew; it does try the winner first."""
    rig = installed(tmp_path)
    say(rig, DEGRADED)
    rig.restart()
    assert rig.run(until=rig.committed(1))

    assert spec_of(rig).retried == (6.0,)
    assert spec_of(rig).resting is None
    assert rig.run(until=lambda: reported(rig).degraded is None, seconds=30)


def test_a_winner_that_kept_ending_its_worker_is_taken_back_when_its_stand_in_says_so(tmp_path: Path) -> None:
    """Three deaths: the next one serves with the winner at rest behind a guard; then the same worker takes it back."""
    rig = installed(tmp_path)
    for _ in range(3):
        rig.launcher.alive("worker:")[0].end(-11)
        assert rig.run(until=rig.committed(1), seconds=5)
    spec = spec_of(rig)
    rig.run(2.0)

    assert (spec.candidate_id, spec.guarded, spec.standbys[0].candidate_id) == (WINNER, True, STANDBY)
    assert "ended its worker 3 times" in (spec.resting or "")
    assert (reported(rig).placement, reported(rig).degraded) == (STANDBY, spec.resting)
    before = rig.launcher.alive("worker:")
    say(rig, Recovered(placement=WINNER, retried=(6.0,)))
    assert (rig.install(1).placement, rig.install(1).degraded, reported(rig).degraded) == (WINNER, None, None)
    assert rig.launcher.alive("worker:") == before
    before[0].end(-9)
    assert rig.run(until=rig.committed(1), seconds=5)
    assert (spec_of(rig).candidate_id, spec_of(rig).guarded, spec_of(rig).resting) == (WINNER, True, None)


def _reversed(rig: Rig, monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Let the next races find the second candidate faster than the first by `factor`."""
    true_race = Rig.race

    def race(self: Rig, model: str, version: int, prior: PriorRace | None) -> RaceReport:
        report = true_race(self, model, version, prior)
        first, second = report.candidates
        assert first.latency is not None
        faster = replace(first.latency, p50_us=first.latency.p50_us * factor)
        results: tuple[CandidateResult, ...] = (first, second.model_copy(update={"latency": faster}))
        return report.model_copy(update={"candidates": results, "placement": second.id})

    monkeypatch.setattr(Rig, "race", race)
    rig.launcher.race = lambda model, version, prior: race(rig, model, version, prior)


def _with_versions(rig: Rig, monkeypatch: pytest.MonkeyPatch, runtime: str) -> None:
    """Let the agent find this version of the runtime from its next start on."""
    monkeypatch.setattr("regatta_agent.bootstrap.versions_here", lambda _board: {"ai-edge-litert": runtime})


def test_a_new_runtime_is_raced_beside_the_worker_and_its_winner_takes_over_without_a_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At no moment does the socket lead nowhere; it happens once."""
    rig = Rig(tmp_path)
    _with_versions(rig, monkeypatch, "2.3")
    rig.make()
    rig.start()
    rig.fleet.push(1)
    rig.fleet.assign(1)
    assert rig.run(until=rig.committed(1))
    _with_versions(rig, monkeypatch, "2.4")
    rig.clock.pass_by(7 * 3600.0)
    rig.restart()
    _reversed(rig, monkeypatch, 0.5)
    assert rig.run(until=rig.serves)

    def gapless() -> bool:
        assert rig.serves()
        return rig.install(1).placement == STANDBY and len(rig.launcher.alive("worker:")) == 1

    assert rig.run(90, until=gapless, step_s=0.1), rig.install(1)  # what serves has to prove sound for a minute first
    assert spec_of(rig).candidate_id == STANDBY
    rig.clock.pass_by(7 * 3600.0)
    rig.run(5.0)
    assert rig.races == [1, 1]
    assert (rig.install(1).state, rig.install(1).race is not None) == ("committed", True)


def test_only_a_worker_that_starts_beside_one_that_serves_gives_way(tmp_path: Path) -> None:
    """The first one has nobody to give way to, and whoever waits for it shall not wait longer."""
    rig = Rig(tmp_path)
    rig.start()
    for generation in (1, 2):
        rig.fleet.push(generation)
        rig.fleet.assign(generation)
        assert rig.run(until=rig.committed(generation))
    workers = [child for child in rig.launcher.children if child.name.startswith("worker:")]
    assert [giving_way.OPTION in worker.argv for worker in workers] == [False, True]


@pytest.mark.parametrize("factor", [0.9, 2.0])
def test_a_new_race_that_finds_nothing_clearly_better_moves_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    """After drift: the same worker goes on, and the kept report says what serves and why."""
    rig = installed(tmp_path)
    _reversed(rig, monkeypatch, factor)
    before = rig.launcher.alive("worker:")
    rig.clock.pass_by(7 * 3600.0)
    say(rig, Drifted(placement=WINNER, expected_us=50.0, found_us=100.0))

    assert rig.run(until=lambda: rig.races == [1, 1])
    rig.run(5.0)
    assert rig.launcher.alive("worker:") == before
    assert (rig.install(1).placement, rig.install(1).rerace) == (WINNER, None)
    kept = json.loads((rig.config.state_dir / "races" / f"{MODEL}-1.json").read_text())
    assert kept["placement"] == WINNER
    assert "stays" in kept["reason"]


def test_drift_waits_for_the_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Soon after a race there is no other, whatever a worker says."""
    rig = installed(tmp_path)
    say(rig, Drifted(placement=WINNER, expected_us=50.0, found_us=100.0))
    rig.run(60.0)
    assert rig.races == [1]

    rig.clock.pass_by(6 * 3600.0)
    assert rig.run(until=lambda: rig.races == [1, 1])


def test_a_kill_during_such_a_race_costs_the_race_and_not_the_serving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not begun again at once: a race that ends the board would end it at every start."""
    rig = installed(tmp_path)
    monkeypatch.setattr(type(rig.launcher), "_race", lambda self, child, stdin: None)  # a race that never ends
    rig.clock.pass_by(7 * 3600.0)
    say(rig, Drifted(placement=WINNER, expected_us=50.0, found_us=100.0))
    assert rig.run(until=lambda: bool(rig.launcher.alive("rerace-")))
    rig.restart()

    assert rig.run(until=rig.committed(1))
    rig.run(60.0)
    assert not rig.launcher.alive("rerace-")
    assert isinstance(rig.loop, Loop)
    assert rig.install(1).rerace is not None
