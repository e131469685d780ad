"""Who this device is at a start, and serving without that: what stands in when the identity is damaged beyond mending.

What serves needs no fleet, and the record still says for which device the fleet signed its last assignment. Nothing is
fetched, reported or renewed until the device is enrolled again.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from regatta_agent.core.installs import AgentRecord
from regatta_agent.disk.record import RecordFile
from regatta_agent.events import Event
from regatta_protocol.bus import Bus, Will
from regatta_protocol.errors import Misuse, Retryable
from regatta_provisioning.identity import Identity, mend_identity

__all__ = ["BusMaker", "who_we_are"]

logger = logging.getLogger(__name__)

BusMaker = Callable[["queue.Queue[Event]", Identity, Will], Bus]


def who_we_are(state_dir: Path, make_bus: BusMaker) -> tuple[Identity, BusMaker]:
    """Return the device's identity, mended, and what connects it; when it is lost, its name and no connection.

    Raises:
        Misuse: when it is lost, or the device was never enrolled, and no assignment says its name either.
    """
    folder = state_dir / "identity"
    try:
        return mend_identity(folder), make_bus
    except Misuse as err:
        identity = _stand_in(folder, RecordFile(state_dir).load())
        if identity is None:
            raise
        why = str(err)
    logger.error("event=identity_lost reason=%s action=serving_what_is_here", why)
    return identity, lambda _inbox, _identity, _will: _NoBroker(why)


class _NoBroker:
    """A `Bus` that leads nowhere, and says why."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def start(self) -> None:
        """Refuse: the loop goes on without a broker where it has something to serve.

        Raises:
            Misuse: always.
        """
        raise Misuse(self._reason)

    def publish(self, topic: str, payload: bytes, *, qos: Literal[0, 1] = 1, retain: bool = False) -> int:
        """Refuse, as every bus that is not connected.

        Raises:
            Retryable: always.
        """
        raise Retryable(f"{topic} is not sent: {self._reason}")

    def stop(self) -> None:
        """Do nothing."""


def _stand_in(folder: Path, record: AgentRecord) -> Identity | None:
    """Return an identity of the device's name and nothing else, or None when the record does not know the name."""
    if record.assignment is None:
        return None
    return Identity(
        fleet=record.assignment.fleet,
        device=record.assignment.device,
        broker_host="",
        broker_port=0,
        api_url="",
        key_path=folder / "lost",
        certificate_path=folder / "lost",
        ca_path=folder / "lost",
        root_path=folder / "lost",
        assignment_key="",
        assignment_key_id="",
    )
