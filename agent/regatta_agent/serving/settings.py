"""What an operator may set about serving: the section `[serving]` of agent.toml. Imports no numpy.

Beyond loopback nothing listens without TLS and a token; a section that asks for it is refused, with the key named.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from regatta_agent.serving.addresses import is_loopback, split_address
from regatta_agent.serving.spec import GRPC_EXTRA, NonFinite, TlsFiles
from regatta_protocol.bounds import Bounds, Strict
from regatta_protocol.ids import ModelNameField

__all__ = ["ServingSettings"]

_Addresses = Annotated[dict[ModelNameField, str], Bounds(max_length=256)]  # model -> HOST:PORT


@dataclass(frozen=True, kw_only=True)
class ServingSettings(Strict):
    """How every model of this device is served."""

    tcp: _Addresses = field(default_factory=dict)
    grpc: bool = False  # every model answers gRPC too, on RUN_DIR/MODEL.grpc (extra grpc)
    grpc_tcp: _Addresses = field(default_factory=dict)  # for gRPC
    tls_certificate: Path | None = None  # with tls_key: TCP is TLS
    tls_key: Path | None = None
    token_file: Path | None = None  # its first line is the bearer token that TCP clients give
    shared_memory: bool = False  # the system shared-memory extension, for clients on this machine
    non_finite: NonFinite = "reject"  # inputs that hold NaN or infinity
    queue_length: Annotated[int, Bounds(ge=1, le=4096)] = 32  # requests of one model waiting or running
    connections: Annotated[int, Bounds(ge=1, le=20_000)] = 256  # of one model; more are refused
    max_batch: Annotated[int, Bounds(ge=1, le=256)] = 16  # rows computed together where that pays; 1: never
    batch_delay_us: Annotated[int, Bounds(ge=0, le=1_000_000)] = 0  # how long a request may wait for others

    @property
    def tls(self) -> TlsFiles | None:
        """The TLS files, or None for plain TCP."""
        if self.tls_certificate is None or self.tls_key is None:
            return None
        return TlsFiles(certificate=self.tls_certificate, key=self.tls_key)

    def __post_init__(self) -> None:
        if (self.tls_certificate is None) != (self.tls_key is None):
            given, missing = ("tls_certificate", "tls_key") if self.tls_key is None else ("tls_key", "tls_certificate")
            raise ValueError(f"{given} is set and {missing} is not: set both")
        guards = {"tls_certificate": self.tls_certificate, "tls_key": self.tls_key, "token_file": self.token_file}
        missing_keys = ", ".join(key for key, value in guards.items() if value is None)
        addresses = {f"tcp.{model}": address for model, address in self.tcp.items()}
        addresses |= {f"grpc_tcp.{model}": address for model, address in self.grpc_tcp.items()}
        taken: dict[str, str] = {}
        for key, address in addresses.items():
            host, port = split_address(address)
            if port == 0:
                raise ValueError(f"{key} is {address!r}: give a port of 1 to 65535, for clients must know it")
            if missing_keys and not is_loopback(host):
                raise ValueError(
                    f"{key} is {address!r}, which is not on loopback, and {missing_keys} not set: "
                    "set what is missing, or listen on 127.0.0.1"
                )
            if (other := taken.setdefault(address, key)) != key:
                raise ValueError(f"{key} and {other} are both {address!r}: give each a port of its own")
        self._check_grpc()

    def _check_grpc(self) -> None:
        if self.grpc_tcp and not self.grpc:
            raise ValueError("grpc_tcp is set and grpc is not: set grpc = true")
        if self.grpc and (missing := [name for name in ("grpc", "google.protobuf") if not _is_installed(name)]):
            raise ValueError(f"grpc is true and {', '.join(missing)} cannot be imported: {GRPC_EXTRA}")


def _is_installed(module: str) -> bool:
    """Return whether the module is there, without loading it."""
    try:
        return find_spec(module) is not None
    except ImportError:  # the package that it is in is not
        return False
