"""Batch jobs that the fleet starts: signed, one at a time, paused for races, resumed after kills, told to the end."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from device_rig import MODEL, Rig
from regatta_agent.cli.commands import cli
from regatta_agent.testing import ScriptedChild
from regatta_agent.work.batch_runner import BatchSaid, BatchSpec
from regatta_protocol.batch import (
    BatchJob,
    BatchReport,
    BatchState,
    BatchSummary,
    ResultsReport,
    ResultsState,
    ResultsWanted,
)
from regatta_protocol.codec import encode
from regatta_protocol.ids import Digest
from regatta_protocol.measurement import PriorRace, RaceReport

SUMMARY = BatchSummary(records=40, refused=1, seconds=2.0, per_second=20.0, classes={"seven": 39})
_S = BatchState


def job(number: int) -> BatchJob:
    return BatchJob(id=f"b-{number}", model=MODEL, input="/data/in", output=f"{number}.csv")


class BatchRig(Rig):
    """A device whose operator allows jobs, and whose jobs run until the test ends them."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.begun: list[str] = []
        leave: dict[str, object] = {"batch_folder": "/data/out", "batch_inputs": ["/data/in"]}
        super().__init__(folder, **(leave | settings))  # type: ignore[arg-type]  # settings of AgentConfig

    def make(self) -> None:
        super().make()
        self.launcher.batch = lambda _child, spec: self.begun.append(spec.job.id)

    def child(self) -> ScriptedChild:
        """Return the process of the job that runs: the only one."""
        (found,) = self.launcher.alive("batch-")
        return found

    def told(self, number: int) -> BatchReport | None:
        """Return what the fleet last heard of a job."""
        if not self.fleet.reports:
            return None
        return next((one for one in self.fleet.reports[-1].batch or () if one.id == f"b-{number}"), None)

    def pulled(self, number: int) -> ResultsReport | None:
        """Return what the fleet last heard of an output that it asks for."""
        if not self.fleet.reports:
            return None
        return next((one for one in self.fleet.reports[-1].results or () if one.id == f"b-{number}"), None)

    def stands(self, number: int, state: BatchState) -> bool:
        told = self.told(number)
        return told is not None and told.state is state

    def finish(self) -> None:
        child = self.child()
        child.say(encode(BatchSaid(records=40, total=40, summary=SUMMARY)))
        child.end(0)


def serving(folder: Path, **settings: object) -> BatchRig:
    rig = BatchRig(folder, **settings)
    rig.start()
    rig.fleet.push(1)
    rig.fleet.assign(1)
    assert rig.run(until=rig.committed(1))
    return rig


def test_jobs_are_done_in_turn_and_told_until_the_fleet_has_heard(tmp_path: Path) -> None:
    """Queued with its reason, running with its count, done with its summary; forgotten with the next assignment."""
    rig = serving(tmp_path)
    rig.fleet.assign(1, batch=(job(1), job(2)))
    assert rig.run(until=lambda: rig.stands(1, _S.RUNNING))
    waiting = rig.told(2)
    assert waiting is not None and waiting.reason == "waiting: b-1 is first"
    rig.child().say(encode(BatchSaid(records=9, total=40)))
    assert rig.run(until=lambda: (one := rig.told(1)) is not None and (one.records, one.total) == (9, 40))
    rig.finish()
    assert rig.run(until=lambda: rig.stands(1, _S.DONE) and rig.stands(2, _S.RUNNING))
    places = ("--state-dir", str(rig.config.state_dir), "--run-dir", str(rig.config.run_dir))
    shown = CliRunner().invoke(cli, ["status", *places]).output
    assert "b-1    done" in shown and "2.csv" in shown

    done = rig.told(1)
    assert done is not None and done.summary == SUMMARY
    rig.fleet.assign(1, batch=(job(2),))
    rig.run(5)
    assert rig.told(1) is None
    assert rig.begun == ["b-1", "b-2"]
    assert rig.committed(1)()


def test_a_killed_agent_goes_on_and_does_no_ended_job_again(tmp_path: Path) -> None:
    """The record says what ran and what was done; the process's journal does the rest."""
    rig = serving(tmp_path)
    rig.fleet.assign(1, batch=(job(1), job(2)))
    assert rig.run(until=lambda: rig.stands(1, _S.RUNNING))
    rig.restart()
    assert rig.run(until=lambda: rig.stands(1, _S.RUNNING) and rig.begun == ["b-1", "b-1"])
    rig.finish()
    assert rig.run(until=lambda: rig.stands(2, _S.RUNNING))
    rig.restart()

    assert rig.run(until=lambda: rig.stands(2, _S.RUNNING) and rig.stands(1, _S.DONE))
    assert rig.begun == ["b-1", "b-1", "b-2", "b-2"]


def test_cancelling_ends_the_process(tmp_path: Path) -> None:
    """What a newer generation no longer asks for is killed and told as cancelled; the next job takes its place."""
    rig = serving(tmp_path)
    rig.fleet.assign(1, batch=(job(1), job(2)))
    assert rig.run(until=lambda: rig.stands(1, _S.RUNNING))
    first = rig.child()
    rig.fleet.assign(1, batch=(job(2),))

    assert rig.run(until=lambda: rig.stands(1, _S.CANCELLED) and rig.stands(2, _S.RUNNING))
    assert first.ended
    assert rig.child() is not first


def test_a_race_is_not_measured_beside_a_job(tmp_path: Path) -> None:
    """While another version is raced no job's process is there; afterwards the job goes on."""
    rig = serving(tmp_path)
    beside: list[int] = []

    def watched(model: str, version: int, prior: PriorRace | None) -> RaceReport:
        beside.append(len(rig.launcher.alive("batch-")))
        return rig.race(model, version, prior)

    rig.fleet.assign(1, batch=(job(1),))
    assert rig.run(until=lambda: rig.stands(1, _S.RUNNING))
    first = rig.child()
    rig.launcher.race_key, rig.launcher.race = Digest("ab" * 32), watched  # a race that asks lasts for some turns
    rig.fleet.push(2)
    rig.fleet.assign(2, batch=(job(1),))

    assert rig.run(until=rig.committed(2))
    assert rig.run(until=lambda: rig.stands(1, _S.RUNNING))
    assert beside == [0] and first.ended


def test_an_unsigned_job_is_never_begun(tmp_path: Path) -> None:
    """Nothing in an assignment that is not the fleet's is acted on."""
    rig = serving(tmp_path)
    good = rig.fleet.sign
    rig.fleet.sign = lambda assignment: good(assignment).model_copy(update={"signature": "forged"})
    rig.fleet.assign(1, batch=(job(1),))
    rig.run(10)

    assert rig.begun == [] and rig.told(1) is None


def test_without_the_operators_leave_a_job_is_refused(tmp_path: Path) -> None:
    """By default; the reason that the fleet hears names the key of agent.toml."""
    rig = serving(tmp_path, batch_folder=None)
    rig.fleet.assign(1, batch=(job(1),))

    assert rig.run(until=lambda: rig.stands(1, _S.FAILED))
    told = rig.told(1)
    assert told is not None and "batch_folder is not set" in (told.reason or "")
    assert rig.begun == []


def test_a_job_that_keeps_breaking_ends_with_its_reason(tmp_path: Path) -> None:
    """Retried with back-off up to the agent's bound; what cannot succeed fails the first time."""
    rig = serving(tmp_path, max_attempts=3)
    broken = {"b-1": (75, "the model is away"), "b-2": (65, "no such input")}

    def end(child: ScriptedChild, spec: BatchSpec) -> None:
        rig.begun.append(spec.job.id)
        child.end(broken[spec.job.id][0], broken[spec.job.id][1])

    rig.launcher.batch = end
    rig.fleet.assign(1, batch=(job(1), job(2)))

    assert rig.run(120, until=lambda: rig.stands(1, _S.FAILED) and rig.stands(2, _S.FAILED))
    assert sorted(rig.begun) == ["b-1", "b-1", "b-1", "b-2"]
    first, second = rig.told(1), rig.told(2)
    assert first is not None and "given up after 3 attempts" in (first.reason or "")
    assert second is not None and second.reason == "no such input"


def wanted(number: int) -> ResultsWanted:
    return ResultsWanted(job=job(number), max_bytes=1_000_000)


def test_an_output_is_sent_while_the_assignment_asks_for_it(tmp_path: Path) -> None:
    """Begun again after a restart, and ended by an assignment that asks for it no more."""
    rig = serving(tmp_path)

    def sending() -> bool:
        told = rig.pulled(1)
        return told is not None and told.state is ResultsState.SENDING

    rig.fleet.assign(1, results=(wanted(1),))
    assert rig.run(until=sending)
    rig.restart()
    assert rig.run(until=lambda: sending() and len(rig.launcher.alive("sending-")) == 1)
    (child,) = rig.launcher.alive("sending-")
    rig.fleet.assign(1)

    assert rig.run(until=lambda: child.ended and rig.pulled(1) is None)
    rig.run(5)
    assert rig.launcher.alive("sending-") == []


def test_a_metered_link_sends_no_output_by_default(tmp_path: Path) -> None:
    """The fleet hears why, and nothing is begun."""
    rig = serving(tmp_path, link="metered")
    rig.fleet.assign(1, results=(wanted(1),))

    assert rig.run(until=lambda: (told := rig.pulled(1)) is not None and told.state is ResultsState.REFUSED)
    told = rig.pulled(1)
    assert told is not None and 'batch_results = "always"' in (told.reason or "")
    assert rig.launcher.alive("sending-") == []
