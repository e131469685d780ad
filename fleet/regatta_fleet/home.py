"""A fleet's home folder: its layout, what it keeps over restarts, and who may run it.

    authority/      the certificate authority (regatta_provisioning.authority)
    keys/           the assignment key, and certificates of the server itself
    metadata/       signed metadata (regatta_provisioning.repository)
    fleet.sqlite    what the fleet knows
    blobs/          files of bundles, by digest
    results/        outputs of batch jobs that devices sent (results.py)
    broker/         the private Mosquitto's configuration and database
    fleet.json      the fleet's id, token, ports and advertised host (0600)
    server.json     where the running server is (0600); there only while it runs
    .lock           held by the running server

Devices keep the broker's and the device API's address, so ports are chosen once and stay.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import secrets
import socket
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field

from regatta_fleet.settings import Settings
from regatta_protocol.codec import decode, encode
from regatta_protocol.durable import read_bounded, remove_durably, sync_folder, write_durably
from regatta_protocol.errors import Misuse, Rejected
from regatta_protocol.wire import Wire

__all__ = ["FleetFile", "Home", "ServerInfo", "listen", "read_server_info", "server_info", "wait_until_free"]

_MAX_FILE_BYTES = 64 * 1024
_PORT_FIRST, _PORT_LAST = 20_000, 32_000  # below Linux's range for outgoing connections, which would take it at times
_PORT_TRIES = 100
_BACKLOG = 128
_ORPHAN_S = 10.0  # for a broker to write its database to a slow disk
_POLL_S = 0.05


class FleetFile(Wire):
    """fleet.json."""

    schema_version: int = 1
    fleet: str = Field(min_length=1, max_length=64)
    token: str = Field(min_length=32, repr=False)  # of the operator API
    advertise: str
    operator_port: int
    device_port: int
    broker_port: int


class ServerInfo(Wire):
    """server.json: how to reach the running server."""

    schema_version: int = 1
    fleet: str
    version: str
    pid: int
    url: str  # of the operator API
    token: str = Field(repr=False)
    device_url: str
    broker_host: str
    broker_port: int


class Home:
    """The folder. Paths only; nothing is made before `prepare`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.authority = self.folder / "authority"
        self.keys = self.folder / "keys"
        self.metadata = self.folder / "metadata"
        self.database = self.folder / "fleet.sqlite"
        self.blobs = self.folder / "blobs"
        self.results = self.folder / "results"
        self.broker = self.folder / "broker"
        self.fleet_file = self.folder / "fleet.json"
        self.server_file = self.folder / "server.json"
        self.lock_file = self.folder / ".lock"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder (0700) and hold it: one server a home.

        Raises:
            Misuse: when another server runs here, or the folder cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as err:
            raise Misuse(
                f"the fleet's home {self.folder} cannot be used: {err.strerror}; choose one by --home"
            ) from err
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as err:
                raise Misuse(f"a server of this fleet runs already (home {self.folder}): stop it first") from err
            yield
        finally:
            os.close(descriptor)

    def load(self, settings: Settings) -> FleetFile:
        """Return the fleet's lasting settings, made at the first start, brought up to `settings` afterwards.

        Raises:
            Misuse: when fleet.json is damaged, or missing where a fleet was.
            StorageFull: when the disk is full.
        """
        if self.fleet_file.exists():
            try:
                kept = decode(FleetFile, read_bounded(self.fleet_file, _MAX_FILE_BYTES))
            except Rejected as err:
                raise Misuse(f"{self.fleet_file} is damaged ({err}): put it back from your backup") from err
        elif self.database.exists():
            raise Misuse(f"{self.fleet_file} is missing, but a fleet is here: put it back from your backup")
        else:
            kept = None
        wanted = _merge(settings, kept)
        if wanted != kept:
            write_durably(self.fleet_file, encode(wanted))
            sync_folder(self.folder.parent)
        return wanted

    def announce(self, info: ServerInfo) -> None:
        """Write server.json."""
        write_durably(self.server_file, encode(info))

    def withdraw(self) -> None:
        """Remove server.json: a stopped server's, or one that a killed server left behind."""
        if self.server_file.exists():
            remove_durably(self.server_file)


def read_server_info(folder: Path) -> ServerInfo | None:
    """Return how to reach the server that runs in this home, or None when none does.

    Raises:
        Misuse: when server.json is damaged or may not be read.
    """
    path = Home(folder).server_file
    try:
        info = decode(ServerInfo, read_bounded(path, _MAX_FILE_BYTES))
    except FileNotFoundError:
        return None
    except (Rejected, OSError) as err:
        raise Misuse(f"{path} cannot be read ({err}): use the user that runs `regatta up`") from err
    try:
        os.kill(info.pid, 0)
    except ProcessLookupError:
        return None  # killed before it could remove the file
    except PermissionError:
        pass
    return info


def server_info(fleet: FleetFile, broker_host: str, broker_port: int, version: str) -> ServerInfo:
    """Return what this process announces of itself."""
    host = f"[{fleet.advertise}]" if ":" in fleet.advertise else fleet.advertise
    return ServerInfo(
        fleet=fleet.fleet,
        version=version,
        pid=os.getpid(),
        url=f"http://127.0.0.1:{fleet.operator_port}",
        token=fleet.token,
        device_url=f"https://{host}:{fleet.device_port}",
        broker_host=broker_host,
        broker_port=broker_port,
    )


def listen(host: str, port: int, what: str) -> socket.socket:
    """Return a listening socket.

    Raises:
        Misuse: when the port is taken or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named: else asyncio leaves Nagle's algorithm on (it looks at `proto`), and each answer on a kept
    # connection waits 40 ms for a delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as err:
        listener.close()
        if err.errno == errno.EADDRINUSE:
            raise Misuse(
                f"port {port} for the {what} is taken by another program: stop that one, or choose another port "
                "(devices that enrolled before know the old one)"
            ) from err
        raise Misuse(f"the {what} cannot listen on {host}:{port}: {err.strerror}") from err
    return listener


def wait_until_free(host: str, port: int, what: str, timeout_s: float = _ORPHAN_S) -> None:
    """Return when the port can be listened on: a killed server's broker needs a moment to save and end.

    Raises:
        Misuse: when it is still taken after `timeout_s`.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            listen(host, port, what).close()
        except Misuse:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(_POLL_S)
        else:
            return


def _merge(settings: Settings, kept: FleetFile | None) -> FleetFile:
    taken: set[int] = set()

    def port(wanted: int | None, before: int | None) -> int:
        chosen = wanted or before or _free_port(settings.host, taken)
        taken.add(chosen)
        return chosen

    advertise = settings.advertise or (kept.advertise if kept is not None else settings.host)
    if advertise in ("0.0.0.0", "::"):  # noqa: S104  # compared, not bound
        raise Misuse(f"devices cannot connect to {advertise}: say how they reach this machine by --advertise NAME")
    if kept is not None:
        return kept.model_copy(
            update={
                "advertise": advertise,
                "operator_port": port(settings.operator_port, kept.operator_port),
                "device_port": port(settings.device_port, kept.device_port),
                "broker_port": port(settings.broker_port, kept.broker_port),
            }
        )
    return FleetFile(
        fleet=f"fleet-{secrets.token_hex(6)}",
        token=secrets.token_urlsafe(32),
        advertise=advertise,
        operator_port=port(settings.operator_port, None),
        device_port=port(settings.device_port, None),
        broker_port=port(settings.broker_port, None),
    )


def _free_port(host: str, taken: Collection[int]) -> int:
    chance = random.SystemRandom()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for _ in range(_PORT_TRIES):
        port = chance.randrange(_PORT_FIRST, _PORT_LAST)
        if port in taken:
            continue
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((host, port))
            except OSError as err:
                if err.errno != errno.EADDRINUSE:
                    raise Misuse(f"nothing can listen on {host}: {err.strerror}; choose another --host") from err
                continue
            return port
    raise Misuse(f"no free port between {_PORT_FIRST} and {_PORT_LAST}: choose ports by option")
