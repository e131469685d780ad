"""What each device shall run, signed and said to it: retained, under its generation, until the broker has it.

It is in the database before it is said, and said again after each connection to the broker, so neither side can miss
it for good.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

from regatta_fleet.database import devices
from regatta_fleet.database.engine import Database
from regatta_protocol.bus import Bus
from regatta_protocol.codec import encode
from regatta_protocol.errors import Rejected, Retryable
from regatta_protocol.ids import DeviceId
from regatta_protocol.messages import Assignment, SignedAssignment
from regatta_protocol.topics import desired

__all__ = ["Announcer", "Signer"]

logger = logging.getLogger(__name__)


class Signer(Protocol):
    """The key of assignments (regatta_provisioning.assignments.AssignmentKey)."""

    def sign(self, assignment: Assignment) -> SignedAssignment:
        """Return the assignment, signed."""


class Announcer:
    """Knows who must still be told. Used by the controller's thread."""

    def __init__(
        self, fleet: str, database: Database, bus: Bus, signer: Signer, clock: Callable[[], float] = time.time
    ) -> None:
        self._fleet = fleet
        self._database = database
        self._bus = bus
        self._signer = signer
        self._clock = clock
        self._unsaid: set[DeviceId] = set()
        self._say_all = False

    def add(self, changed: set[DeviceId]) -> None:
        """Let these devices be told anew."""
        self._unsaid |= changed

    def add_all(self) -> None:
        """Let every device be told anew."""
        self._say_all = True

    def say(self, *, connected: bool) -> None:
        """Publish what is unsaid, as far as the bus takes it."""
        if self._say_all:
            with self._database.read() as tx:
                self._unsaid |= {member.device for member in devices.list_members(tx)}
            self._say_all = False
        while self._unsaid and connected:
            device = next(iter(self._unsaid))
            try:
                self._bus.publish(desired(device), self._message(device), retain=True)
            except Retryable:
                return  # tried again at the next event
            except Rejected as err:
                logger.error("event=assignment_unsayable device=%s reason=%s", device, err)
            self._unsaid.discard(device)

    def redate(self) -> bool:
        """Let what was said while this machine's clock was ahead be said again, under a new generation; return whether.

        Devices take no time for true that lies before their newest assignment was issued, so until then they would wait
        for the years to pass before they believe signed metadata again.
        """
        now = self._clock()
        with self._database.read() as tx:
            ahead = devices.find_future(tx, now)
        if not ahead:
            return False
        with self._database.write() as tx:
            for device in ahead:
                devices.bump_generation(tx, device, now)
        logger.warning("event=assignments_redated devices=%d reason=this machine's clock was ahead", len(ahead))
        self.add(set(ahead))
        return True

    def _message(self, device: DeviceId) -> bytes:
        with self._database.read() as tx:
            wanted = devices.get_desired(tx, device)
        if wanted is None:
            return b""  # revoked: clears the retained message
        assignment = Assignment(
            fleet=self._fleet,
            device=device,
            generation=wanted.generation,
            issued_at=wanted.at,
            models=wanted.models,
            batch=wanted.batch,
            results=wanted.results,
            update_window=wanted.update_window,
        )
        return encode(self._signer.sign(assignment))
