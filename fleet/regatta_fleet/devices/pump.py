"""Sends the chunks that devices asked for, on a thread of its own: one chunk for each device in turn.

What to send is sender.py's. Everything here is bounded: requests in the line, requests of one device, and how long
the bus may refuse before all is dropped; a device asks again for what did not come.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections import deque
from collections.abc import Iterator

from regatta_fleet.devices.sender import Outbound, Sender
from regatta_protocol.bus import Bus
from regatta_protocol.errors import RegattaError, Retryable
from regatta_protocol.ids import DeviceId
from regatta_protocol.messages import Get

__all__ = ["ChunkPump"]

logger = logging.getLogger(__name__)

_LINE = 1024  # requests of all devices that were not begun
_REQUESTS_PER_DEVICE = 8  # a device has one or two on their way
_PATIENCE_TRIES = 100
_PAUSE_S = 0.05  # at most; a message that left ends it


class ChunkPump:
    """One life: `start`, `stop`."""

    def __init__(self, bus: Bus, sender: Sender) -> None:
        self._bus = bus
        self._sender = sender
        self._line: queue.Queue[tuple[DeviceId, Get] | None] = queue.Queue(_LINE)
        self._active: dict[DeviceId, deque[Iterator[Outbound]]] = {}  # the thread's own
        self._room = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._main, name="chunks", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what was not sent is dropped."""
        self._stopping.set()
        self._room.set()
        with contextlib.suppress(queue.Full):  # then it is awake anyway
            self._line.put_nowait(None)
        self._thread.join(5)

    def take(self, device: DeviceId, get: Get) -> None:
        """Begin to send what `get` asks for. Returns at once; for any thread."""
        try:
            self._line.put_nowait((device, get))
        except queue.Full:
            logger.info("event=get_dropped device=%s reason=line_full", device)

    def published(self, token: int) -> None:
        """A message has left: there is room for another. For any thread."""
        self._room.set()

    def _main(self) -> None:
        while not self._stopping.is_set():
            try:
                self._turn()
            except RegattaError as err:
                logger.error("event=chunks_dropped reason=%s", err)
                self._active.clear()
            except Exception:  # the top of this thread: one bad request must not end all transfers
                logger.exception("event=chunks_error")
                self._active.clear()

    def _turn(self) -> None:
        """Take new requests, waiting for one when there is nothing to send, and send one chunk to each device."""
        with contextlib.suppress(queue.Empty):
            while True:
                item = self._line.get(block=not self._active)
                if item is None:
                    return
                self._begin(*item)
        for device in list(self._active):
            waiting = self._active[device]
            outbound = next(waiting[0], None)
            if outbound is not None:
                self._publish(outbound)
                continue
            waiting.popleft()
            if not waiting:
                del self._active[device]

    def _begin(self, device: DeviceId, get: Get) -> None:
        waiting = self._active.setdefault(device, deque())
        if len(waiting) >= _REQUESTS_PER_DEVICE:
            logger.info("event=get_dropped device=%s reason=too_many", device)
            return
        waiting.append(self._sender.answer(device, get))

    def _publish(self, outbound: Outbound) -> None:
        for _ in range(_PATIENCE_TRIES):
            if self._stopping.is_set():
                return
            self._room.clear()
            try:
                self._bus.publish(outbound.topic, outbound.payload, qos=outbound.qos)
            except Retryable:
                self._room.wait(_PAUSE_S)
            else:
                return
        raise Retryable("the broker takes no chunks at the moment: devices ask again")
