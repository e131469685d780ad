"""Telemetry on its way: from the outbox to the broker, a few batches at a time, until each is acknowledged."""

from __future__ import annotations

import logging

from regatta_agent.outbox import MAX_BATCH_ITEMS, Outbox
from regatta_protocol import topics
from regatta_protocol.bus import Bus
from regatta_protocol.errors import RegattaError, Retryable, StorageFull, TooLarge
from regatta_protocol.ids import DeviceId
from regatta_protocol.messages import RaceItem, ServingWindow

__all__ = ["Courier"]

logger = logging.getLogger(__name__)

_MAX_ON_THE_WAY = 4  # batches of up to 64 KiB; more would delay commands on a slow link


class Courier:
    """Sends what the outbox holds. Used by the loop's thread only."""

    def __init__(self, outbox: Outbox, bus: Bus, device: DeviceId, period_s: float) -> None:
        self._outbox = outbox
        self._bus = bus
        self._topic = topics.up(device, topics.Up.TELEMETRY)
        self._period_s = period_s
        self._on_the_way: dict[int, str] = {}  # token of the bus -> batch
        self._delivered: set[str] = set()  # the broker has them, and the disk did not take that yet: not sent again
        self._next_s = 0.0
        self._full = False

    def keep(self, item: RaceItem | ServingWindow) -> None:
        """Store an item; what cannot be stored costs the item, not the agent.

        A race is sent without waiting for the period: the next device of its kind may be about to ask for it.
        """
        if isinstance(item, RaceItem):
            self._next_s = 0.0
        try:
            self._outbox.put(item)
        except (StorageFull, TooLarge) as err:
            if not self._full:
                logger.error("event=telemetry_lost error=%s", err)
            self._full = True
        else:
            self._full = False

    def acknowledged(self, token: int) -> bool:
        """Take note of what the broker has; return whether the token was one of telemetry."""
        batch = self._on_the_way.pop(token, None)
        if batch is None:
            return False
        self._delivered.add(batch)
        self._forget_delivered()
        return True

    def flush(self, now_s: float, online: bool) -> None:
        """Send what is due: batches from before a restart first, then a new one each period or when it is full."""
        if not online or len(self._on_the_way) >= _MAX_ON_THE_WAY:
            return
        if self._delivered and not self._forget_delivered():
            return
        waiting = [batch for batch in self._outbox.batches() if batch not in self._on_the_way.values()]
        for batch in waiting[: _MAX_ON_THE_WAY - len(self._on_the_way)]:
            if not self._send(batch):
                return
        if waiting or len(self._on_the_way) >= _MAX_ON_THE_WAY:
            return
        if now_s >= self._next_s or self._outbox.unsent() >= MAX_BATCH_ITEMS:
            self._next_s = now_s + self._period_s
            fresh = self._new_batch()
            if fresh is not None:
                self._send(fresh)

    def _new_batch(self) -> str | None:
        try:
            return self._outbox.new_batch()
        except StorageFull as err:
            logger.debug("event=telemetry_waits error=%s", err)
            return None

    def _forget_delivered(self) -> bool:
        """Let the outbox forget what the broker has; return whether the disk took it."""
        try:
            for batch in sorted(self._delivered):
                self._outbox.acknowledge(batch)
                self._delivered.discard(batch)
        except StorageFull as err:
            logger.debug("event=telemetry_kept error=%s", err)
            return False
        return True

    def _send(self, batch: str) -> bool:
        try:
            payload = self._outbox.payload(batch)
            if payload is None:
                return True
            token = self._bus.publish(self._topic, payload)
        except (Retryable, StorageFull) as err:
            logger.debug("event=telemetry_waits error=%s", err)
            return False
        except RegattaError as err:
            logger.error("event=telemetry_refused batch=%s error=%s", batch, err)
            self._delivered.add(batch)
            return True
        self._on_the_way[token] = batch
        return True
