"""Outputs of batch jobs on their way to the fleet: asked for, taken in piece by piece, and ended in every way."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, cast

import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import FastAPI

from fault_proxy import Weather, fault_proxy
from fleet_parts import DIGITS, SimulatedFleet
from regatta_fleet.api.device import device_app
from regatta_fleet.batches import batching, pulling, receiving
from regatta_fleet.batches.receiving import Receiver
from regatta_fleet.batches.results import ResultsStore
from regatta_fleet.database import devices
from regatta_fleet.database.engine import open_database, sqlite_url
from regatta_fleet.errors import Conflict, Expired, NotFound
from regatta_fleet.home import listen
from regatta_fleet.schemas import BatchRequest, ResultsOnDevice, ResultsRequest
from regatta_protocol.batch import BatchReport, BatchState, BatchSummary, ResultsReport, ResultsState
from regatta_protocol.bus import Message
from regatta_protocol.codec import encode
from regatta_protocol.errors import BadDigest, Retryable, StorageFull, TooLarge
from regatta_protocol.ids import DeviceId, digest_of_bytes
from regatta_protocol.messages import Reported
from regatta_protocol.topics import Up, up
from regatta_protocol.traffic import Amount
from regatta_provisioning.authority import Authority
from regatta_provisioning.identity import Identity
from regatta_provisioning.keys import make_csr, write_private_key
from regatta_provisioning.uploading import ResultsOffer, ResultsTicket, send_results

if TYPE_CHECKING:
    from regatta_fleet.devices.enrolling import Enroller

PI = DeviceId("pi-1")
OUTPUT = bytes(range(256)) * 40
_S = ResultsState


@pytest.fixture(autouse=True)
def _counted_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the small pieces here, as each megabyte of large outputs."""
    monkeypatch.setattr(receiving, "COUNTED_EVERY_BYTES", 1000)


class Pulling:
    """A fleet whose device has done a job, and a server that can be killed."""

    def __init__(self, folder: Path, limit_bytes: int = 100_000, database: str = "sqlite://") -> None:
        self.fleet = SimulatedFleet(open_database(database))
        self.fleet.enroll("pi-1")
        self.fleet.push(1)
        self.store = ResultsStore(folder / "results", limit_bytes, reserve_bytes=0)
        self.store.prepare()
        self.changed: list[DeviceId] = []
        self.sequence = 0
        self.restart()
        with self.fleet.database.write() as tx:
            request = BatchRequest(model=DIGITS, on=("all",), input="/data/in")
            batching.start_batch(tx, "b-1", request, 1000.0)
        summary = BatchSummary(records=4, refused=0, seconds=1.0, per_second=4.0, output_bytes=len(OUTPUT))
        self.say(batch=(BatchReport(id="b-1", state=BatchState.DONE, records=4, summary=summary),))

    def restart(self) -> None:
        self.receiver = Receiver(self.fleet.database, self.store, lambda _certificate, _csr: PI, self.changed.append)

    def say(self, *, batch: tuple[BatchReport, ...] = (), results: tuple[ResultsReport, ...] | None = ()) -> None:
        self.sequence += 1
        reported = Reported(
            device=PI, generation=self.wanted()[0], sequence=self.sequence, agent_version="0", boot="b", batch=batch,
            results=results,
        )  # fmt: skip
        self.fleet.ingest.take(Message(up(PI, Up.REPORTED), encode(reported)), 1002.0)

    def ask(self, **fields: object) -> set[DeviceId]:
        with self.fleet.database.write() as tx:
            return pulling.ask_results(tx, "b-1", ResultsRequest.model_validate(fields), 1001.0)

    def wanted(self) -> tuple[int, list[str]]:
        """Return the device's generation, and the outputs in its assignment."""
        with self.fleet.database.read() as tx:
            found = devices.get_desired(tx, PI)
        assert found is not None
        return found.generation, [one.job.id for one in found.results]

    def shown(self) -> ResultsOnDevice | None:
        with self.fleet.database.read() as tx:
            return batching.describe(tx, "b-1").devices[0].results

    def state(self) -> ResultsState | None:
        shown = self.shown()
        return None if shown is None else shown.state

    def offer(self, data: bytes = OUTPUT, **fields: object) -> ResultsTicket:
        given = {"size_bytes": len(data), "digest": digest_of_bytes(data), **fields}
        offer = ResultsOffer.model_validate({"certificate_pem": "", "csr_pem": "", "batch": "b-1", **given})
        return self.receiver.offer(offer, 1003.0)

    def send(self, ticket: ResultsTicket, data: bytes = OUTPUT, pieces: int = 100, size: int = 1000) -> ResultsTicket:
        """Send so many pieces of it, as far as there are any."""
        have = ticket
        while have.offset < len(data) and pieces > 0:
            pieces -= 1
            have = self.receiver.take(ticket.ticket, have.offset, data[have.offset : have.offset + size], 1004.0)
        return have

    def kept(self) -> bytes:
        with self.store.open("b-1", PI) as file:
            return file.read()


def test_an_output_is_asked_for_until_it_is_here_and_not_twice(tmp_path: Path) -> None:
    """The assignment names it until its last byte is on the disk; asking again then changes nothing."""
    rig = Pulling(tmp_path)
    assert rig.ask() == {PI} and rig.ask() == set()
    begun, wanted = rig.wanted()
    assert wanted == ["b-1"]
    ticket = rig.send(rig.offer(), pieces=3)

    shown = rig.shown()
    assert shown is not None and (shown.state, shown.received_bytes, shown.size_bytes) == (_S.SENDING, 3000, 10_240)
    with pytest.raises(NotFound):
        rig.kept()
    rig.send(ticket)
    assert rig.kept() == OUTPUT
    assert (rig.state(), rig.wanted(), rig.changed) == (_S.HERE, (begun + 1, []), [PI])
    assert rig.ask() == set() and rig.wanted() == (begun + 1, [])


@pytest.mark.parametrize("lost", [0, 500, 2000])
def test_a_killed_server_goes_on_where_its_disk_and_database_agree(tmp_path: Path, lost: int) -> None:
    """What a cut took from the part, or left behind in it uncounted, is sent again; the ticket is not known then."""
    rig = Pulling(tmp_path)
    rig.ask()
    ticket = rig.send(rig.offer(), pieces=4)
    part = tmp_path / "results" / "b-1" / f".{PI}.part"
    if lost:
        part.write_bytes(part.read_bytes()[: 4000 - lost])
    else:
        part.write_bytes(part.read_bytes() + b"torn")
    rig.restart()
    with pytest.raises(Expired):
        rig.send(ticket)
    again = rig.offer()

    assert again.offset == 4000 - lost
    rig.send(again)
    assert rig.kept() == OUTPUT


def test_a_broken_connection_costs_nothing_that_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted only once in a while, what came goes on counting for the next offer; the upload before it is over."""
    monkeypatch.setattr(receiving, "COUNTED_EVERY_BYTES", 4000)
    rig = Pulling(tmp_path)
    rig.ask()
    first = rig.send(rig.offer(), pieces=3)
    shown = rig.shown()
    assert shown is not None and shown.received_bytes == 0
    again = rig.offer()

    assert again.offset == 3000
    with pytest.raises(Expired):
        rig.send(first)
    rig.send(again)
    assert rig.kept() == OUTPUT


def test_a_kill_before_the_database_heard_of_the_last_piece_costs_only_an_offer(tmp_path: Path) -> None:
    """The file has its name, the row says sending: the next offer settles it."""
    rig = Pulling(tmp_path)
    rig.ask()
    rig.send(rig.offer(), pieces=1)
    (tmp_path / "results" / "b-1" / f".{PI}.part").write_bytes(OUTPUT)
    rig.store.finish("b-1", PI, digest_of_bytes(OUTPUT))
    rig.restart()

    assert rig.offer().offset == len(OUTPUT)
    assert rig.state() is _S.HERE


def test_another_file_than_was_offered_is_refused_and_may_be_sent_anew(tmp_path: Path) -> None:
    """Its digest decides at the end; a newer offer of other content begins anew, an empty one is whole at once."""
    rig = Pulling(tmp_path)
    rig.ask()
    ticket = rig.offer()
    with pytest.raises(BadDigest, match="ask again"):
        rig.send(ticket, OUTPUT[::-1])
    other = OUTPUT[:2000]
    rig.send(rig.offer(), pieces=1)
    with pytest.raises(Conflict):
        rig.receiver.take(rig.offer(other).ticket, 1000, b"x", 1004.0)

    assert rig.offer(b"").offset == 0
    assert rig.kept() == b"" and rig.state() is _S.HERE


def test_a_cancelled_output_is_taken_no_further(tmp_path: Path) -> None:
    """The next piece is refused and the assignment does not ask for it; asked for anew, it goes on."""
    rig = Pulling(tmp_path)
    rig.ask()
    ticket = rig.send(rig.offer(), pieces=2)
    with rig.fleet.database.write() as tx:
        assert batching.cancel_batch(tx, "b-1", 1005.0) == {PI}

    assert (rig.state(), rig.wanted()[1]) == (_S.CANCELLED, [])
    with pytest.raises(NotFound, match="nobody asks"):
        rig.send(ticket)
    with pytest.raises(NotFound, match="nobody asks"):
        rig.offer()
    assert rig.ask() == {PI}
    rig.send(rig.offer())
    assert rig.kept() == OUTPUT


def test_what_a_device_says_of_it_is_shown_and_a_refusal_ends_it(tmp_path: Path) -> None:
    """Why it waits; that its agent is too old; and a refusal, after which it may be asked for again."""
    rig = Pulling(tmp_path)
    rig.ask()
    before = rig.wanted()[0]
    rig.say(results=None)
    shown = rig.shown()
    assert shown is not None and "update it" in (shown.reason or "")
    rig.say(results=(ResultsReport(id="b-1", state=_S.WANTED, reason="waiting: digits:2 is being raced"),))
    shown = rig.shown()
    assert shown is not None and (shown.state, shown.reason) == (_S.WANTED, "waiting: digits:2 is being raced")
    rig.say(results=(ResultsReport(id="b-1", state=_S.REFUSED, reason="a metered link"),))
    shown = rig.shown()

    assert shown is not None and (shown.state, shown.reason) == (_S.REFUSED, "a metered link")
    assert rig.wanted() == (before + 1, [])
    assert rig.ask() == {PI}


def test_sizes_are_bounded_before_a_byte_travels(tmp_path: Path) -> None:
    """An output over the limit of its request is not asked for; one that is longer, or finds no room, is told."""
    rig = Pulling(tmp_path, limit_bytes=len(OUTPUT) + 10)
    assert rig.ask(max_bytes=100) == set()
    shown = rig.shown()
    assert shown is not None and shown.state is _S.REFUSED and "over the 100 B" in (shown.reason or "")
    rig.ask(max_bytes=len(OUTPUT))
    with pytest.raises(TooLarge):
        rig.offer(OUTPUT + b"more")
    (tmp_path / "results" / "b-0").mkdir()
    (tmp_path / "results" / "b-0" / "pi-9").write_bytes(bytes(11))
    with pytest.raises(StorageFull, match="--delete"):
        rig.offer()
    with pytest.raises(TooLarge):
        rig.store.keep_only({"b-1"})
        rig.receiver.take(rig.offer().ticket, 0, OUTPUT + b"x", 1004.0)


def test_forgotten_outputs_leave_nothing_and_a_revoked_device_keeps_nobody_waiting(tmp_path: Path) -> None:
    """The server's copies go; a device that is not heard any more is not waited for."""
    rig = Pulling(tmp_path)
    rig.ask()
    rig.send(rig.offer())
    with rig.fleet.database.write() as tx:
        pulling.forget_results(tx, "b-1", 1005.0)
    rig.store.remove("b-1")
    assert rig.shown() is None and list((tmp_path / "results").iterdir()) == []

    rig.ask()
    with rig.fleet.database.write() as tx:
        batching.note_revoked(tx, PI, 1006.0)
    assert rig.state() is _S.CANCELLED


@contextmanager
def _served(app: FastAPI, authority: Authority, folder: Path) -> Iterator[int]:
    """Serve the device API over HTTPS, as server.py does; yields its port."""
    key_path, certificate_path = authority.issue_server(folder / "tls", "device-api", ("127.0.0.1",))
    config = uvicorn.Config(
        app, log_config=None, lifespan="off", ssl_keyfile=key_path, ssl_certfile=certificate_path, timeout_keep_alive=15
    )
    server = uvicorn.Server(config)
    with listen("127.0.0.1", 0, "device API") as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(20)


def _identity(authority: Authority, folder: Path, port: int) -> Identity:
    folder.mkdir()
    write_private_key(folder / "key.pem", key := ec.generate_private_key(ec.SECP256R1()))
    (folder / "cert.pem").write_text(authority.sign_device_csr(make_csr(key, PI), PI))
    (folder / "ca.pem").write_text(authority.ca_pem)
    return Identity(
        fleet="lab", device=PI, broker_host="", broker_port=1, api_url=f"https://127.0.0.1:{port}",
        key_path=folder / "key.pem", certificate_path=folder / "cert.pem", ca_path=folder / "ca.pem",
        root_path=folder, assignment_key="", assignment_key_id="",
    )  # fmt: skip


def test_a_line_that_breaks_all_the_time_brings_a_large_output_nearly_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device's side over real HTTPS: connections die within 0.6 MB, and each try goes on where the last ended."""
    monkeypatch.setattr(receiving, "COUNTED_EVERY_BYTES", 1024 * 1024)
    output = Random(7).randbytes(3_000_000)
    rig = Pulling(tmp_path, limit_bytes=10_000_000, database=sqlite_url(tmp_path / "fleet.sqlite"))
    rig.ask()
    authority = Authority.create(tmp_path / "authority", "lab")
    rig.receiver = Receiver(
        rig.fleet.database, rig.store, lambda *proof: authority.holder_of(*proof).device, rig.changed.append
    )
    app = device_app(cast("Enroller", None), rig.receiver, "0.1.0")  # nobody enrols here
    tries, spent = 0, 0

    def tell(_sent_bytes: int, amount: Amount) -> None:
        nonlocal spent
        spent += amount.sent

    with _served(app, authority, tmp_path) as port, fault_proxy(port) as proxy:
        proxy.weather = Weather(cut_up_bytes=600_000)
        identity = _identity(authority, tmp_path / "identity", proxy.port)
        while rig.state() is not _S.HERE:
            tries += 1
            assert tries < 50
            with suppress(Retryable):
                send_results(identity, "b-1", io.BytesIO(output), len(output), digest_of_bytes(output), tell)

    assert rig.kept() == output
    assert tries > 3 and proxy.bytes["up"] < 1.5 * len(output)
    assert spent > 0.5 * len(output)


def test_only_devices_of_the_batch_can_be_asked(tmp_path: Path) -> None:
    """An unknown batch or device is named."""
    rig = Pulling(tmp_path)

    with pytest.raises(NotFound, match="not on pi-9"):
        rig.ask(on=("pi-9",))
    with rig.fleet.database.write() as tx, pytest.raises(NotFound, match="no batch"):
        pulling.ask_results(tx, "b-9", ResultsRequest(), 1.0)
