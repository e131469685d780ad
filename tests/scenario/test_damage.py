"""Files of the state folder that were damaged while nobody looked: one line in the log, and all ends where it was."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from device_rig import Rig
from regatta_agent.disk.traffic import TrafficFile
from regatta_agent.lost_identity import who_we_are
from regatta_agent.serving.events import Failed, Ready, SelfTest
from regatta_agent.serving.spec import ServeSpec
from regatta_agent.status import read_status
from regatta_agent.testing import ScriptedChild
from regatta_protocol.bus import Bus
from regatta_protocol.codec import encode
from regatta_protocol.durable import write_durably
from regatta_protocol.errors import Misuse
from regatta_protocol.ids import digest_of_bytes
from regatta_protocol.plain import to_json
from regatta_provisioning.identity import IDENTITY_FILE
from regatta_provisioning.sealed import SEALED_FILE

_SIZE_BYTES = 400_000


def honest(child: ScriptedChild, spec: ServeSpec) -> None:
    """Serve as a runtime would: from the file, if it is the model."""
    content = spec.variant_path.read_bytes()
    if digest_of_bytes(content) != spec.variant_path.name:
        child.say(to_json(Failed(family="rejected", reason="this is no model")))
        child.end(1)
        return
    spec.socket_path.touch()
    child.say(to_json(Ready(load_us=1000.0, self_test=SelfTest(samples=4, passed=True, reason="equal"))))


def start(rig: Rig) -> Rig:
    rig.outbox.close()
    rig.make()
    rig.launcher.serve = honest
    return rig.start()


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """A device that has served version 1, is in the middle of fetching version 2, and was switched off."""
    rig = Rig(tmp_path)
    rig.race_key = digest_of_bytes(b"race")
    start(rig)
    for version in (1, 2):
        rig.fleet.push(version, _SIZE_BYTES)
    rig.fleet.assign(1)
    assert rig.run(until=rig.committed(1))
    (rig.config.state_dir / "quarantine.json").write_text("{}")
    write_durably(rig.config.state_dir / "traffic.json", encode(TrafficFile(since=1.0, causes={"telemetry": (5, 0)})))
    chunks = [0]

    def silent_after_some(_get: object, data: bytes) -> bytes:
        chunks[0] += 1
        return data if chunks[0] < 20 else b""

    rig.fleet.tamper = silent_after_some
    rig.fleet.assign(2, "r2")
    rig.run(3)
    assert rig.state(2) == "downloading"
    rig.broker.cut(rig.device, reconnect=False)
    rig.loop.turn(0.0)
    rig.kill()
    rig.fleet.tamper = lambda _get, data: data
    return rig


def emptied(content: bytes) -> bytes:
    return b""


def cut_short(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    """Every 97th byte is another, as of a page that was never written."""
    return bytes(byte ^ 0x5A if index % 97 == 0 else byte for index, byte in enumerate(content))


DAMAGES = (  # pattern, kept as, may cost bytes
    ("record.json", "record.json.damaged", 0),
    ("record*.json", "record.json.damaged", 0),
    ("quarantine.json", "quarantine.json.damaged", 0),
    ("outbox.sqlite", "outbox.damaged", 0),
    ("priors/*.json", None, 0),
    ("races/*.json", None, 0),
    ("models/*/1/manifest.json", None, 5_000),
    ("blobs/*", None, _SIZE_BYTES + 5_000),
    ("partial/*.bits", None, _SIZE_BYTES),
    ("partial/*[0-9a-f]", None, 2 * _SIZE_BYTES),
    ("traffic.json", None, 0),
)
ELSEWHERE = {  # files of the state folder whose damage is tested where their readers are
    "models/*/*/manifest.json": "as the first version's",
    "lock": "empty: only that it is locked means anything",
    "outbox.sqlite-*": "of SQLite; tests/unit/agent/test_outbox.py",
    "identity/*": "tests/unit/provisioning/test_identity.py",
    "trust/**/*": "tests/unit/provisioning/test_metadata.py",
}


@pytest.mark.parametrize("damage", [emptied, cut_short, flipped])
@pytest.mark.parametrize(("pattern", "kept_as", "may_cost_bytes"), DAMAGES)
def test_a_damaged_file_costs_at_most_itself(
    rig: Rig,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[bytes], bytes],
    pattern: str,
    kept_as: str | None,
    may_cost_bytes: int,
) -> None:
    """The agent starts, says which file it is, keeps what cannot be fetched again, and serves what is wanted."""
    state = rig.config.state_dir
    paths = sorted(state.glob(pattern))
    assert paths
    for path in paths:
        path.write_bytes(damage(path.read_bytes()))
    sent = rig.fleet.sent_bytes
    caplog.clear()

    start(rig)
    assert rig.run(until=rig.committed(2), seconds=120), rig.install(2)

    said = [line.getMessage() for line in caplog.records if line.levelno >= logging.WARNING]
    unheard = damage is emptied and pattern == "outbox.sqlite"  # SQLite takes an empty file for a new one
    read_again = pattern not in ("priors/*.json", "races/*.json", "blobs/*")  # the others only when they are needed
    assert unheard or not read_again or any(path.stem[:12] in line for line in said for path in paths), said
    if kept_as is not None and not unheard:
        assert (state / kept_as).exists()
    rest = _SIZE_BYTES - 19 * 16_384 + 20_000  # of version 2
    assert rig.fleet.sent_bytes - sent <= rest + may_cost_bytes
    rig.fleet.assign(1, "r3")
    assert rig.run(until=rig.committed(1), seconds=120), rig.install(1)


def test_a_damaged_certificate_costs_the_connection_and_not_the_service(rig: Rig) -> None:
    """What was served goes on, and `status` says what to mend; a device that has nothing to serve ends at once."""
    rig.outbox.close()
    rig.make()
    rig.launcher.serve = honest
    rig.bus.start = mock.Mock(side_effect=Misuse("cannot connect to the broker without cert.pem"))  # type: ignore[method-assign]
    rig.start()
    assert rig.run(until=rig.committed(1), seconds=5)
    shown = read_status(rig.config.run_dir)
    assert shown is not None and not shown.online and "cert.pem" in (shown.offline or "")

    for path in rig.config.state_dir.glob("record*.json"):
        path.unlink()
    rig.outbox.close()
    rig.make()
    rig.bus.start = mock.Mock(side_effect=Misuse("cannot connect to the broker without cert.pem"))  # type: ignore[method-assign]
    with pytest.raises(Misuse, match=r"cert\.pem"):
        rig.start()


def test_an_identity_that_is_lost_costs_the_connection_and_not_the_service(rig: Rig) -> None:
    """Both copies: what was served goes on, and `status` says how to enrol again; with nothing to serve it ends so."""

    def connect(*_arguments: object) -> Bus:
        raise AssertionError("there is nothing left to connect with")

    rig.outbox.close()
    for name in (IDENTITY_FILE, SEALED_FILE):
        (rig.config.state_dir / "identity" / name).write_bytes(b"")
    rig.identity, rig._bus = who_we_are(rig.config.state_dir, connect)  # type: ignore[method-assign, assignment]
    rig.make()
    rig.launcher.serve = honest
    rig.start()
    assert rig.run(until=rig.committed(1), seconds=5)
    rig.run(600)
    assert rig.serving() == 1
    shown = read_status(rig.config.run_dir)
    assert shown is not None and not shown.online and "regatta-agent enroll TOKEN" in (shown.offline or "")
    assert rig.state(2) == "downloading", "it goes on when the device is enrolled again"

    for path in rig.config.state_dir.glob("record*.json"):
        path.unlink()
    with pytest.raises(Misuse, match=r"damaged .*regatta-agent enroll TOKEN"):
        who_we_are(rig.config.state_dir, connect)


def test_no_file_of_the_state_folder_is_left_out(rig: Rig) -> None:
    """Whoever lets the agent keep another file says here what its damage costs."""
    state = rig.config.state_dir
    patterns = [pattern for pattern, _, _ in DAMAGES] + list(ELSEWHERE)
    known = {path for pattern in patterns for path in state.glob(pattern)}

    assert {path for path in state.rglob("*") if path.is_file()} <= known


def test_a_model_whose_bits_rotted_is_fetched_again_and_served(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """Same length, other content: the worker cannot start, the file is found out, and only it is fetched."""
    start(rig)
    assert rig.run(until=rig.committed(2), seconds=120)
    (child,) = rig.launcher.alive("worker:")
    model = rig.config.state_dir / "blobs" / rig.loop._parts.store.manifest(rig.install(2).ref).variants[0].file.digest  # type: ignore[union-attr]
    model.write_bytes(flipped(model.read_bytes()))
    sent = rig.fleet.sent_bytes
    child.end(-9)

    assert rig.run(until=rig.committed(2), seconds=120), rig.install(2)
    assert _SIZE_BYTES <= rig.fleet.sent_bytes - sent <= _SIZE_BYTES + 5_000
    assert any("event=file_damaged" in line and model.name in line for line in caplog.messages)
