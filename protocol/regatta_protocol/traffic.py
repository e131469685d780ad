"""Bytes on the wire by their cause: what each connection costs is counted where it is known, in the MQTT adapter.

Counted are bytes as a provider counts them: IP and TCP headers, TLS and retransmissions included, from the kernel's
own counters of the connection (TCP_INFO). They are shared out to causes by the packets that went over it meanwhile.

Invariant: the sum over all causes is what the kernel counted, but for what a connection still sends while it closes.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Mapping
from typing import NamedTuple

from regatta_protocol.enums import StrEnum

__all__ = ["Amount", "Cause", "Ledger", "Meter", "cause_of", "read_tcp_totals"]


class Cause(StrEnum):
    """What bytes were spent on."""

    CONNECTION = "connection"  # handshakes of TCP and TLS, CONNECT, SUBSCRIBE, and what no packet accounts for
    KEEPALIVE = "keepalive"  # PINGREQ and PINGRESP
    PRESENCE = "presence"  # that the device is up: at each connection, and as its heartbeat
    REPORTS = "reports"
    TELEMETRY = "telemetry"
    ASSIGNMENT = "assignment"
    METADATA = "metadata"  # requests with their answers: signed metadata, results of races
    TRANSFER = "transfer"  # models: chunks, and asking for them
    RESULTS = "results"  # outputs of batch jobs, over HTTPS
    OTHER = "other"


_CAUSES = {
    "up/state": Cause.PRESENCE,
    "up/reported": Cause.REPORTS,
    "up/telemetry": Cause.TELEMETRY,
    "up/request": Cause.METADATA,
    "dn/response": Cause.METADATA,
    "dn/desired": Cause.ASSIGNMENT,
    "up/get": Cause.TRANSFER,
    "dn/chunk": Cause.TRANSFER,
}


def cause_of(topic: str) -> Cause:
    """Return what a message on `topic` is about (topics.py says which there are)."""
    return _CAUSES.get("/".join(topic.split("/")[3:5]), Cause.OTHER)


class Amount(NamedTuple):
    """Bytes in both directions."""

    sent: int = 0
    received: int = 0

    @property
    def total(self) -> int:
        return self.sent + self.received

    def __add__(self, other: object) -> Amount:
        if not isinstance(other, Amount):
            return NotImplemented
        return Amount(self.sent + other.sent, self.received + other.received)


class Ledger:
    """The sums over all connections. `add` is for the network's thread, `totals` for any."""

    def __init__(self, before: Mapping[Cause, Amount] | None = None) -> None:
        self._lock = threading.Lock()
        self._totals = dict(before or {})

    def add(self, cause: Cause, amount: Amount) -> None:
        """Count bytes."""
        with self._lock:
            self._totals[cause] = self._totals.get(cause, Amount()) + amount

    def totals(self) -> dict[Cause, Amount]:
        """Return the sum of each cause that had any."""
        with self._lock:
            return dict(self._totals)


class Meter:
    """Shares out what one connection cost. For one thread.

    Call `sent` and `received` for each packet, and now and then `settle` with the connection's totals so far.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._sent = _Direction()
        self._received = _Direction()

    def sent(self, cause: Cause, size_bytes: int) -> None:
        """Note a packet that goes out."""
        self._sent.note(cause, size_bytes)

    def received(self, cause: Cause, size_bytes: int) -> None:
        """Note a packet that has come in."""
        self._received.note(cause, size_bytes)

    def settle(self, totals: Amount | None, rest: Cause | None = None) -> None:
        """Share out what came since the last time.

        Args:
            totals: all bytes of the connection so far; None where the kernel does not say: packets count as they are.
            rest: what is above the packets' own sizes goes to this cause; None shares it out in proportion to them,
                and keeps it for the next packets where there were none.
        """
        for cause, size_bytes in self._sent.share(None if totals is None else totals.sent, rest):
            self._ledger.add(cause, Amount(sent=size_bytes))
        for cause, size_bytes in self._received.share(None if totals is None else totals.received, rest):
            self._ledger.add(cause, Amount(received=size_bytes))


class _Direction:
    def __init__(self) -> None:
        self._noted: dict[Cause, int] = {}
        self._settled_bytes = 0

    def note(self, cause: Cause, size_bytes: int) -> None:
        self._noted[cause] = self._noted.get(cause, 0) + size_bytes

    def share(self, total_bytes: int | None, rest: Cause | None) -> list[tuple[Cause, int]]:
        noted_bytes = sum(self._noted.values())
        total_bytes = self._settled_bytes + noted_bytes if total_bytes is None else total_bytes
        fresh_bytes = total_bytes - self._settled_bytes
        if rest is not None:
            self.note(rest, max(0, fresh_bytes - noted_bytes))
            noted_bytes = sum(self._noted.values())
        if noted_bytes == 0 or fresh_bytes <= 0:
            return []
        shares = []
        left_bytes, left_noted = fresh_bytes, noted_bytes
        for cause, size_bytes in self._noted.items():  # each takes its part of what is left: nothing is rounded away
            part = left_bytes * size_bytes // left_noted if left_noted else 0
            shares.append((cause, part))
            left_bytes, left_noted = left_bytes - part, left_noted - size_bytes
        self._noted.clear()
        self._settled_bytes = total_bytes
        return shares


_HEADERS_BYTES = {socket.AF_INET: 20 + 32, socket.AF_INET6: 40 + 32}  # IP, and TCP with timestamps (RFC 7323)
_SHORT, _LONG = 144, 216  # struct tcp_info up to segs_in (Linux 4.2) and up to bytes_retrans (4.19)


def read_tcp_totals(connection: socket.socket) -> Amount | None:
    """Return all bytes of a TCP connection so far, headers included; None where the kernel does not count them."""
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    except OSError:
        return None
    if len(info) < _SHORT:
        return None
    acknowledged, received, segments_out, segments_in = struct.unpack_from("=QQII", info, 120)
    sent = struct.unpack_from("=Q", info, 200)[0] if len(info) >= _LONG else acknowledged
    header = _HEADERS_BYTES.get(connection.family, 0)
    return Amount(sent + segments_out * header, received + segments_in * header)
