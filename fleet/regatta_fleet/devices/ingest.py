"""What devices say: from a message on a topic to rows in the database, or to a question for the controller.

Nothing a device sends stops the server. Who speaks is taken from the topic, which the broker ties to the device's
certificate; a message that names another device is refused. Unknown and revoked devices are ignored and counted. A
message that cannot be understood is logged once for each device and kind, counted and dropped.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from dataclasses import dataclass

from sqlalchemy import Connection

from regatta_fleet import verdicts
from regatta_fleet.batches import batching
from regatta_fleet.core.moments import believed
from regatta_fleet.database import devices, telemetry
from regatta_fleet.database.engine import Database
from regatta_fleet.database.events import add_event
from regatta_fleet.rollouts.rolling import note_reported
from regatta_protocol.bus import Message
from regatta_protocol.codec import decode, decode_zlib
from regatta_protocol.errors import Rejected
from regatta_protocol.ids import DeviceId
from regatta_protocol.messages import Get, Presence, RaceItem, Reported, Request, TelemetryBatch
from regatta_protocol.topics import Up, UpTopic, parse_up

__all__ = ["Asked", "Ingest", "Stored", "Wanted"]

logger = logging.getLogger(__name__)

_POISON_REMEMBERED = 1000  # (device, kind) pairs whose first bad message was logged


@dataclass(frozen=True)
class Stored:
    """Facts came in; rollouts may go on. `reassigned`: what the device shall run or do has changed by them."""

    device: DeviceId
    reassigned: bool = False


@dataclass(frozen=True)
class Asked:
    """The device waits for an answer."""

    device: DeviceId
    request: Request


@dataclass(frozen=True)
class Wanted:
    """The device waits for chunks."""

    device: DeviceId
    get: Get


class Ingest:
    """Takes messages in. Used by one thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._active: set[DeviceId] = set()  # enrolled and not revoked, as far as looked up
        self._poison: OrderedDict[tuple[str, str], None] = OrderedDict()
        self.counts: Counter[str] = Counter()  # accepted, repeated, ignored, poison

    def forget(self, device: DeviceId) -> None:
        """Look the device up again at its next message: it was enrolled or revoked."""
        self._active.discard(device)

    def take(self, message: Message, now: float) -> Stored | Asked | Wanted | None:
        """Store what the message says; None when there is nothing more to do about it.

        Raises:
            Retryable: when the database cannot take it now; the message may be taken again.
        """
        if not message.payload:  # a retained message was cleared
            return None
        where: UpTopic | None = None
        try:
            where = parse_up(message.topic)
            if not self._is_active(where.device):
                self.counts["ignored"] += 1
                return None
            result = self._take(where, message.payload, now)
        except Rejected as err:
            self._note_poison(where, message.topic, err)
            return None
        self.counts["accepted"] += 1
        return result

    def _take(self, where: UpTopic, payload: bytes, now: float) -> Stored | Asked | Wanted | None:
        device = where.device
        if where.kind is Up.GET:
            return Wanted(device, decode(Get, payload))
        if where.kind is Up.REQUEST:
            return Asked(device, decode(Request, payload))
        if where.kind is Up.STATE:
            return self._take_presence(device, decode(Presence, payload), now)
        if where.kind is Up.REPORTED:
            reported = decode(Reported, payload)
            _check_speaker(device, reported.device)
            with self._database.write() as tx:
                new = _record_reported(tx, reported, now)
                return self._stored_if(device, new, reassigned=new and batching.note_reported(tx, reported, now))
        batch = decode_zlib(TelemetryBatch, payload)
        _check_speaker(device, batch.device)
        with self._database.write() as tx:
            return self._stored_if(device, _record_batch(tx, batch, now))

    def _take_presence(self, device: DeviceId, presence: Presence, now: float) -> Stored:
        with self._database.write() as tx:
            if devices.record_presence(tx, device, presence, now):
                add_event(
                    tx, now, "device_up" if presence.up else "device_down", _presence_words(presence), device=device
                )
        return Stored(device)

    def _stored_if(self, device: DeviceId, new: bool, *, reassigned: bool = False) -> Stored | None:
        if not new:
            self.counts["repeated"] += 1
            return None
        return Stored(device, reassigned)

    def _is_active(self, device: DeviceId) -> bool:
        if device in self._active:
            return True
        with self._database.read() as tx:
            row = devices.get_device(tx, device)
        if row is None or row.revoked:
            return False
        self._active.add(device)
        return True

    def _note_poison(self, where: UpTopic | None, topic: str, err: Rejected) -> None:
        self.counts["poison"] += 1
        key = (where.device, str(where.kind)) if where is not None else ("", topic[:120])
        if key in self._poison:
            return
        self._poison[key] = None
        if len(self._poison) > _POISON_REMEMBERED:
            self._poison.popitem(last=False)
        logger.warning("event=message_refused topic=%s reason=%s further=counted_only", topic[:120], err)


def _check_speaker(topic: DeviceId, said: DeviceId) -> None:
    if topic != said:
        raise Rejected(f"{topic} sent a message in the name of {said}")


def _record_reported(tx: Connection, reported: Reported, now: float) -> bool:
    if not devices.record_reported(tx, reported, now):
        return False
    note_reported(tx, reported)
    return True


def _record_batch(tx: Connection, batch: TelemetryBatch, now: float) -> bool:
    batch = believed(batch, now)
    if not telemetry.record_batch(tx, batch, now):
        return False
    for item in batch.items:
        if isinstance(item, RaceItem):
            add_event(tx, now, "raced", verdicts.raced(item.report), device=batch.device)
    return True


def _presence_words(presence: Presence) -> str:
    return f"connected, agent {presence.agent_version or '?'}" if presence.up else "disconnected"
