"""The controller: one thread that owns every decision about rollouts, and all that is said to devices.

Events of the bus and calls of the HTTP handlers come through one bounded inbox. Handlers that only read, or that
add a token or a device, use short transactions of their own; whatever pushes a version or moves a rollout is a call
that this thread carries out, so decisions never race.

What a device shall run is in the database before it is said to it (announcing.py); what devices ask is answered
(answering.py), and what they report is stored (ingest.py).
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, TimeoutError
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from regatta_fleet.database import devices, telemetry
from regatta_fleet.database.engine import Database
from regatta_fleet.devices.answering import Answers
from regatta_fleet.devices.ingest import Asked, Ingest, Stored, Wanted
from regatta_fleet.errors import Busy
from regatta_fleet.models.registry import Metadata
from regatta_fleet.rollouts import rolling
from regatta_fleet.rollouts.announcing import Announcer
from regatta_protocol.bus import Bus, Connected, Disconnected, Event, Message, Published
from regatta_protocol.errors import RegattaError, Retryable
from regatta_protocol.ids import DeviceId
from regatta_protocol.messages import Get, Request
from regatta_protocol.topics import response

__all__ = ["INBOX_LENGTH", "Call", "ChunkSender", "Controller", "Inbox"]

logger = logging.getLogger(__name__)

INBOX_LENGTH = 4096  # messages of at most 64 KiB; a full inbox makes the bus wait (regatta_protocol.mqtt)
_TICK_S = 0.5  # how late a wave's time limit may be noticed
_CALL_TIMEOUT_S = 30.0
_REFRESH_S = 600.0  # how often metadata that expires is looked at
_DAY_S = 86_400.0
_STORE_RETRIES = 5
_STORE_RETRY_S = 0.2

_TOO_MUCH = "the server has too much to do at the moment: try again"

T = TypeVar("T")


class ChunkSender(Protocol):
    """Who answers requests for chunks (pump.py)."""

    def take(self, device: DeviceId, get: Get) -> None:
        """Begin to send what `get` asks for. Returns at once."""

    def published(self, token: int) -> None:
        """A message has left."""


@dataclass(frozen=True)
class Call(Generic[T]):
    """Something another thread wants done on this one."""

    action: Callable[[], T]
    result: Future[T]

    def carry_out(self) -> None:
        """Do it, unless who asked has given up."""
        if not self.result.set_running_or_notify_cancel():
            return
        try:
            self.result.set_result(self.action())
        except BaseException as err:  # noqa: BLE001  # it is the caller's: raised again in its thread
            self.result.set_exception(err)


Inbox = queue.Queue[Event | Call[Any]]


class Controller:
    """One life: `start`, `stop`."""

    def __init__(
        self,
        database: Database,
        bus: Bus,
        inbox: Inbox,
        ingest: Ingest,
        announcer: Announcer,
        answers: Answers,
        metadata: Metadata,
        sender: ChunkSender,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._bus = bus
        self._inbox = inbox
        self._ingest = ingest
        self._announcer = announcer
        self._answers = answers
        self._metadata = metadata
        self._sender = sender
        self._clock = clock
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._look_again = True  # facts came in that may move a rollout
        self._looked_at_s = 0.0
        self._next_refresh_s = 0.0
        self._next_cleaning_s = 0.0
        self.connected = False
        self.alive_at_s = time.monotonic()

    def start(self) -> None:
        """Begin. The database must be open; the bus may be started before or after."""
        self._thread = threading.Thread(target=self._main, name="controller")
        self._thread.start()

    def stop(self) -> None:
        """End the thread once what is in the inbox is taken."""
        self._stopping.set()
        with contextlib.suppress(queue.Full):  # then it is awake anyway
            self._inbox.put_nowait(Call(lambda: None, Future()))
        if self._thread is not None:
            self._thread.join(10)

    def call(self, action: Callable[[], T], timeout_s: float = _CALL_TIMEOUT_S) -> T:
        """Return what `action` returns, carried out on the controller's thread.

        Raises:
            Busy: when it is not begun in time (it is not carried out then), or not done in time.
        """
        result: Future[T] = Future()
        self._post(Call(action, result), timeout_s)
        try:
            return result.result(timeout_s)
        except TimeoutError:
            begun = not result.cancel()
            what = "the server still works on it: look whether it was done" if begun else _TOO_MUCH
            raise Busy(what) from None

    def tell(self, changed: set[DeviceId]) -> None:
        """Publish anew what these devices shall run. On the controller's thread only."""
        self._announcer.add(changed)
        self._look_again = True

    def note_change(self, device: DeviceId) -> None:
        """A device was enrolled or revoked; for any thread. Returns at once.

        Raises:
            Busy: when the inbox stays full.
        """
        self._post(Call(lambda: self._take_change(device), Future()), _CALL_TIMEOUT_S)

    def step(self, timeout_s: float = _TICK_S) -> None:
        """Take one event, or wait that long for one, and do what follows. The thread's loop body; for tests too."""
        self.alive_at_s = time.monotonic()
        try:
            self._take(self._inbox.get(timeout=timeout_s))
        except queue.Empty:
            self._look_again = True  # time has passed
        # Under load rollouts are looked at once a tick, not after each of thousands of reports.
        if self._inbox.empty() or time.monotonic() - self._looked_at_s > _TICK_S:
            self._looked_at_s = time.monotonic()
            self._advance()
            self._announcer.say(connected=self.connected)
            self._keep_house()

    def _main(self) -> None:
        while not (self._stopping.is_set() and self._inbox.empty()):
            try:
                self.step()
            except RegattaError as err:
                logger.error("event=controller_trouble reason=%s", err)
                self._stopping.wait(_TICK_S)
            except Exception:  # the top of this thread: one bad event must not end the fleet's control
                logger.exception("event=controller_error")
                self._stopping.wait(_TICK_S)

    def _take(self, event: Event | Call[Any]) -> None:
        if isinstance(event, Call):
            event.carry_out()
            self._look_again = True
        elif isinstance(event, Message):
            self._take_message(event)
        elif isinstance(event, Published):
            self._sender.published(event.token)
        elif isinstance(event, Connected):
            self._take_connected()
        elif isinstance(event, Disconnected):
            self.connected = False
            logger.warning("event=broker_lost reason=%s", event.reason)

    def _take_connected(self) -> None:
        self.connected = True
        self._announcer.add_all()
        logger.info("event=broker_connected")
        # Who is up says so by its retained message, which follows.
        self._patiently("presence", self._forget_presence)

    def _forget_presence(self) -> None:
        with self._database.write() as tx:
            devices.mark_all_down(tx)

    def _take_message(self, message: Message) -> None:
        taken = self._patiently(message.topic, lambda: self._ingest.take(message, self._clock()))
        if isinstance(taken, Stored):
            self._look_again = True
            if taken.reassigned:
                self._announcer.add({taken.device})
        elif isinstance(taken, Wanted):
            self._sender.take(taken.device, taken.get)
        elif isinstance(taken, Asked):
            self._answer(taken.device, taken.request)

    def _patiently(self, what: str, action: Callable[[], T]) -> T | None:
        """Return what `action` returns, tried again while the database does not answer; None when it never does."""
        for attempt in range(_STORE_RETRIES):
            try:
                return action()
            except Retryable as err:
                logger.warning("event=store_waits what=%s attempt=%d reason=%s", what, attempt, err)
                self._stopping.wait(_STORE_RETRY_S * 2**attempt)
        logger.error("event=store_gave_up what=%s", what)
        return None

    def _answer(self, device: DeviceId, request: Request) -> None:
        try:
            self._bus.publish(response(device), self._answers.to(request))
        except Retryable as err:  # the device asks again
            logger.info("event=answer_dropped device=%s reason=%s", device, err)

    def _post(self, call: Call[T], timeout_s: float) -> None:
        try:
            self._inbox.put(call, timeout=timeout_s)
        except queue.Full:
            raise Busy(_TOO_MUCH) from None

    def _take_change(self, device: DeviceId) -> None:
        self._ingest.forget(device)
        self.tell({device})

    def _advance(self) -> None:
        if not self._look_again:
            return
        now = self._clock()
        with self._database.read() as tx:
            moves = rolling.may_advance(tx, now)
        if moves:
            with self._database.write() as tx:
                changed = rolling.advance_all(tx, now)
            self._announcer.add(changed)
        self._look_again = False

    def _keep_house(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._next_refresh_s:
            self._next_refresh_s = now_s + _REFRESH_S
            for advice in self._metadata.refresh_online():
                logger.warning("event=metadata_needs_operator text=%s", advice)
            self._look_again |= self._announcer.redate()
        if now_s >= self._next_cleaning_s:
            self._next_cleaning_s = now_s + _DAY_S
            with self._database.write() as tx:
                telemetry.forget_old_batches(tx, self._clock())
