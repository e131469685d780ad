"""An agent beside a server that is older or newer than itself, and a record that a newer agent left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from device_rig import DEVICE, MODEL, Rig
from fleet_parts import SimulatedFleet
from regatta_agent.disk.record import RecordFile
from regatta_protocol import topics
from regatta_protocol.bus import Message
from regatta_protocol.codec import encode
from regatta_protocol.errors import Misuse
from regatta_protocol.ids import ModelRef, digest_of_bytes
from regatta_protocol.manifest import target_path
from regatta_protocol.messages import InstallState, ModelReport, Reported
from regatta_protocol.policy import Policy
from regatta_protocol.topics import Up


def serving(folder: Path) -> Rig:
    """Return a rig that serves version 1 and knows a version 2."""
    rig = Rig(folder).start()
    for version in (1, 2):
        rig.fleet.push(version)
    rig.fleet.assign(1)
    assert rig.run(until=rig.committed(1))
    return rig


def test_fields_and_topics_of_a_newer_server_are_passed_over(tmp_path: Path) -> None:
    """An assignment with more in it than this agent knows is taken up; what comes on new topics is not minded."""
    rig = serving(tmp_path)
    sign = rig.fleet.sign

    def newer(assignment: object) -> object:
        signed = sign(assignment)  # type: ignore[arg-type]
        wish = {**json.loads(signed.payload), "mood": "calm", "models": {MODEL: {"version": 2, "sheen": [1, {}]}}}
        return signed.model_copy(update={"payload": json.dumps(wish), "cipher": "none"})

    rig.fleet.sign = newer  # type: ignore[assignment]
    rig.fleet.say(f"rg/d/{DEVICE}/dn/weather", b"rain", retain=True)
    rig.fleet.say(topics.chunk(DEVICE, 7) + "/more", b"?")
    rig.fleet.assign(2, "r2")

    assert rig.run(until=rig.committed(2))


def test_an_objective_of_a_newer_server_is_taken_up_and_told(tmp_path: Path) -> None:
    """The race is told the word as it came (it falls back, and says so); nothing is refused."""
    rig = serving(tmp_path)
    rig.fleet.assign(2, "r2", policy=Policy(objective="carbon"))

    assert rig.run(until=rig.committed(2)), rig.loop._parts.desired.refused
    policy = rig.install(2).policy
    assert policy is not None and policy.objective == "carbon"
    rig.restart()
    assert rig.run(until=rig.committed(2))


def test_an_assignment_of_a_newer_schema_is_refused_with_the_way_out(tmp_path: Path) -> None:
    """Once, with words; nothing is tried again, and what serves goes on."""
    rig = serving(tmp_path)
    sign = rig.fleet.sign
    rig.fleet.sign = lambda assignment: sign(assignment.model_copy(update={"schema_version": 2}))
    rig.fleet.assign(2, "r2")
    rig.run(2)
    verifiers = len([child for child in rig.launcher.children if child.name.startswith("assignment")])
    rig.run(600, step_s=5)

    assert "schema version 2" in (rig.loop._parts.desired.refused or "")
    assert len([child for child in rig.launcher.children if child.name.startswith("assignment")]) == verifiers
    assert rig.committed(1)()


def test_a_manifest_of_a_newer_schema_fails_its_version_at_once_and_says_what_to_do(tmp_path: Path) -> None:
    """No retry loop: one download of the manifest, one reason, and the version before serves."""
    rig = serving(tmp_path)
    ref = ModelRef(MODEL, 2)
    newer = json.dumps({"schema_version": 2, "parts": {"int8": "of another shape"}}).encode()
    rig.fleet.manifests[target_path(ref)] = newer
    rig.fleet.blobs[digest_of_bytes(newer)] = newer
    rig.fleet.assign(2, "r2")

    assert rig.run(until=lambda: rig.state(2) == "failed")
    gets = rig.fleet.gets
    rig.run(600, step_s=5)
    assert "Manifest is of schema version 2, and this program knows up to 1: update it" in (rig.install(2).reason or "")
    assert rig.fleet.gets == gets
    assert rig.committed(1)()
    assert rig.fleet.reports[-1].models[-1].reason == rig.install(2).reason


def test_a_server_that_is_older_takes_what_it_knows_of_a_report() -> None:
    """A state that only newer agents have leaves the device's trial undecided; its other versions count."""
    fleet = SimulatedFleet()
    (device,) = fleet.enroll("pi")
    ref = fleet.push(1)
    rollout = fleet.start(1)
    models = (ModelReport(name=ref.name, version=1, state=InstallState.COMMITTED, rollout=rollout),)
    report = Reported(device=device, generation=1, sequence=1, agent_version="9", boot="b", models=models)
    data = encode(report).replace(b'"committed"', b'"warming_up"')

    fleet.ingest.take(Message(topics.up(device, Up.REPORTED), data), fleet.now)
    fleet.advance()

    assert fleet.ingest.counts["accepted"] == 1
    assert fleet.outcomes(rollout) == {device: "pending"}


@pytest.mark.parametrize("name", ["record.json", "record.previous.json"])
def test_a_record_of_a_newer_schema_stops_an_older_agent(tmp_path: Path, name: str) -> None:
    """Going on would lose what this agent does not know; the words say which agent to install."""
    (tmp_path / name).write_text('{"schema_version": 9, "installs": []}')

    with pytest.raises(Misuse, match="written by a newer agent"):
        RecordFile(tmp_path).load()


def test_a_state_that_only_a_newer_agent_knows_begins_anew(tmp_path: Path) -> None:
    """An agent that was put back cannot go on from there; the fleet and the disk give everything again."""
    rig = serving(tmp_path)
    rig.run(2)
    rig.kill()
    for path in tmp_path.glob("state/record*.json"):
        path.write_text(path.read_text().replace('"state":"committed"', '"state":"warming_up"'))
    gets = rig.fleet.gets
    rig.make()
    rig.start()

    assert rig.run(until=rig.committed(1))
    assert rig.fleet.gets == gets
