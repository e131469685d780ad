"""A TCP proxy that breaks connections as networks do; TLS goes through it untouched, for it knows no protocol.

`weather` says what happens to bytes and may be changed at any time, also under open connections. The same seed cuts at
the same bytes. One thread for each direction of a connection; bytes and connections are counted.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

__all__ = ["CAPTIVE_PORTAL", "CLEAR", "FaultProxy", "Weather", "fault_proxy"]

Way = Literal["up", "down"]  # from the client to the server, and back

_READ_BYTES = 16_384
_NOW = struct.pack("ii", 1, 0)  # SO_LINGER: close by RST, as a reboot of a router does

CAPTIVE_PORTAL = (
    b"HTTP/1.1 302 Found\r\nLocation: http://login.example/\r\nContent-Type: text/html\r\nContent-Length: 44\r\n\r\n"
    b"<html><body>Welcome to the hotel</body></html>"
)


@dataclass(frozen=True)
class Weather:
    """What happens on the way. A cut falls somewhere in the second half of so many bytes, in the middle of a record."""

    delay_s: float = 0.0  # of each read, one after the other
    bytes_per_s: float | None = None
    cut_up_bytes: int | None = None  # each connection ends after about so many
    cut_down_bytes: int | None = None
    silent: bool = False  # a partition: nothing passes, nobody is told, connections stay open
    refuse: bool = False  # new connections are reset
    portal: bytes | None = None  # new connections are answered with this instead of by the server


CLEAR = Weather()


class _Pair:
    """A connection and its continuation to the server."""

    def __init__(self, near: socket.socket, far: socket.socket, chance: random.Random) -> None:
        self.ends = (near, far)
        self.share = {"up": chance.uniform(0.5, 1.0), "down": chance.uniform(0.5, 1.0)}
        self.passed = {"up": 0, "down": 0}
        self.broken = False


class FaultProxy:
    """Passes connections on to a port of this machine."""

    def __init__(self, port: int, seed: int = 0) -> None:
        self.bytes = {"up": 0, "down": 0}
        self.connections = 0
        self._target = port
        self._chance = random.Random(seed)
        self._weather = CLEAR
        self._changed = threading.Condition()
        self._pairs: list[_Pair] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def weather(self) -> Weather:
        return self._weather

    @weather.setter
    def weather(self, weather: Weather) -> None:
        with self._changed:
            self._weather = weather
            self._changed.notify_all()

    def cut(self) -> None:
        """Break every connection there is; new ones are passed on again."""
        with self._changed:
            broken, self._pairs = self._pairs, []
            for pair in broken:
                pair.broken = True
            self._changed.notify_all()
        for pair in broken:
            _break(pair)

    def close(self) -> None:
        """End for good."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            weather = self._weather
            if weather.refuse:
                near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NOW)
                near.close()
            elif weather.portal is not None:
                threading.Thread(target=_answer_as_portal, args=(near, weather.portal), daemon=True).start()
            else:
                self._join(near)

    def _join(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(("127.0.0.1", self._target), timeout=5)
        except OSError:
            near.close()
            return
        far.settimeout(None)
        with self._changed:
            pair = _Pair(near, far, self._chance)
            self._pairs.append(pair)
        ways: tuple[tuple[Way, socket.socket, socket.socket], ...] = (("up", near, far), ("down", far, near))
        for way, source, sink in ways:
            threading.Thread(target=self._pass_on, args=(pair, way, source, sink), daemon=True).start()

    def _pass_on(self, pair: _Pair, way: Way, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(_READ_BYTES):
                weather = self._clear_of_silence(pair)
                pause_s = weather.delay_s + (len(data) / weather.bytes_per_s if weather.bytes_per_s else 0.0)
                with self._changed:
                    self._changed.wait_for(lambda: pair.broken, timeout=pause_s)
                allowed = self._allowed(pair, way, len(data))
                sink.sendall(data[:allowed])
                if allowed < len(data):
                    break
        _break(pair)

    def _clear_of_silence(self, pair: _Pair) -> Weather:
        with self._changed:
            self._changed.wait_for(lambda: pair.broken or not self._weather.silent)
            return self._weather

    def _allowed(self, pair: _Pair, way: Way, size_bytes: int) -> int:
        """Return how many of these bytes may pass before the connection is cut, and count them."""
        weather = self._weather
        limit = weather.cut_up_bytes if way == "up" else weather.cut_down_bytes
        with self._changed:
            left = size_bytes if limit is None else max(0, int(limit * pair.share[way]) - pair.passed[way])
            allowed = 0 if pair.broken else min(size_bytes, left)
            pair.passed[way] += allowed
            self.bytes[way] += allowed
        return allowed


def _answer_as_portal(near: socket.socket, page: bytes) -> None:
    with suppress(OSError):
        near.settimeout(5)
        near.recv(_READ_BYTES)
        near.sendall(page)
    near.close()


def _break(pair: _Pair) -> None:
    for end in pair.ends:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextmanager
def fault_proxy(port: int, seed: int = 0) -> Iterator[FaultProxy]:
    """Run a proxy in front of a port for a while."""
    proxy = FaultProxy(port, seed)
    try:
        yield proxy
    finally:
        proxy.close()
