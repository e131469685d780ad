"""What crosses between the network's thread and its owner's: events into the bounded inbox, and a wake-up back.

What happens when the inbox is full: a QoS 0 message is dropped and counted (`dropped`; the receiver of a transfer asks
again). For anything else the thread waits, for a bounded time; if there is still no room the connection is given up.
"""

from __future__ import annotations

import queue
import socket
import threading
import time

from regatta_protocol.bus import Event, Inbox

__all__ = ["Door", "Waker"]

_INBOX_POLL_S = 0.2  # how soon stop() ends a wait for room in the inbox


class Waker:
    """Ends the network thread's poll() from another thread."""

    def __init__(self) -> None:
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._sender.setblocking(False)

    def fileno(self) -> int:
        return self._receiver.fileno()

    def wake(self) -> None:
        try:
            self._sender.send(b"\0")
        except OSError:  # full, so it wakes anyway; or closed, so nobody sleeps
            return

    def clear(self) -> None:
        try:
            while self._receiver.recv(4096):
                pass
        except BlockingIOError:
            return

    def close(self) -> None:
        self._receiver.close()
        self._sender.close()


class Door:
    """The way into the owner's inbox, with the counters of what went through."""

    def __init__(self, inbox: Inbox, stopping: threading.Event, wait_s: float) -> None:
        self._inbox = inbox
        self._stopping = stopping
        self._wait_s = wait_s
        self.bytes_received = 0
        self.bytes_sent = 0
        self.dropped = 0

    def deliver_now(self, event: Event) -> bool:
        """Put the event if there is room this moment."""
        try:
            self._inbox.put(event, block=False)
        except queue.Full:
            return False
        return True

    def deliver(self, event: Event, wait_s: float | None = None) -> bool:
        """Put the event, waiting for room for a bounded time, and not at all once the bus is stopping."""
        deadline = time.monotonic() + (self._wait_s if wait_s is None else wait_s)
        while not self.deliver_now(event):
            if self._stopping.is_set() or time.monotonic() >= deadline:
                return False
            try:
                self._inbox.put(event, timeout=_INBOX_POLL_S)
            except queue.Full:
                continue
            return True
        return True

    def deliver_surely(self, event: Event) -> None:
        """Put the event however long it takes, unless the bus is stopping."""
        self.deliver(event, wait_s=float("inf"))
