"""To whom a bus connects, as whom, and within which limits; and TLS as that asks for it.

A broker of somebody else's, where a smart plug tells its power, may be reached with a password, and without TLS where
it offers none; the fleet's own broker always with certificates (the paths of an identity are never None).
"""

from __future__ import annotations

import datetime
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from regatta_protocol.bus import Will

__all__ = ["MqttConfig", "advice", "tls_context"]

_NOT_VALID_NOW = (9, 10)  # OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED


@dataclass(frozen=True)
class MqttConfig:
    """To whom, as whom, and within which limits."""

    host: str  # a name or address in the broker's certificate
    port: int
    client_id: str  # equal to the certificate's common name: the broker takes it from there
    ca_path: Path | None  # who signs the broker's certificate; None: no TLS
    cert_path: Path | None  # ours; None where a password, or nothing, says who we are
    key_path: Path | None
    filters: tuple[str, ...]
    will: Will | None = None
    user_name: str | None = None
    password: str | None = field(default=None, repr=False)
    keepalive_s: int = 60
    clean_session: bool = False  # False: the broker keeps commands for us while we are away
    connect_timeout_s: float = 10.0
    reconnect_base_s: float = 1.0
    reconnect_cap_s: float = 120.0  # a handshake costs the broker 1.2-1.6 ms of CPU (wire.md)
    max_inflight: int = 20  # QoS 1 messages without acknowledgement; the broker's own window (wire.md)
    max_outgoing: int = 1000
    max_outgoing_bytes: int = 16 * 1024 * 1024
    inbox_wait_s: float = 5.0
    stop_timeout_s: float = 3.0


def tls_context(config: MqttConfig) -> ssl.SSLContext | None:
    """Return the context of mutual TLS: the CA given alone, host names checked, TLS 1.2 at least; None without a CA.

    Raises:
        OSError: when a file is missing or is no certificate or key (ssl.SSLError is an OSError).
    """
    if config.ca_path is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(config.ca_path)
    if config.cert_path is not None:
        context.load_cert_chain(config.cert_path, config.key_path)
    return context


def advice(err: Exception) -> str:
    """Return what a fault of TLS most likely comes from: a clock that is not set, or somebody else who answers."""
    if isinstance(err, ssl.SSLCertVerificationError):
        now = datetime.datetime.now(datetime.timezone.utc)
        # The day alone: a reason that is another one each minute would be told in the log each minute.
        when = f"; this machine's clock says {now:%Y-%m-%d}: set it if that is wrong"
        return when if err.verify_code in _NOT_VALID_NOW else ""
    if isinstance(err, ssl.SSLError) and err.reason == "WRONG_VERSION_NUMBER":
        return "; what answers there does not speak TLS: perhaps a captive portal of the network that wants a login"
    return ""
