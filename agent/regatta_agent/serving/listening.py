"""Where a worker listens: its unix socket, and TCP when configured; who may ask there.

Two kinds of TCP listeners. A *bound* one is the worker's own. An *inherited* one belongs to the agent, which hands the
same listening socket to every worker of a model: the worker that the model's link leads to accepts from it, and what
nobody accepts waits in the kernel's queue, so that no connection is refused during a swap or after a death.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from regatta_agent.serving.addresses import is_loopback
from regatta_agent.serving.exchange import Endpoint
from regatta_agent.serving.http import Connection
from regatta_agent.serving.spec import ServeSpec, TlsFiles, check_socket_path
from regatta_agent.serving.tcp import BACKLOG, bind_tcp
from regatta_protocol.durable import read_bounded
from regatta_protocol.errors import Misuse

__all__ = ["Guards", "Listeners", "ModelLink", "bind_unix", "read_guards", "read_token"]

_MAX_TOKEN_BYTES = 4096
_LEAST_TOKEN_BYTES = 16  # shorter ones are guessed
_HANDSHAKE_S = 10.0
_LINGERING_LOOKS = 2  # of half a second: the successor accepts by then

Accept = Callable[[Endpoint], Connection]


def bind_unix(path: Path) -> socket.socket:
    """Return a socket bound at `path`, in place of one that nobody listens on. Group members may connect.

    Raises:
        Misuse: when the path is too long, its folder cannot be written, or another process listens there.
    """
    check_socket_path(path)
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.lstat().st_mode) and not _is_listening(path):
            path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.bind(str(path))
        path.chmod(0o660)
    except OSError as err:
        listener.close()
        raise Misuse(f"cannot listen on {path}: {err.strerror}: check its folder, --run-dir and who else runs") from err
    return listener


def _is_listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def read_token(path: Path) -> bytes:
    """Return the token in the first line of a file.

    Raises:
        Misuse: when it cannot be read, or is too short to be secret.
    """
    try:
        line = read_bounded(path, _MAX_TOKEN_BYTES).split(b"\n", 1)[0].strip()
    except OSError as err:
        raise Misuse(f"token_file {path} cannot be read: {err.strerror}") from err
    if len(line) < _LEAST_TOKEN_BYTES:
        raise Misuse(f"the token in token_file {path} has {len(line)} bytes: give it {_LEAST_TOKEN_BYTES} or more")
    return line


class Guards(NamedTuple):
    """What stands before TCP."""

    token: bytes | None
    tls: ssl.SSLContext | None


def read_guards(spec: ServeSpec, host: str) -> Guards:
    """Return what guards TCP at the IP address `host`.

    Raises:
        Misuse: when a file of it cannot be read, or it is missing and `host` is beyond loopback.
    """
    token = read_token(spec.token_path) if spec.token_path is not None else None
    tls = _tls_context(spec.tls) if spec.tls is not None else None
    if not is_loopback(host) and (token is None or tls is None):
        raise Misuse(f"tcp {host} is not on loopback: it needs tls_certificate, tls_key and token_file")
    return Guards(token, tls)


class ModelLink:
    """Whether a model's link leads to this worker. To be looked at about twice a second."""

    def __init__(self, link: Path, socket_path: Path) -> None:
        self._link = link
        self._socket_path = socket_path
        self._looks_away = 0

    def look(self) -> bool | None:
        """Return True when it leads here, False when it has not for so long that others accept, None in between."""
        here = _leads_to(self._link, self._socket_path)
        self._looks_away = 0 if here else self._looks_away + 1
        if here:
            return True
        return False if self._looks_away > _LINGERING_LOOKS else None


@dataclass(frozen=True)
class _Tcp:
    """A TCP listener with how it is guarded."""

    listener: socket.socket
    endpoint: Endpoint
    tls: ssl.SSLContext | None


class Listeners:
    """All that one worker listens on. Used on the loop's thread."""

    def __init__(self, spec: ServeSpec, accept: Accept) -> None:
        """Bind what `spec` names.

        Raises:
            Misuse: when something cannot be bound, or TCP beyond loopback has no TLS or no token.
        """
        self._spec = spec
        self._accept = accept
        self._servers: list[asyncio.Server] = []
        self._tcp_server: asyncio.Server | None = None
        self._link = None if spec.link_path is None else ModelLink(spec.link_path, spec.socket_path)
        self._unix = bind_unix(spec.socket_path)
        try:
            self._tcp = _open_tcp(spec)
        except BaseException:
            self._unix.close()
            spec.socket_path.unlink(missing_ok=True)
            raise

    @property
    def tcp_address(self) -> str | None:
        """HOST:PORT of TCP, or None without it."""
        if self._tcp is None:
            return None
        host, port = self._tcp.listener.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def start(self) -> None:
        """Accept from the unix socket and from TCP of the worker's own."""
        loop, local = asyncio.get_running_loop(), Endpoint()
        server = await loop.create_unix_server(lambda: self._accept(local), sock=self._unix, backlog=BACKLOG)
        self._servers.append(server)
        if self._spec.link_path is None:
            await self._accept_tcp()

    async def follow(self) -> None:
        """Accept from an inherited listener while the model's link leads here. To be called about twice a second."""
        if self._link is None or self._tcp is None:
            return
        here = self._link.look()
        if here:
            await self._accept_tcp()
        elif here is False:
            self.leave()

    def leave(self) -> None:
        """Accept no more from an inherited listener: others do, or will."""
        if self._spec.link_path is not None and self._tcp_server is not None:
            self._tcp_server.close()
            self._tcp_server = None

    def stop(self) -> None:
        """Accept no more."""
        for server in (*self._servers, self._tcp_server):
            if server is not None:
                server.close()
        self._servers, self._tcp_server = [], None

    def close(self) -> None:
        """Let go of the sockets, and remove the unix socket's path."""
        self.stop()
        self._unix.close()
        if self._tcp is not None:
            self._tcp.listener.close()
        self._spec.socket_path.unlink(missing_ok=True)

    async def _accept_tcp(self) -> None:
        tcp = self._tcp
        if tcp is None or self._tcp_server is not None:
            return
        self._tcp_server = await asyncio.get_running_loop().create_server(
            lambda: self._accept(tcp.endpoint),
            sock=tcp.listener.dup(),  # the server closes what it is given
            backlog=BACKLOG,
            ssl=tcp.tls,
            ssl_handshake_timeout=_HANDSHAKE_S if tcp.tls is not None else None,
        )


def _open_tcp(spec: ServeSpec) -> _Tcp | None:
    if spec.tcp is None and spec.tcp_fd is None:
        return None
    listener = socket.socket(fileno=spec.tcp_fd) if spec.tcp_fd is not None else bind_tcp(spec.tcp or "")
    listener.setblocking(False)
    host = listener.getsockname()[0]
    try:
        guards = read_guards(spec, host)
    except Misuse:
        listener.close()
        raise
    return _Tcp(listener, Endpoint(token=guards.token, local=is_loopback(host)), guards.tls)


def _tls_context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(files.certificate, files.key)
    except OSError as err:  # ssl.SSLError is one
        raise Misuse(f"tls_certificate {files.certificate} with tls_key {files.key} cannot be loaded: {err}") from err
    return context


def _leads_to(link: Path, socket_path: Path) -> bool:
    try:
        return (link.parent / link.readlink()).samefile(socket_path)
    except OSError:
        return False
