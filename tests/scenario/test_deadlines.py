"""Nothing is in progress for ever: a child that hangs is ended by its deadline, and a version by its last attempt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from device_rig import Rig
from regatta_agent.serving.spec import MAX_SPEC_BYTES, ServeSpec
from regatta_agent.testing import ScriptedChild
from regatta_protocol.bus import Bus
from regatta_protocol.plain import read_json
from regatta_protocol.topics import Up, up
from regatta_provisioning.verifying import AssignmentJob, MetadataJob, parse_job

Program = Callable[[ScriptedChild, bytes], None]
Which = Callable[[ScriptedChild, bytes], bool]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """A device that serves version 1."""
    rig = Rig(tmp_path).start()
    for version in (1, 2):
        rig.fleet.push(version)
    rig.fleet.assign(1)
    assert rig.run(until=rig.committed(1))
    return rig


def of_metadata(_child: ScriptedChild, stdin: bytes) -> bool:
    return isinstance(parse_job(stdin), MetadataJob)


def of_assignments(_child: ScriptedChild, stdin: bytes) -> bool:
    return isinstance(parse_job(stdin), AssignmentJob)


def of_races(_child: ScriptedChild, _stdin: bytes) -> bool:
    return True


def of_the_new_version(child: ScriptedChild, _stdin: bytes) -> bool:
    return read_json(ServeSpec, Path(child.argv[3]).read_bytes(), MAX_SPEC_BYTES).version == 2


def hang(rig: Rig, monkeypatch: pytest.MonkeyPatch, program: str, which: Which) -> None:
    """Let these children say nothing, and live until they are killed."""
    begin: Program = getattr(rig.launcher, program)

    def launched(child: ScriptedChild, stdin: bytes) -> None:
        if not which(child, stdin):
            begin(child, stdin)

    monkeypatch.setattr(rig.launcher, program, launched)


@pytest.mark.parametrize(
    ("program", "which", "ends"),
    [
        ("_verifier", of_metadata, "failed"),
        ("_race", of_races, "failed"),
        ("_worker", of_the_new_version, "rolled_back"),
    ],
)
def test_a_child_that_hangs_is_ended_and_its_version_given_up(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, program: str, which: Which, ends: str
) -> None:
    """In whichever state; the reason says what it was, nothing is left running, and what served goes on."""
    hang(rig, monkeypatch, program, which)
    rig.fleet.assign(2, "r2")

    assert rig.run(until=lambda: rig.state(2) == ends, seconds=2 * 3600, step_s=5), rig.install(2)
    rig.run(2)
    assert " s and was ended" in (rig.install(2).reason or "") or "not ready" in (rig.install(2).reason or "")
    assert (rig.state(1), rig.serving()) == ("committed", 1)
    assert [child.name.partition("-2-")[1] for child in rig.launcher.alive()] == [""]


def test_an_assignment_whose_verifier_hangs_is_taken_up_later(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker says a retained message once; it is not forgotten with the child, and `status` says why it waits."""
    with monkeypatch.context() as hanging:
        hang(rig, hanging, "_verifier", of_assignments)
        rig.fleet.assign(2, "r2")
        rig.run(1800, step_s=5)
        assert rig.state(2) == "unknown"
        assert "not verified yet" in (rig.loop._parts.desired.refused or "")

    assert rig.run(until=rig.committed(2), seconds=600)


def test_reports_that_cannot_be_sent_undo_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Online, and no report gets out for a day: the update is finished and stays, also over a restart; told later."""
    publish = type(rig.bus).publish

    def silent(bus: Bus, topic: str, payload: bytes, **how: object) -> int:
        return 0 if topic == up(rig.device, Up.REPORTED) else publish(bus, topic, payload, **how)  # type: ignore[arg-type]

    with monkeypatch.context() as mute:
        mute.setattr(type(rig.bus), "publish", silent)
        told = len(rig.fleet.reports)
        rig.fleet.assign(2, "r2")
        assert rig.run(until=rig.committed(2))
        rig.run(86_400, step_s=60)
        rig.restart()
        assert rig.run(until=rig.committed(2))
        assert len(rig.fleet.reports) == told
    rig.restart()
    rig.run(5)

    assert {model.version: model.state for model in rig.fleet.reports[-1].models} == {1: "retired", 2: "committed"}
