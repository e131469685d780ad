"""Fetching blobs by chunks over MQTT, as jobs: the manifest of a version, and the files that it names.

partial.py keeps what came, core.transfer says which chunks to ask for and when; this module carries between them, the
bus and the store. QoS 0 chunks may get lost, come twice or damaged: what is missing is asked for again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress

from regatta_agent.core.transfer import Transfer
from regatta_agent.disk.partial import PartialFile
from regatta_agent.disk.store import Store
from regatta_agent.errors import Unanswered
from regatta_agent.events import Event
from regatta_agent.work.jobs import Failed, FilesFetched, ManifestFetched, Outcome, response_in
from regatta_protocol import topics
from regatta_protocol.bus import Bus, Message
from regatta_protocol.chunk import DEFAULT_CHUNK_BYTES, unpack_chunk
from regatta_protocol.codec import encode
from regatta_protocol.durable import read_bounded, shortage_of
from regatta_protocol.errors import RegattaError, Rejected, Retryable
from regatta_protocol.ids import DeviceId, Digest, ModelRef
from regatta_protocol.manifest import MAX_MANIFEST_BYTES, FileRef

__all__ = ["FetchFiles", "FetchManifest"]

logger = logging.getLogger(__name__)


class _Blob:
    """One blob on its way."""

    def __init__(self, file: FileRef, transfer: int, bus: Bus, device: DeviceId, store: Store) -> None:
        self._file = file
        self._transfer = transfer
        self._bus = bus
        self._device = device
        self._partial = PartialFile(store.partial, store.blobs, file, DEFAULT_CHUNK_BYTES, store.digests, store.boot)
        self._state: Transfer | None = None

    def begin(self, now_s: float) -> None:
        """Open what is kept and ask for the rest."""
        self._partial.open()
        self._state = Transfer(
            self._transfer, self._file.digest, self._file.size_bytes, DEFAULT_CHUNK_BYTES, self._partial.bitmap()
        )
        if any(self._partial.have):
            self._state.await_late(now_s)
        self._go_on(now_s)

    def handle(self, event: Event, now_s: float) -> None:
        """Take a chunk.

        Raises:
            StorageFull, Retryable, Rejected: when it cannot go on.
        """
        answer = response_in(event, self._device, f"get-{self._transfer}")
        if answer is not None:
            kind = Retryable if answer.retryable else Rejected
            raise kind(f"the fleet does not send file {self._file.digest[:12]}: {answer.error or 'no reason given'}")
        if not isinstance(event, Message) or event.topic != topics.chunk(self._device, self._transfer):
            return
        try:
            chunk = unpack_chunk(event.payload)
        except Rejected as err:
            logger.debug("event=chunk_refused error=%s", err)
            return
        if self._pacing.on_chunk(now_s, chunk) is not None:
            self._partial.write(chunk.index, chunk.payload)
        self._go_on(now_s)

    def tick(self, now_s: float) -> bool:
        """Ask again for what did not come; when all is here, verify it; return whether it is among the blobs.

        Raises:
            Unanswered: when asking again brought nothing too often; what came is kept.
            WrongBlob: when it is complete and wrong.
        """
        if self._pacing.complete:
            return self._partial.finish()
        self._go_on(now_s)
        return False

    def close(self) -> None:
        """Keep what came and close."""
        try:
            self._partial.sync()
        except (RegattaError, OSError) as err:
            logger.debug("event=partial_not_synced error=%s", err)
        self._partial.close()

    @property
    def _pacing(self) -> Transfer:
        if self._state is None:
            raise Retryable("the download has not begun")
        return self._state

    def _go_on(self, now_s: float) -> None:
        if self._pacing.complete:
            return  # verified in the ticks, of which a turn has one
        get = self._pacing.next_get(now_s)
        if get is not None:
            # When the connection is gone already, we are about to hear of it; what has come before is not given up.
            with suppress(Retryable):
                self._bus.publish(topics.up(self._device, topics.Up.GET), encode(get), qos=0)
        elif self._pacing.stalled:
            raise Unanswered(f"the fleet sends nothing of file {self._file.digest[:12]}, however often it is asked")


class _Fetch:
    """Several blobs, one after the other. The shared part of both jobs."""

    def __init__(self, bus: Bus, device: DeviceId, store: Store, transfer_of: Callable[[Digest], int]) -> None:
        self._bus = bus
        self._device = device
        self._store = store
        self._transfer_of = transfer_of
        self._current: _Blob | None = None

    def begin(self, now_s: float) -> Outcome | None:
        return self._guarded(lambda: self._next(now_s))

    def handle(self, event: Event, now_s: float) -> Outcome | None:
        current = self._current
        if current is None or not isinstance(event, Message):
            return None

        def take() -> None:
            current.handle(event, now_s)

        return self._guarded(take)

    def tick(self, now_s: float) -> Outcome | None:
        current = self._current
        if current is None:
            return None
        return self._guarded(lambda: self._next(now_s) if current.tick(now_s) else None)

    def cancel(self) -> None:
        if self._current is not None:
            self._current.close()
            self._current = None

    def wanted(self) -> list[FileRef]:
        """Return what is still to be fetched."""
        raise NotImplementedError

    def conclude(self) -> Outcome:
        """Return the outcome when nothing is left to fetch."""
        raise NotImplementedError

    def _next(self, now_s: float) -> Outcome | None:
        wanted = self.wanted()
        if not wanted:
            self._current = None
            return self.conclude()
        number = self._transfer_of(Digest(wanted[0].digest))
        self._store.make_folders()
        self._current = _Blob(wanted[0], number, self._bus, self._device, self._store)
        self._current.begin(now_s)
        return None

    def _guarded(self, action: Callable[[], Outcome | None]) -> Outcome | None:
        """Run `action`; turn its errors into an outcome, keeping what came."""
        try:
            return action()
        except RegattaError as err:
            self.cancel()
            return Failed(err)
        except OSError as err:
            self.cancel()
            return Failed(shortage_of(err, "the download") or Retryable(f"the download cannot be stored: {err}"))


class FetchManifest(_Fetch):
    """Fetch, verify and store the manifest of one version."""

    def __init__(
        self,
        ref: ModelRef,
        file: FileRef,
        bus: Bus,
        device: DeviceId,
        store: Store,
        transfer_of: Callable[[Digest], int],
    ) -> None:
        super().__init__(bus, device, store, transfer_of)
        self._ref = ref
        self._file = file

    def wanted(self) -> list[FileRef]:
        return [] if self._store.has(self._file) else [self._file]

    def conclude(self) -> Outcome:
        path = self._store.blob_path(self._file.digest)
        data = read_bounded(path, MAX_MANIFEST_BYTES)
        try:
            self._store.put_manifest(self._ref, data, Digest(self._file.digest))
        finally:
            path.unlink(missing_ok=True)  # it lies under models/ now, or is of no use
        return ManifestFetched()


class FetchFiles(_Fetch):
    """Fetch and verify every file of one version that is not here."""

    def __init__(
        self, ref: ModelRef, bus: Bus, device: DeviceId, store: Store, transfer_of: Callable[[Digest], int]
    ) -> None:
        super().__init__(bus, device, store, transfer_of)
        self._ref = ref

    def wanted(self) -> list[FileRef]:
        manifest = self._store.manifest(self._ref)
        if manifest is None:
            raise Retryable(f"the manifest of {self._ref} is gone from the disk")
        return self._store.missing(manifest)

    def conclude(self) -> Outcome:
        return FilesFetched()
