"""Race results across devices: a fleet's real ingest and tables, two devices in memory, and everything missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from device_rig import DEVICE, MODEL, Rig
from fleet_parts import SimulatedFleet
from regatta_fleet.database import devices, race_results
from regatta_protocol import topics
from regatta_protocol.bus import Message
from regatta_protocol.codec import encode_zlib
from regatta_protocol.ids import DeviceId, Digest, ModelRef, digest_of_bytes
from regatta_protocol.measurement import RaceReport
from regatta_protocol.messages import RaceItem, Request, Response

KEY = digest_of_bytes(b"one kind of board")
SECOND = DeviceId("pi-two")


def rig_of(
    folder: Path, server: SimulatedFleet | None = None, device: DeviceId = DEVICE, key: Digest = KEY, **settings: object
) -> Rig:
    """Return a started device whose races have this key, beside a fleet that stores and answers as the server does."""
    rig = Rig(folder / device, device=device, **settings)  # type: ignore[arg-type]
    rig.race_key = key
    rig.launcher.race_key = key
    if server is not None:
        rig.fleet.answer_race = lambda request: encode_zlib(answer(server, request))
        rig.fleet.hear = lambda message: take(server, message)
    return rig.start()


def answer(server: SimulatedFleet, request: Request) -> Response:
    with server.database.read() as tx:
        result = race_results.find_result(tx, Digest(str(request.params["key"])))
    return Response(id=request.id, race=result, error=None if result else "nobody has raced it yet")


def take(server: SimulatedFleet, message: Message) -> None:
    if topics.parse_up(message.topic).kind is topics.Up.TELEMETRY:
        server.ingest.take(message, server.now)


def install(rig: Rig, version: int = 1) -> None:
    rig.fleet.push(version)
    rig.fleet.assign(version, f"r{version}")
    assert rig.run(until=rig.committed(version)), rig.install(version)
    rig.run(8)  # telemetry leaves


def races_reported(rig: Rig) -> list[RaceReport]:
    return [item.report for batch in rig.fleet.batches for item in batch.items if isinstance(item, RaceItem)]


@pytest.fixture
def server() -> SimulatedFleet:
    made = SimulatedFleet()
    made.enroll(DEVICE, SECOND)
    return made


def test_the_second_device_of_a_kind_confirms_instead_of_racing(tmp_path: Path, server: SimulatedFleet) -> None:
    """It says whose race it confirmed, and its voice is heard with the next question."""
    first = rig_of(tmp_path, server)
    install(first)
    second = rig_of(tmp_path, server, SECOND)
    install(second)

    assert (first.races, first.confirmations) == ([1], [])
    assert (second.races, second.confirmations) == ([], [1])
    (report,) = races_reported(second)
    assert report.basis == "confirmed"
    assert report.prior is not None
    assert report.prior.device == DEVICE


def test_another_kind_of_board_races_in_full(tmp_path: Path, server: SimulatedFleet) -> None:
    """The key says so; nobody has to."""
    install(rig_of(tmp_path, server))
    other = rig_of(tmp_path, server, SECOND, key=digest_of_bytes(b"another kind"))
    install(other)

    assert (other.races, other.confirmations) == ([1], [])


def test_results_of_a_revoked_device_are_not_passed_on(tmp_path: Path, server: SimulatedFleet) -> None:
    """Who lost the fleet's trust is not heard."""
    install(rig_of(tmp_path, server))
    with server.database.write() as tx:
        devices.revoke_device(tx, DEVICE, 6)
    second = rig_of(tmp_path, server, SECOND)
    install(second)

    assert second.races == [1]


def test_a_device_confirms_its_own_race_after_a_restart_without_asking(tmp_path: Path) -> None:
    """Another version with the same key is placed from the device's own results."""
    rig = rig_of(tmp_path)
    install(rig)
    asked: list[Request] = []
    rig.restart()
    rig.fleet.answer_race = asked.append
    install(rig, 2)

    assert (rig.races, rig.confirmations, asked) == ([1], [2], [])


def test_what_was_confirmed_is_kept_as_if_it_had_been_raced_here(tmp_path: Path, server: SimulatedFleet) -> None:
    """With the figures of who raced, and under its name."""
    install(rig_of(tmp_path, server))
    second = rig_of(tmp_path, server, SECOND)
    install(second)
    second.restart()
    second.fleet.answer_race = lambda _request: None
    install(second, 2)

    assert (second.races, second.confirmations) == ([], [1, 2])
    assert second.loop.record.find(ModelRef(MODEL, 2)) is not None
    last = races_reported(second)[-1].prior
    assert last is not None
    assert last.device == DEVICE


def _silent(_rig: Rig, _request: Request) -> None:
    return None


def _cut(rig: Rig, _request: Request) -> None:
    rig.broker.kill()


def _nonsense(_rig: Rig, _request: Request) -> bytes:
    return b"\x00not zlib"


def _busy(_rig: Rig, request: Request) -> bytes:
    return encode_zlib(Response(id=request.id, error="busy", retryable=True))


def _of_another_question(_rig: Rig, request: Request) -> bytes:
    return encode_zlib(Response(id=f"{request.id}0", error="nobody"))


@pytest.mark.parametrize("trouble", [_silent, _cut, _nonsense, _busy, _of_another_question])
def test_without_an_answer_the_race_is_run_in_full(
    tmp_path: Path, trouble: Callable[[Rig, Request], bytes | None]
) -> None:
    """A fleet that is silent, gone in the middle, unreadable or busy delays a race by seconds and never blocks it."""
    rig = rig_of(tmp_path)
    rig.fleet.answer_race = lambda request: trouble(rig, request)
    rig.fleet.push(1)
    rig.fleet.assign(1)
    began = rig.clock.monotonic()

    assert rig.run(until=lambda: rig.races == [1], step_s=0.1)
    assert rig.clock.monotonic() - began < 8  # 5 of them for the answer


def test_an_offline_device_races_at_once_after_a_restart(tmp_path: Path) -> None:
    """Killed while it asked, it remembers nothing of the question; without a broker it does not wait for an answer."""
    rig = rig_of(tmp_path)
    rig.fleet.answer_race = lambda _request: None
    rig.fleet.push(1)
    rig.fleet.assign(1)
    assert rig.run(until=lambda: rig.state(1) == "racing", step_s=0.1)
    rig.kill()
    rig.broker.kill()
    rig.make()
    rig.start()
    began = rig.clock.monotonic()

    assert rig.run(until=lambda: rig.races == [1], step_s=0.1)
    assert rig.clock.monotonic() - began < 1
