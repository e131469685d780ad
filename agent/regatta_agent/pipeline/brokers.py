"""A connection to the broker of a pipeline's source or sink."""

from __future__ import annotations

from pathlib import Path

from regatta_agent.pipeline.settings import BrokerSettings
from regatta_protocol.bus import Inbox
from regatta_protocol.durable import read_bounded
from regatta_protocol.errors import Misuse
from regatta_protocol.mqtt import MqttBus, MqttConfig

__all__ = ["bus_of", "read_secret"]

_MAX_SECRET_BYTES = 4096


def bus_of(settings: BrokerSettings, name: str, inbox: Inbox, filters: tuple[str, ...]) -> MqttBus:
    """Return a bus that is not started yet.

    Raises:
        Misuse: when the password's file cannot be read.
    """
    return MqttBus(
        MqttConfig(
            host=settings.host,
            port=settings.port,
            client_id=settings.client_id or f"regatta-{name}"[:64],
            ca_path=settings.ca,
            cert_path=settings.certificate,
            key_path=settings.key,
            filters=filters,
            user_name=settings.user_name,
            password=None if settings.password_file is None else read_secret(settings.password_file),
            clean_session=True,  # what came while the pipeline was down is old news
            reconnect_cap_s=30.0,
        ),
        inbox,
    )


def read_secret(path: Path) -> str:
    """Return the first line of a file.

    Raises:
        Misuse: when it cannot be read or has none.
    """
    try:
        lines = read_bounded(path, _MAX_SECRET_BYTES).decode().splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise Misuse(f"the secret in {path} cannot be read: {err}") from err
    if not lines or not lines[0].strip():
        raise Misuse(f"{path} has no secret in its first line")
    return lines[0].strip()
