"""A new version in the shadow of the one that serves: it is compared on live requests, and only then takes over."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_rig import MODEL, Rig
from regatta_agent.serving.events import Shadowed
from regatta_agent.serving.spec import MAX_SPEC_BYTES, ServeSpec
from regatta_protocol.plain import read_json, to_json
from regatta_protocol.policy import Policy

SHADOW_S = 60.0
POLICY = Policy(shadow_s=SHADOW_S)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """A device that serves version 1 and was just given version 2."""
    rig = Rig(tmp_path)
    rig.start()
    rig.fleet.push(1)
    rig.fleet.push(2)
    rig.fleet.assign(1, policy=POLICY)
    assert rig.run(until=rig.committed(1), seconds=SHADOW_S / 2), "the first has nothing to be compared with"
    rig.fleet.assign(2, policy=POLICY)
    assert rig.run(until=_shadow(rig).is_symlink)
    return rig


def _shadow(rig: Rig) -> Path:
    return rig.config.run_dir / f"{MODEL}.shadow"


def _told(rig: Rig) -> list[str]:
    """Return each reason of version 2 that the fleet has been given, in order."""
    said = [model.reason or "" for report in rig.fleet.reports for model in report.models if model.version == 2]
    return list(dict.fromkeys(said))


def test_it_is_shown_requests_until_its_time_is_over_and_what_was_found_is_reported(rig: Rig) -> None:
    """The worker that serves is told where to send them; agreement reaches the fleet; the link goes with the trial."""
    serving, beside = rig.launcher.alive("worker:")
    spec = read_json(ServeSpec, Path(serving.argv[3]).read_bytes(), MAX_SPEC_BYTES)
    socket = read_json(ServeSpec, Path(beside.argv[3]).read_bytes(), MAX_SPEC_BYTES).socket_path
    assert spec.shadow_path == _shadow(rig)
    assert _shadow(rig).resolve() == socket.resolve()

    rig.run(SHADOW_S / 2)
    assert rig.state(2) == "placed"
    serving.say(to_json(Shadowed(socket=socket.name, requests=413, failed=1, classified=412, agreed=407)))
    assert rig.run(until=rig.committed(2), seconds=SHADOW_S)

    assert not _shadow(rig).is_symlink()
    told = "; ".join(_told(rig))
    assert f"in the shadow of {MODEL}:1 for 60 s" in told
    assert f"in the shadow of {MODEL}:1 it agreed on 98.8 % of 412 live requests, failed 1 of 413" in told


def test_one_that_is_withdrawn_leaves_the_shadow(rig: Rig) -> None:
    """The link is taken away, and the version that serves goes on."""
    rig.fleet.assign(1, policy=POLICY)

    assert rig.run(until=lambda: rig.state(2) == "retired")
    assert rig.run(until=lambda: not _shadow(rig).is_symlink())
    assert rig.state(1) == "committed"


def test_an_agent_that_starts_again_begins_the_shadow_anew(rig: Rig) -> None:
    """What an agent before it left is cleared; version 2 is still compared before it takes over."""
    rig.restart()

    assert rig.run(until=_shadow(rig).is_symlink)
    assert rig.state(2) == "placed"
    assert rig.run(until=rig.committed(2), seconds=2 * SHADOW_S)
    assert any("was shown no live request" in reason for reason in _told(rig))
