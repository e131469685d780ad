"""Telemetry on its way: from the outbox to the broker, a few batches at a time, until each is acknowledged."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from regatta_agent.disk.patience import Patience
from regatta_agent.telemetry.outbox import MAX_BATCH_ITEMS, Outbox
from regatta_protocol import topics
from regatta_protocol.bus import Bus
from regatta_protocol.errors import RegattaError, Retryable
from regatta_protocol.ids import DeviceId
from regatta_protocol.messages import RaceItem
from regatta_protocol.values import ServingWindow

__all__ = ["Courier"]

logger = logging.getLogger(__name__)

_MAX_ON_THE_WAY = 4  # batches of up to 64 KiB; more would delay commands on a slow link


class Courier:
    """Sends what the outbox holds, and leaves its disk alone when that refuses. Used by the loop's thread only."""

    def __init__(
        self,
        outbox: Outbox,
        bus: Bus,
        device: DeviceId,
        period_s: float,
        *,
        free_bytes: Callable[[], int],
        full_wait_s: float,
    ) -> None:
        self._outbox = outbox
        self._bus = bus
        self._topic = topics.up(device, topics.Up.TELEMETRY)
        self._period_s = period_s
        self._on_the_way: dict[int, str] = {}  # token of the bus -> batch
        self._next_s = 0.0
        self._heard: set[str] = set()  # batches that the broker has, and that could not be forgotten yet
        self._free_bytes = free_bytes
        self._patience = Patience(full_wait_s)
        self._now_s = 0.0  # monotonic, at the last flush

    def keep(self, item: RaceItem | ServingWindow) -> None:
        """Store an item; where that cannot be done the item is lost and counted, and the agent goes on.

        A race is sent without waiting for the period: the next device of its kind may be about to ask for it.
        """
        if isinstance(item, RaceItem):
            self._next_s = 0.0
        if not self._may_ask():
            self._outbox.lose()
            return
        with self._tolerant():
            self._outbox.put(item)
            self._patience.obeyed()

    def acknowledged(self, token: int) -> bool:
        """Take note of what the broker has; return whether the token was one of telemetry."""
        batch = self._on_the_way.pop(token, None)
        if batch is None:
            return False
        self._heard.add(batch)
        if self._may_ask():
            with self._tolerant():
                self._forget_heard()
        return True

    def flush(self, now_s: float, online: bool) -> None:
        """Send what is due: batches from before a restart first, then a new one each period or when it is full."""
        self._now_s = now_s
        if not online or len(self._on_the_way) >= _MAX_ON_THE_WAY or not self._may_ask():
            return
        with self._tolerant():
            self._forget_heard()
            self._flush(now_s)

    def _may_ask(self) -> bool:
        return not self._patience.tried or self._patience.may_ask(self._now_s, self._free_bytes())

    def _forget_heard(self) -> None:
        """Delete what the broker has; what cannot be deleted yet is not sent again meanwhile."""
        for batch in list(self._heard):
            self._outbox.acknowledge(batch)
            self._patience.obeyed()
            self._heard.discard(batch)

    @contextmanager
    def _tolerant(self) -> Iterator[None]:
        """Let an outbox that cannot be used now cost nothing but a line in the log, told once."""
        try:
            yield
        except Retryable as err:
            if not self._patience.tried:
                logger.error("event=telemetry_in_trouble error=%s", err)
            self._patience.refused(err, self._now_s, self._free_bytes())

    def _flush(self, now_s: float) -> None:
        waiting = [batch for batch in self._outbox.batches() if batch not in self._on_the_way.values()]
        for batch in waiting[: _MAX_ON_THE_WAY - len(self._on_the_way)]:
            if not self._send(batch):
                return
        if waiting or len(self._on_the_way) >= _MAX_ON_THE_WAY:
            return
        if now_s >= self._next_s or self._outbox.unsent() >= MAX_BATCH_ITEMS:
            self._next_s = now_s + self._period_s
            fresh = self._outbox.new_batch()
            if fresh is not None:
                self._patience.obeyed()
                self._send(fresh)

    def _send(self, batch: str) -> bool:
        payload = self._outbox.payload(batch)
        if payload is None:
            return True
        try:
            token = self._bus.publish(self._topic, payload)
        except Retryable as err:
            logger.debug("event=telemetry_waits error=%s", err)
            return False
        except RegattaError as err:
            logger.error("event=telemetry_refused batch=%s error=%s", batch, err)
            self._outbox.acknowledge(batch)
            return True
        self._on_the_way[token] = batch
        return True
