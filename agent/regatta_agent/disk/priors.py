"""Results of full races by their key, on disk: what this board raced, or confirmed of another's, is not raced again.

A cache: bounded in count and bytes, the least recently kept goes first, and an entry that cannot be read is removed.
A result is only a hint to the next race with its key (regatta_runtimes.choice.claim), so losing one costs that
race's time.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from regatta_protocol.codec import decode, encode
from regatta_protocol.durable import read_bounded, write_durably
from regatta_protocol.errors import RegattaError, Rejected
from regatta_protocol.ids import DIGEST_PATTERN, Digest
from regatta_protocol.measurement import PriorRace

__all__ = ["MAX_PRIOR_BYTES", "Priors"]

logger = logging.getLogger(__name__)

MAX_PRIOR_BYTES = 1024 * 1024  # as of a race report: some 1 KB a candidate
_MAX_ENTRIES = 64  # four models with 16 versions each, as many as the record remembers of one
_MAX_BYTES = 4 * 1024 * 1024


class Priors:
    """The folder `priors/` of the state folder: `<key>.json`."""

    def __init__(self, state_dir: Path, max_entries: int = _MAX_ENTRIES, max_bytes: int = _MAX_BYTES) -> None:
        self._folder = state_dir / "priors"
        self._max_entries = max_entries
        self._max_bytes = max_bytes

    def find(self, key: Digest) -> PriorRace | None:
        """Return the result with this key, or None."""
        path = self._path(key)
        try:
            prior = decode(PriorRace, read_bounded(path, MAX_PRIOR_BYTES), MAX_PRIOR_BYTES)
            if prior.report.key != key:
                raise Rejected(f"it holds the key {prior.report.key}")
        except FileNotFoundError:
            return None
        except OSError as err:  # perhaps for want of descriptors: nothing says that the entry is bad
            logger.warning("event=prior_unreadable path=%s error=%s action=kept", path, err)
            return None
        except RegattaError as err:
            logger.warning("event=prior_unreadable path=%s error=%s action=removed", path, err)
            self._remove(path)
            return None
        return prior

    def keep(self, prior: PriorRace) -> None:
        """Keep a full race's result in place of an older one; a disk that is full costs the result, nothing else."""
        key = prior.report.key
        if key is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_durably(self._path(key), encode(prior, MAX_PRIOR_BYTES))
            self._make_room(self._path(key))
        except (RegattaError, OSError) as err:
            logger.error("event=prior_lost key=%s error=%s", key[:12], err)

    def _path(self, key: Digest) -> Path:
        return self._folder / f"{key}.json"

    def _make_room(self, newest: Path) -> None:
        """Remove the least recently kept while there are too many; also what a cut left half-written."""
        entries: list[tuple[float, int, Path]] = []
        for path in self._folder.iterdir():
            if path == newest:
                continue
            if re.fullmatch(DIGEST_PATTERN[1:-1], path.stem) is None:
                self._remove(path)
                continue
            facts = path.stat()
            entries.append((facts.st_mtime, facts.st_size, path))
        entries.sort()
        total = newest.stat().st_size + sum(size for _, size, _ in entries)
        while entries and (len(entries) >= self._max_entries or total > self._max_bytes):
            _, size, path = entries.pop(0)
            self._remove(path)
            total -= size

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as err:
            logger.error("event=prior_not_removed path=%s error=%s", path, err)
