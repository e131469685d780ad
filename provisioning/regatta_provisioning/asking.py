"""Requests of a device to the fleet's own HTTPS server: what enrolment, renewal and uploads have in common.

Only https, no redirects, every body bounded, one deadline over each request. Whom to believe is the caller's to say:
by the fleet's pinned authority (`believing`), or by a fingerprint afterwards, as in enrolment.
"""

from __future__ import annotations

import datetime as dt
import http.client
import socket
import ssl
import time
from urllib.parse import urlsplit

from regatta_protocol.codec import decode
from regatta_protocol.errors import RegattaError, Rejected, Retryable, TooLarge, Untrusted
from regatta_protocol.traffic import Amount, read_tcp_totals
from regatta_provisioning.enrollment import MAX_ENROLL_BYTES, Refusal

__all__ = ["Conversation", "believing", "call", "refusal"]

_ADVICE = "is the server up, and its port open from here?"
_READ_BYTES = 16_384


def believing(ca_pem: str) -> ssl.SSLContext:
    """Return a TLS context that believes this authority (PEM) and no other."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=ca_pem)
    return context


class Conversation:
    """Requests over one connection, which is kept open between them and opened again when the server closed it."""

    def __init__(self, url: str, context: ssl.SSLContext, timeout_s: float) -> None:
        """
        Args:
            url: of the server, https; a request's path goes behind it.
            timeout_s: of each request, from connecting to the last byte.
        """
        parts = urlsplit(url)
        self._url = url
        self._prefix = parts.path
        self._timeout_s = timeout_s
        self._connection = http.client.HTTPSConnection(
            parts.hostname or "", parts.port or 443, timeout=timeout_s, context=context
        )
        self._counted: tuple[socket.socket | None, Amount] = (None, Amount())

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_error: object) -> None:
        self._connection.close()

    def ask(
        self, method: str, path: str, body: bytes | None, content_type: str = "application/json"
    ) -> tuple[int, bytes]:
        """Return status and body of one request.

        Raises:
            Retryable: when there is no whole answer in time.
            Untrusted: when the server does not prove to be the fleet's.
            TooLarge: when the body is over the limit.
        """
        url, deadline = self._url, time.monotonic() + self._timeout_s
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = content_type
        try:
            self._connection.request(method, self._prefix + path, body=body, headers=headers)
            with self._connection.getresponse() as response:  # else the connection takes no further request
                return response.status, _read_bounded(response, deadline, url)
        except ssl.SSLCertVerificationError as err:
            raise Untrusted(
                f"{url} does not prove to be the fleet's server: {err.verify_message}. This device's clock says "
                f"{dt.datetime.now(dt.timezone.utc):%Y-%m-%d %H:%M} UTC: set it if that is wrong; or the server's "
                "certificate does not name this address"
            ) from err
        except (OSError, http.client.HTTPException) as err:
            portal = isinstance(err, ssl.SSLError) and err.reason == "WRONG_VERSION_NUMBER"
            advice = (
                "perhaps a captive portal answered in its place, or a proxy: open the network" if portal else _ADVICE
            )
            raise Retryable(f"no answer from {url} ({type(err).__name__}: {err}): {advice}") from err

    def spent(self) -> Amount:
        """Return the bytes on the wire since the last call, headers included; nothing where the kernel counts none."""
        connection = self._connection.sock
        totals = read_tcp_totals(connection) if connection is not None else None
        if totals is None:
            return Amount()
        before = self._counted[1] if self._counted[0] is connection else Amount()
        self._counted = (connection, totals)
        return Amount(totals.sent - before.sent, totals.received - before.received)


def call(
    url: str, method: str, path: str, body: bytes | None, context: ssl.SSLContext, timeout_s: float
) -> tuple[int, bytes]:
    """Return status and body of a single request; errors as of `Conversation.ask`."""
    with Conversation(url, context, timeout_s) as conversation:
        return conversation.ask(method, path, body)


def refusal(url: str, status: int, body: bytes, what: str) -> RegattaError:
    """Return the error of an answer that is none of success, with the server's own words.

    Args:
        what: what was asked for, as a verb: `enrol`.
    """
    try:
        refused = decode(Refusal, body, MAX_ENROLL_BYTES)
        said = refused.error + (f" ({refused.hint})" if refused.hint else "")
    except Rejected:
        said = "it gave no reason"
    if status == 429 or status >= 500:
        return Retryable(f"{url} cannot {what} now (status {status}): {said}; try again")
    return Rejected(f"{url} refused to {what} this device (status {status}): {said}")


def _read_bounded(response: http.client.HTTPResponse, deadline: float, url: str) -> bytes:
    body = b""
    while piece := response.read1(_READ_BYTES):
        body += piece
        if len(body) > MAX_ENROLL_BYTES:
            raise TooLarge(f"{url} answered with more than {MAX_ENROLL_BYTES} bytes: it is no Regatta server")
        if time.monotonic() > deadline:
            raise Retryable(f"{url} answers too slowly ({len(body)} bytes until now): try again")
    if response.length:
        raise Retryable(f"the answer of {url} was cut off, {response.length} bytes are missing: try again")
    return body
