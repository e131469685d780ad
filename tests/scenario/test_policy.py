"""A policy that the fleet assigns: raced by, judged again by when it changes, and never at the cost of what serves."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_rig import MODEL, Rig
from regatta_agent.disk.store import Store
from regatta_agent.work.racing import race_spec
from regatta_protocol.ids import ModelRef
from regatta_protocol.measurement import PriorRace, RaceReport
from regatta_protocol.policy import Policy

ENERGY = Policy(objective="energy")
STRICT = Policy(max_p99_us=1)
XNNPACK, PLAIN = "litert/int8/xnnpack/t1", "litert/int8/none/t1"


class PolicyRig(Rig):
    """A device whose races place what the test says."""

    winner: str | None = XNNPACK
    fails = False

    def race(self, model: str, version: int, prior: PriorRace | None) -> RaceReport:
        report = super().race(model, version, prior)
        if self.fails:
            raise OSError("no process can be started")
        return report.model_copy(update={"placement": self.winner, "reason": "as the test says"})


def installed(folder: Path, policy: Policy | None = None) -> PolicyRig:
    rig = PolicyRig(folder)
    rig.start()
    rig.fleet.push(1)
    rig.fleet.assign(1, policy=policy)
    assert rig.run(until=rig.committed(1)), rig.install(1)
    return rig


def test_an_assigned_policy_that_does_not_change_costs_one_race(tmp_path: Path) -> None:
    """Raced by it once; later generations and restarts with the same policy race nothing."""
    rig = installed(tmp_path, ENERGY)
    rig.fleet.assign(1, policy=ENERGY)
    rig.run(10)
    rig.restart()
    rig.run(10)

    race = rig.install(1).race
    assert rig.races == [1]
    assert race is not None
    assert race.policy == ENERGY


@pytest.mark.parametrize("policy", [ENERGY, None], ids=["set", "cleared"])
def test_a_changed_policy_moves_the_placement(tmp_path: Path, policy: Policy | None) -> None:
    """Judged again while it serves; the new winner takes over by one rename, and no moment is without a worker."""
    rig = installed(tmp_path, None if policy else ENERGY)
    rig.winner = PLAIN
    rig.fleet.assign(1, policy=policy)

    def moved() -> bool:
        assert rig.committed(1)()
        return rig.install(1).placement == PLAIN and len(rig.launcher.alive("worker:")) == 1

    assert rig.run(until=moved, step_s=0.1)
    assert rig.races == [1, 1]
    race = rig.install(1).race
    assert race is not None
    assert (race.policy, race.placement) == (policy, PLAIN)


def test_a_policy_that_nobody_meets_leaves_the_old_placement_serving_and_says_why(tmp_path: Path) -> None:
    """Nothing is lost; the reason stands in every report; it is not raced over and over."""
    rig = installed(tmp_path)
    rig.winner = None
    rig.fleet.assign(1, policy=STRICT)
    rig.run(30)

    assert rig.races == [1, 1]
    assert rig.committed(1)()
    assert rig.install(1).placement == XNNPACK
    reason = rig.fleet.reports[-1].models[0].reason or ""
    assert "places nothing" in reason
    assert f"{XNNPACK} stays: as the test says" in reason


def test_the_reason_goes_when_the_policy_can_be_met_again(tmp_path: Path) -> None:
    """The next policy is judged anew."""
    rig = installed(tmp_path)
    rig.winner = None
    rig.fleet.assign(1, policy=STRICT)
    rig.run(30)
    rig.winner = XNNPACK
    rig.fleet.assign(1)
    rig.run(30)

    assert rig.install(1).reason is None
    assert rig.races == [1, 1, 1]


def test_a_race_that_fails_leaves_the_version_serving(tmp_path: Path) -> None:
    """Its failure is told, costs no attempt, and fails no version that serves; it is repeated after six hours."""
    rig = installed(tmp_path)
    rig.fails = True
    rig.fleet.assign(1, policy=ENERGY)
    rig.run(30)

    assert rig.committed(1)()
    assert "assigned since then failed, and is tried again later" in (rig.install(1).reason or "")
    assert rig.races == [1, 1]
    rig.fails = False
    rig.clock.pass_by(6 * 3600.0)
    rig.run(30)
    assert rig.races == [1, 1, 1]
    assert rig.install(1).reason is None


def test_a_version_that_nothing_could_serve_is_tried_again_by_another_policy(tmp_path: Path) -> None:
    """FAILED for want of a placement is no end: the operator may ask for less."""
    rig = PolicyRig(tmp_path)
    rig.winner = None
    rig.start()
    rig.fleet.push(1)
    rig.fleet.assign(1, policy=STRICT)
    assert rig.run(until=lambda: rig.state(1) == "failed")
    rig.winner = XNNPACK
    rig.fleet.assign(1)

    assert rig.run(until=rig.committed(1))


def test_a_change_during_the_trial_waits_for_its_end(tmp_path: Path) -> None:
    """What is on trial is not pulled away under it."""
    rig = PolicyRig(tmp_path)
    rig.start()
    rig.fleet.push(1)
    rig.fleet.assign(1)
    assert rig.run(until=lambda: rig.state(1) == "on_trial")
    rig.fleet.assign(1, policy=ENERGY)
    rig.run(1)
    assert (rig.state(1), rig.races) == ("on_trial", [1])

    assert rig.run(until=rig.committed(1))
    assert rig.run(until=lambda: rig.races == [1, 1])


def test_the_race_is_given_the_assigned_policy_and_the_earlier_report(tmp_path: Path) -> None:
    """The bundle's policy where none is assigned; the earlier report only for what serves already."""
    rig = installed(tmp_path)
    store = Store(rig.config.state_dir)
    manifest = store.manifest(ModelRef(MODEL, 1))
    assert manifest is not None
    settings = rig.loop._parts.actions._race

    first = race_spec(manifest, store, settings)
    again = race_spec(manifest, store, settings, assigned=ENERGY, again=True)

    assert (first["policy"]["objective"], first["earlier"]) == ("latency_p50", None)
    assert again["policy"]["objective"] == "energy"
    assert Path(again["earlier"]).is_file()
