"""Taking outputs in from devices: who offers one, whether it was asked for, and its pieces in order.

A ticket is a secret of 192 bits for one output of one device; tickets are forgotten with the process, when they are
not used for a while, or when the device offers anew. Once a megabyte what has come is synced and then counted in the
database: for each piece it would cost two syncs, and the controller its turn at the database. So a kill of this process
costs a megabyte, and a broken connection nothing. What the operator withdrew is taken no further (uploading.py has the
wire).
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from regatta_fleet.batches import pulling
from regatta_fleet.batches.results import ResultsStore
from regatta_fleet.database.engine import Database
from regatta_fleet.errors import Busy, Conflict, Expired
from regatta_protocol.errors import BadDigest, TooLarge
from regatta_protocol.ids import DeviceId, Digest
from regatta_provisioning.uploading import ResultsOffer, ResultsTicket

__all__ = ["Receiver"]

logger = logging.getLogger(__name__)

_AT_ONCE = 64  # uploads; a quarter of the connections that the device API takes
_IDLE_S = 180.0  # three times the time that a device waits for an answer
COUNTED_EVERY_BYTES = 1024 * 1024


@dataclass
class _Upload:
    batch: str
    device: DeviceId
    size_bytes: int
    digest: Digest
    offset: int
    counted: int  # of these, in the database
    used_s: float
    is_over: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


class Receiver:
    """Safe to use from several threads."""

    def __init__(
        self,
        database: Database,
        store: ResultsStore,
        holder: Callable[[str, str], DeviceId],
        on_change: Callable[[DeviceId], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            database: of the fleet.
            store: where outputs go.
            holder: says whose certificate it is, when the CSR is of its key; raises Rejected or Forbidden.
            on_change: hears of each device whose assignment changed, after it is stored.
            monotonic: seconds.
        """
        self._database = database
        self._store = store
        self._holder = holder
        self._on_change = on_change
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._counting = threading.Lock()
        self._uploads: dict[str, _Upload] = {}  # by ticket

    def offer(self, request: ResultsOffer, now: float) -> ResultsTicket:
        """Return a ticket, and how much is here already.

        Raises:
            Rejected, Forbidden: when the device does not prove who it is, or was revoked.
            NotFound: when nobody asked for this output.
            TooLarge: when it is longer than was asked for.
            Busy: when too many uploads are under way.
            StorageFull: when there is no room for it.
        """
        device = self._holder(request.certificate_pem, request.csr_pem)
        with self._lock:
            former = self._make_room(request.batch, device)
            promised = sum(one.size_bytes - one.offset for one in self._uploads.values())
        if former is not None:
            with former.lock:  # when a piece of it is being stored, that ends first
                former.is_over = True
                self._count(former, now)
        with self._database.write() as tx:
            pulled = pulling.note_offered(tx, request.batch, device, request.size_bytes, request.digest, now)
        upload = _Upload(request.batch, device, request.size_bytes, request.digest, 0, 0, self._monotonic())
        if self._store.holds(upload.batch, device, upload.size_bytes, upload.digest):
            upload.offset = upload.size_bytes
            self._conclude(upload, now)
        else:
            begun = self._store.begin(upload.batch, device, upload.size_bytes, pulled.received_bytes, promised)
            upload.offset = upload.counted = begun
            if upload.offset == upload.size_bytes:
                self._finish(upload, now)
        ticket = secrets.token_urlsafe(24)
        if upload.offset < upload.size_bytes:
            with self._lock:
                self._uploads[ticket] = upload
        return ResultsTicket(ticket=ticket, offset=upload.offset)

    def take(self, ticket: str, offset: int, piece: bytes, now: float) -> ResultsTicket:
        """Store a piece; return how much is here.

        Raises:
            Expired: when the ticket is not known (any more): the device offers again.
            Conflict: when the piece does not follow on what is here.
            NotFound: when the operator has withdrawn it.
            BadDigest: when it is complete and wrong.
            StorageFull: when the disk is full.
        """
        with self._lock:
            upload = self._uploads.get(ticket)
        if upload is None:
            raise Expired("this upload is not known to this server: offer the file again")
        with upload.lock:
            upload.used_s = self._monotonic()
            if upload.is_over:
                raise Expired("this file was offered again: that upload goes on")
            if offset != upload.offset or not piece:
                raise Conflict(f"the upload is at byte {upload.offset}, not at {offset}: offer the file again")
            if offset + len(piece) > upload.size_bytes:
                raise TooLarge(f"the piece goes over the {upload.size_bytes} bytes that were offered")
            upload.offset = self._store.append(upload.batch, upload.device, offset, piece)
            whole = upload.offset == upload.size_bytes
            if whole or upload.offset - upload.counted >= COUNTED_EVERY_BYTES:
                self._count(upload, now)
            if whole:
                with self._lock:
                    self._uploads.pop(ticket, None)
                self._finish(upload, now)
            return ResultsTicket(ticket=ticket, offset=upload.offset)

    def _make_room(self, batch: str, device: DeviceId) -> _Upload | None:
        """Forget tickets that are idle; take out and return the one of this output, if there is one."""
        idle_s = self._monotonic() - _IDLE_S
        self._uploads = {ticket: one for ticket, one in self._uploads.items() if one.used_s > idle_s}
        mine = next(
            (ticket for ticket, one in self._uploads.items() if (one.batch, one.device) == (batch, device)), None
        )
        if mine is None and len(self._uploads) >= _AT_ONCE:
            raise Busy(f"{_AT_ONCE} uploads are under way: try again later")
        return None if mine is None else self._uploads.pop(mine)

    def _count(self, upload: _Upload, now: float) -> None:
        """Sync what has come, and let the database count it; one at a time, so that the controller gets its turn."""
        if upload.offset > upload.counted:
            self._store.sync(upload.batch, upload.device)
            with self._counting, self._database.write() as tx:
                pulling.note_received(tx, upload.batch, upload.device, upload.offset, now)
            upload.counted = upload.offset

    def _finish(self, upload: _Upload, now: float) -> None:
        try:
            self._store.finish(upload.batch, upload.device, upload.digest)
        except BadDigest:
            with self._database.write() as tx:
                pulling.note_received(tx, upload.batch, upload.device, 0, now)
            raise
        self._conclude(upload, now)

    def _conclude(self, upload: _Upload, now: float) -> None:
        with self._database.write() as tx:
            pulling.note_whole(tx, upload.batch, upload.device, now)
        logger.info("event=results_here batch=%s device=%s bytes=%d", upload.batch, upload.device, upload.size_bytes)
        self._on_change(upload.device)
