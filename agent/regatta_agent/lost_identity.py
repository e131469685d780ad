"""Serving without an identity: what stands in for it and for the broker when the identity is damaged beyond mending.

What serves needs no fleet, and the record still says for which device the fleet signed its last assignment. Nothing is
fetched, reported or renewed until the device is enrolled again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from regatta_agent.core.installs import AgentRecord
from regatta_protocol.errors import Misuse, Retryable
from regatta_provisioning.identity import Identity

__all__ = ["NoBroker", "stand_in"]


class NoBroker:
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


def stand_in(folder: Path, record: AgentRecord) -> Identity | None:
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
