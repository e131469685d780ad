"""The files of a version whose worker could not start, read again as a job: cards forget bits.

A damaged file is deleted, so that it is fetched again. What the worker's death means comes after that, and is decided
elsewhere: until then the worker is not started anew.
"""

from __future__ import annotations

import logging

from regatta_agent.disk.store import Store
from regatta_agent.events import Event
from regatta_agent.work.jobs import FilesChecked, Outcome
from regatta_agent.workers import WorkerDeath
from regatta_protocol.durable import remove_durably
from regatta_protocol.errors import Exhausted
from regatta_protocol.manifest import FileRef

__all__ = ["CheckFiles"]

logger = logging.getLogger(__name__)


class CheckFiles:
    """Find and delete the files of one version whose content is not what it was when they came."""

    def __init__(self, death: WorkerDeath, store: Store) -> None:
        self._death = death
        self._ref = death.ref
        self._store = store
        self._left: list[FileRef] = []

    def begin(self, now_s: float) -> Outcome | None:
        """Look up which files there are; a manifest that cannot be read leaves nothing to compare with."""
        try:
            manifest = self._store.manifest(self._ref)
        except Exhausted:
            manifest = None
        self._left = list(manifest.files()) if manifest is not None else []
        return None

    def handle(self, event: Event, now_s: float) -> Outcome | None:
        return None

    def tick(self, now_s: float) -> Outcome | None:
        """Read as much as a turn may; a file that cannot be read is the worker's to tell of."""
        while self._left:
            try:
                if not self._check(self._left[0]):
                    return None
            except OSError as err:
                logger.warning("event=file_unchecked version=%s error=%s", self._ref, err)
            self._left.pop(0)
        return FilesChecked(self._death)

    def cancel(self) -> None:
        self._left.clear()

    def _check(self, file: FileRef) -> bool:
        """Return whether the file has been read to its end."""
        path = self._store.blob_path(file.digest)
        if not path.exists():
            return True
        digest = self._store.digests.of(path)
        if digest is not None and digest != file.digest:
            logger.error("event=file_damaged version=%s path=%s action=fetched_again", self._ref, path)
            remove_durably(path)
        return digest is not None
