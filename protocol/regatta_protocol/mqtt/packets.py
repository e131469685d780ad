"""What MQTT packets weigh on the wire, about: what each counts beside others of the same moment (traffic.py)."""

from __future__ import annotations

__all__ = ["ACK_BYTES", "MAX_PACKET_BYTES", "PACKET_BYTES", "PING_BYTES", "publish_bytes"]

MAX_PACKET_BYTES = 256 * 1024  # what the broker is set to carry (wire.md); a longer packet ends the connection
# A PUBLISH beside its topic and payload, a PUBACK and a PINGREQ, each in a TLS 1.3 record of its own (22 bytes more).
PACKET_BYTES, ACK_BYTES, PING_BYTES = 30, 26, 24


def publish_bytes(topic: str, payload: bytes) -> int:
    """Return about how long a PUBLISH is."""
    return len(topic) + len(payload) + PACKET_BYTES
