"""What a serving worker is told at its start. Imports no numpy, so that the control process may write it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from regatta_agent.serving.socketpath import MAX_SOCKET_PATH_BYTES, check_socket_path
from regatta_protocol.bounds import Bounds
from regatta_protocol.ids import ModelNameField
from regatta_protocol.values import Latency, Plugin, Power
from regatta_runtimes.fpga.overlay import OverlayFiles
from regatta_runtimes.power.settings import PowerSettings

__all__ = [
    "GRPC_EXTRA",
    "MAX_SOCKET_PATH_BYTES",
    "MAX_SPEC_BYTES",
    "Contender",
    "NonFinite",
    "ServeLimits",
    "ServeSpec",
    "TlsFiles",
    "check_socket_path",
]

MAX_SPEC_BYTES = 65_536
GRPC_EXTRA = "pip install 'regatta-edge[grpc]'"  # what grpc_path needs
NonFinite = Literal["reject", "pass"]
_Positive = Annotated[float, Bounds(gt=0)]


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """A certificate chain and its key, both PEM."""

    certificate: Path
    key: Path


@dataclass(frozen=True, kw_only=True)
class ServeLimits:
    """The bounds of one worker."""

    queue_length: Annotated[int, Bounds(ge=1, le=4096)] = 32  # requests waiting or running; more are answered 429
    connections: Annotated[int, Bounds(ge=1, le=20_000)] = 256
    header_bytes: Annotated[int, Bounds(ge=1024)] = 16_384
    body_bytes: Annotated[int, Bounds(ge=1024)] | None = None  # None: from the size of the model's inputs
    header_timeout_s: _Positive = 10.0  # from a request's first byte to the end of its headers
    body_timeout_s: _Positive = 30.0  # and to the end of its body
    write_timeout_s: _Positive = 30.0  # for a client that does not read its answer
    idle_timeout_s: _Positive = 300.0
    drain_quiet_s: Annotated[float, Bounds(ge=0)] = 0.3  # the drain ends when nobody has asked for so long
    drain_s: _Positive = 10.0  # and at the latest after this
    hang_s: _Positive = 30.0  # a single inference that takes longer ends the worker
    self_test_s: _Positive = 60.0  # loading and self-test; a GPU's first inference takes seconds
    open_s: _Positive = 20.0  # one answer of a runner until it is tested, its first inference included
    runner_bytes: Annotated[int, Bounds(ge=64 << 20)] = 1 << 30  # memory of a runner, as of a candidate in the race
    checkup_s: _Positive = 60.0  # between checks of a runner's outputs against golden samples
    retry_base_s: _Positive = 2.0  # the winner is retried after a wait that doubles up to the cap
    retry_cap_s: _Positive = 1800.0
    retries_per_day: Annotated[int, Bounds(ge=1, le=200)] = 24


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A candidate that may serve, with what is needed to open it and what it did in the race."""

    candidate_id: str  # runtime/variant/delegate/tN
    variant_path: Path
    plugin: Plugin | None = None
    latency: Latency | None = None


@dataclass(frozen=True, kw_only=True)
class ServeSpec:
    """One worker: which candidate of which version, who stands in for it, and where it listens."""

    model: ModelNameField
    version: Annotated[int, Bounds(ge=1)]
    candidate_id: str  # runtime/variant/delegate/tN
    variant_path: Path
    plugin: Plugin | None = None
    latency: Latency | None = None  # of the candidate in the race
    standbys: Annotated[tuple[Contender, ...], Bounds(max_length=8)] = ()  # who takes over, best first
    companions: Annotated[tuple[Contender, ...], Bounds(max_length=3)] = ()  # who serves at the same time
    guarded: bool = False  # run the candidate in a process of its own even when it computes on the processor
    resting: str | None = None  # why the first standby serves from the start; the candidate is retried later
    max_slowdown: Annotated[float, Bounds(gt=1)] = 3.0
    retried: Annotated[tuple[float, ...], Bounds(max_length=200)] = ()  # seconds since 1970, of the last day
    overlay: OverlayFiles | None = None  # loaded into the FPGA before a candidate with its delegate is opened
    sysroot: Path = Path("/")  # where /sys and /lib/firmware are
    manifest_path: Path | None = None
    labels_path: Path | None = None
    golden_path: Path | None = None
    socket_path: Path
    tcp: str | None = None  # HOST:PORT; port 0 takes a free one, told in the ready event
    tcp_fd: int | None = None  # or a listening socket that all workers of the model share; see link_path
    link_path: Path | None = None  # the model's socket: the worker that it leads to accepts from tcp_fd
    shadow_path: Path | None = None  # leads to the next version's worker while that is in the shadow of this one
    grpc_path: Path | None = None  # gRPC too, on a unix socket there (extra grpc)
    grpc_tcp: str | None = None  # and on HOST:PORT, once link_path leads here; without a link, port 0 takes a free one
    tls: TlsFiles | None = None
    token_path: Path | None = None
    shared_memory: bool = False
    non_finite: NonFinite = "reject"
    max_batch: Annotated[int, Bounds(ge=1, le=256)] = 16  # rows computed together, where it pays; 1: never
    batch_delay_us: Annotated[int, Bounds(ge=0, le=1_000_000)] = 0
    window_s: Annotated[float, Bounds(gt=0, le=3600)] = 5.0
    power: PowerSettings = field(default_factory=PowerSettings)
    race_power: Power | None = None  # what the race measured of this candidate
    limits: ServeLimits = field(default_factory=ServeLimits)

    def winner(self) -> Contender:
        """Return the candidate that shall serve when it can."""
        return Contender(
            candidate_id=self.candidate_id, variant_path=self.variant_path, plugin=self.plugin, latency=self.latency
        )
