"""Making revocations count: the authority's list, written beside the broker, which is told to read it again.

A live connection goes on in spite of it (wire.md), so it is cut by `cut` (eviction.py); what a revoked device still
says is ignored by ingest.py from the moment its row says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from regatta_protocol.durable import write_durably
from regatta_protocol.errors import Retryable
from regatta_protocol.ids import DeviceId
from regatta_provisioning.authority import Authority, Holder

__all__ = ["RevokingAuthority"]

logger = logging.getLogger(__name__)


class RevokingAuthority:
    """The authority as enrolling.py needs it (`Issuer`). One caller at a time, but for `cut`."""

    def __init__(
        self, authority: Authority, crl_path: Path, reload: Callable[[], None], cut: Callable[[DeviceId], None]
    ) -> None:
        """
        Args:
            reload: has the broker read the list; may raise Retryable when there is no broker to tell.
            cut: ends a device's connection; may raise Retryable when the broker does not help.
        """
        self._cut = cut
        self._authority = authority
        self._crl_path = crl_path
        self._reload = reload

    def sign_device_csr(self, csr_pem: str, device: DeviceId, valid_days: int) -> str:
        """Return the certificate (PEM) of the device."""
        return self._authority.sign_device_csr(csr_pem, device, valid_days)

    def holder_of(self, certificate_pem: str, csr_pem: str) -> Holder:
        """Return whose certificate this is; see Authority."""
        return self._authority.holder_of(certificate_pem, csr_pem)

    def revoke(self, serial: int) -> None:
        """Put the certificate on the list and have the broker take it up."""
        self._authority.revoke(serial)
        self.write()
        try:
            self._reload()
        except Retryable as err:  # it reads the list when it starts again
            logger.warning("event=broker_not_reloaded reason=%s", err)

    def cut(self, device: DeviceId) -> None:
        """End the connection that a revoked device may still have."""
        try:
            self._cut(device)
        except Retryable as err:
            logger.warning("event=device_not_cut device=%s reason=%s", device, err)

    def write(self) -> None:
        """Write the list; it must be there before the broker starts."""
        write_durably(self._crl_path, self._authority.crl_pem().encode(), 0o644)
