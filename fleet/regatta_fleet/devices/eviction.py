"""Cutting the connection of a device that was revoked: a broker goes on with one that it let in before.

The broker takes the certificate's common name for the client id and lets nobody in twice under one id. So the server
connects in the device's name, with a certificate that its authority gives it for that and whose key it forgets at once;
the broker ends the older connection, and the revocation list keeps the device from coming back. The broker reads that
list a moment after it was told to, so the place is held until it has: a device that came back meanwhile is put out.
"""

from __future__ import annotations

import logging
import queue
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from regatta_protocol.bus import Connected, Disconnected, Event
from regatta_protocol.errors import Retryable
from regatta_protocol.ids import DeviceId
from regatta_protocol.mqtt import MqttBus, MqttConfig
from regatta_provisioning.authority import Authority
from regatta_provisioning.keys import make_csr, write_private_key

__all__ = ["Evictor"]

logger = logging.getLogger(__name__)

_TIMEOUT_S = 10.0
_HOLD_S = 1.0  # undisturbed; Mosquitto looks for its SIGHUP ten times a second
_VALID_DAYS = 1


class Evictor:
    """Cuts connections. Safe to use from several threads."""

    def __init__(self, authority: Authority, link: MqttConfig, folder: Path) -> None:
        """
        Args:
            link: how the server itself connects to the broker.
            folder: of the fleet's keys; holds the short-lived key for the moment that it is used.
        """
        self._authority = authority
        self._link = link
        self._folder = folder

    def cut(self, device: DeviceId) -> None:
        """End the device's connection, if it has one.

        Raises:
            Retryable: when the broker does not let us in.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._authority.sign_device_csr(make_csr(key, device), device, _VALID_DAYS)
        with tempfile.TemporaryDirectory(dir=self._folder, prefix="evicting-") as folder:
            key_path, certificate_path = Path(folder) / "key.pem", Path(folder) / "certificate.pem"
            write_private_key(key_path, key)
            certificate_path.write_text(certificate)
            self._take_over(
                replace(
                    self._link, client_id=device, clean_session=True, cert_path=certificate_path, key_path=key_path,
                    filters=(), will=None,
                )
            )  # fmt: skip
        logger.info("event=device_cut device=%s", device)

    def _take_over(self, config: MqttConfig) -> None:
        inbox: queue.Queue[Event] = queue.Queue(16)
        bus = MqttBus(config, inbox)
        deadline_s = time.monotonic() + _TIMEOUT_S
        held = False
        bus.start()
        try:
            while (left_s := deadline_s - time.monotonic()) > 0:
                try:
                    event = inbox.get(timeout=min(left_s, _HOLD_S) if held else left_s)
                except queue.Empty:
                    break
                held = isinstance(event, Connected) or (held and not isinstance(event, Disconnected))
        finally:
            bus.stop()
        if held:
            return
        raise Retryable(
            f"the broker at {config.host}:{config.port} let nobody in as {config.client_id} within {_TIMEOUT_S:g} s: "
            "the device may stay connected until it reconnects; what it says is ignored"
        )
