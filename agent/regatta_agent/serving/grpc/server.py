"""Where a worker answers gRPC: a unix socket beside its own, and TCP when configured. One grpcio server for each.

grpcio binds its sockets itself and takes over no listening one. So the worker that the model's link leads to binds the
TCP address, and the one that is left by it closes its own a moment later; both may have it meanwhile (SO_REUSEPORT).
Where the address is the worker's own, another program that has it is an error.

The bounds are HTTP's where grpcio has such: connections, headers, the size of a message, idle connections, handshakes.
Its own: a client may ping every 10 s at most, one that does not answer a ping for 20 s is cut off, and compressed
messages are refused, for they may be longer than what was counted.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from regatta_agent.serving.addresses import is_loopback, split_address
from regatta_agent.serving.exchange import Endpoint
from regatta_agent.serving.grpc.intake import Intake
from regatta_agent.serving.grpc.service import InferenceService
from regatta_agent.serving.http import HttpServer
from regatta_agent.serving.listening import ModelLink, bind_unix, read_guards
from regatta_agent.serving.spec import ServeSpec, TlsFiles
from regatta_protocol.durable import read_bounded
from regatta_protocol.errors import Misuse

__all__ = ["GrpcServers"]

logger = logging.getLogger(__name__)

_HANDSHAKE_MS = 10_000
_PING_MS, _PONG_MS = 60_000, 20_000  # a connection that is silent for so long is asked, and has so long to answer
_LEAST_PING_MS = 10_000  # a client that pings more often is cut off by grpcio
_HANDOVER_S = 0.6  # the next worker looks twice a second whether it is the one to listen
_GATHERING_S = 0.02  # a busy caller asks anew within a millisecond
_IDENTITY_ONLY = 1  # of GRPC_COMPRESS_NONE's bit alone
_MOST_MESSAGE_BYTES = (1 << 31) - 1  # grpcio's numbers are of 32 bits
_MAX_PEM_BYTES = 1 << 20


class GrpcServers:
    """The gRPC servers of one worker. Used on the loop's thread."""

    def __init__(self, spec: ServeSpec, unix_path: Path, server: HttpServer, on_invalid: Callable[[], None]) -> None:
        """Keep where to listen; `server` and `on_invalid` as for InferenceService.

        Raises:
            Misuse: when TCP beyond loopback has no TLS or no token.
        """
        self._spec = spec
        self._unix_path = unix_path
        self._server = server
        self._on_invalid = on_invalid
        self._intake = Intake(server)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="grpc")
        self._link = None if spec.link_path is None else ModelLink(spec.link_path, spec.socket_path)
        self._unix: _Listening | None = None
        self._tcp: _Listening | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self._told = False  # that TCP cannot be bound
        self.tcp_address: str | None = None  # HOST:PORT that is bound
        self._tcp_endpoint = None if spec.grpc_tcp is None else _guarded(spec, spec.grpc_tcp)

    async def start(self) -> None:
        """Answer on the unix socket, and on TCP of the worker's own.

        Raises:
            Misuse: when something cannot be bound.
        """
        bind_unix(self._unix_path).close()  # for its checks; grpcio puts a socket of its own in the place
        self._unix = self._listening(Endpoint(), shared=False)
        self._unix.bind(f"unix:{self._unix_path}", None)
        self._unix_path.chmod(0o660)
        await self._unix.server.start()
        if self._link is None:
            await self._accept_tcp(shared=False)

    async def follow(self) -> None:
        """Answer on TCP while the model's link leads here. To be called about twice a second."""
        if self._link is None or self._spec.grpc_tcp is None:
            return
        here = self._link.look()
        if here and self._tcp is None:
            try:
                await self._accept_tcp(shared=True)
                self._told = False
            except Misuse as err:  # it is tried again; the unix socket serves meanwhile
                if not self._told:
                    logger.error("event=no_grpc_tcp model=%s error=%s", self._spec.model, err)
                self._told = True
        elif here is False and self._tcp is not None:
            leaving = asyncio.ensure_future(self._tcp.stop(self._spec.limits.drain_s))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)
            self._tcp = None

    async def stop(self) -> None:
        """Take no new calls, and return when those under way are answered, or at the latest after the time to drain."""
        grace_s = self._spec.limits.drain_s
        stopping = [] if self._unix is None else [self._unix.stop(grace_s)]
        if self._tcp is not None:
            handing_over = self._link is not None and self._link.look() is not True
            stopping.append(self._tcp.stop(grace_s, _HANDOVER_S if handing_over else 0.0))
        await asyncio.gather(*stopping, *self._leaving)
        self._reader.shutdown(wait=False)
        self._unix_path.unlink(missing_ok=True)

    async def _accept_tcp(self, *, shared: bool) -> None:
        address, endpoint = self._spec.grpc_tcp, self._tcp_endpoint
        if address is None or endpoint is None:
            return
        _check_free(address, shared=shared)
        tcp = self._listening(endpoint, shared=shared)
        port = tcp.bind(address, self._spec.tls)
        await tcp.server.start()
        self._tcp, self.tcp_address = tcp, f"{address.rpartition(':')[0]}:{port}"

    def _listening(self, endpoint: Endpoint, *, shared: bool) -> _Listening:
        service = InferenceService(
            self._spec.model, endpoint, self._server, self._intake, self._reader, self._on_invalid
        )
        return _Listening(service, self._server, shared=shared)


class _Listening:
    """A service with the grpcio server that has it."""

    def __init__(self, service: InferenceService, server: HttpServer, *, shared: bool) -> None:
        self._service = service
        self.server = grpc.aio.server(
            options=_options(server, shared=shared), maximum_concurrent_rpcs=server.limits.connections
        )
        self.server.add_generic_rpc_handlers((service.handlers(),))

    def bind(self, address: str, tls: TlsFiles | None) -> int:
        """Bind the address and return its port.

        Raises:
            Misuse: when it cannot be bound.
        """
        try:
            if tls is None:
                port = self.server.add_insecure_port(address)
            else:
                port = self.server.add_secure_port(address, _credentials(tls))
        except RuntimeError as err:
            raise Misuse(f"cannot listen on {address}: free it or set another ({err})") from err
        if port == 0:
            raise Misuse(f"cannot listen on {address}: free it or set another")
        return port

    async def stop(self, grace_s: float, after_s: float = 0.0) -> None:
        """See GrpcServers.stop; new calls are taken for `after_s` more.

        grpcio cancels a call that comes after it was told to stop and before its caller has heard of that. One who
        waits for an answer sends none. So answers are held back for a moment, in which busy callers ask once more,
        until grpcio has sent the word; it comes before the answers.
        """
        await asyncio.sleep(after_s)
        self._service.hold_back()
        await asyncio.sleep(_GATHERING_S)
        stopping = asyncio.ensure_future(self.server.stop(grace_s))
        await asyncio.sleep(0)
        self._service.leave()
        await stopping


def _guarded(spec: ServeSpec, address: str) -> Endpoint:
    host = split_address(address)[0]
    return Endpoint(read_guards(spec, host).token, is_loopback(host))


def _check_free(address: str, *, shared: bool) -> None:
    """Do nothing when the address can be bound: a grpcio server that could not bind its own is never freed.

    Raises:
        Misuse: otherwise.
    """
    host, port = split_address(address)
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shared))
        try:
            probe.bind((host, port))
        except OSError as err:
            raise Misuse(f"cannot listen on {address}: {err.strerror}: free the port or set another") from err


def _options(server: HttpServer, *, shared: bool) -> list[tuple[str, int]]:
    limits = server.limits
    return [
        ("grpc.max_receive_message_length", min(server.body_limit_bytes, _MOST_MESSAGE_BYTES)),
        ("grpc.max_metadata_size", limits.header_bytes),
        ("grpc.absolute_max_metadata_size", limits.header_bytes),
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.max_concurrent_streams", limits.connections),
        ("grpc.max_connection_idle_ms", int(limits.idle_timeout_s * 1000)),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        ("grpc.keepalive_time_ms", _PING_MS),
        ("grpc.keepalive_timeout_ms", _PONG_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _LEAST_PING_MS),
        ("grpc.http2.bdp_probe", 0),  # which would let a call's window grow before anybody takes its message
        ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_ONLY),
        ("grpc.so_reuseport", int(shared)),
    ]


def _credentials(tls: TlsFiles) -> grpc.ServerCredentials:
    key, chain = (read_bounded(path, _MAX_PEM_BYTES) for path in (tls.key, tls.certificate))
    return grpc.ssl_server_credentials([(key, chain)])
