"""Answers devices' requests for chunks (Get) from the blob folder, on a thread of its own.

A bounded line of requests; one over it is dropped, and the device asks again. Chunks go out with QoS 0; when the bus
takes no more for now, the thread waits a little, and gives the rest of a request up after a while.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from pathlib import Path

from regatta_protocol.bus import Bus
from regatta_protocol.chunk import Chunk, chunk_count, pack_chunk
from regatta_protocol.codec import encode_zlib
from regatta_protocol.errors import Retryable
from regatta_protocol.ids import DeviceId
from regatta_protocol.messages import Get, Response
from regatta_protocol.topics import chunk, response

__all__ = ["Sender"]

logger = logging.getLogger(__name__)

_LINE = 256
_PATIENCE_S = 10.0
_PAUSE_S = 0.02


class Sender:
    """One life: `start`, `stop`."""

    def __init__(self, bus: Bus, folder: Path) -> None:
        self._bus = bus
        self._folder = folder
        self._line: queue.Queue[tuple[DeviceId, Get] | None] = queue.Queue(_LINE)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._main, name="sender", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; requests in the line are dropped."""
        self._stopping.set()
        with contextlib.suppress(queue.Full):
            self._line.put_nowait(None)
        self._thread.join(5)

    def take(self, device: DeviceId, get: Get) -> None:
        """Begin to send what `get` asks for. Returns at once."""
        try:
            self._line.put_nowait((device, get))
        except queue.Full:
            logger.info("event=get_dropped device=%s", device)

    def published(self, token: int) -> None:
        """A message has left."""

    def _main(self) -> None:
        while not self._stopping.is_set():
            item = self._line.get()
            if item is not None:
                self._send(*item)

    def _send(self, device: DeviceId, get: Get) -> None:
        path = self._folder / get.digest
        try:
            with path.open("rb") as file:
                count = chunk_count(path.stat().st_size, get.chunk_bytes)
                for start, stop in get.ranges:
                    for index in range(start, min(stop, count)):
                        file.seek(index * get.chunk_bytes)
                        data = pack_chunk(Chunk(get.transfer, index, file.read(get.chunk_bytes)))
                        if not self._publish(chunk(device, get.transfer), data, qos=0):
                            return
        except FileNotFoundError:
            answer = Response(id=f"get-{get.transfer}", error=f"there is no file {get.digest}")
            self._publish(response(device), encode_zlib(answer), qos=1)

    def _publish(self, topic: str, data: bytes, qos: int) -> bool:
        waited_s = 0.0
        while waited_s < _PATIENCE_S and not self._stopping.is_set():
            try:
                self._bus.publish(topic, data, qos=1 if qos else 0)
                return True
            except Retryable:
                self._stopping.wait(_PAUSE_S)
                waited_s += _PAUSE_S
        return False
