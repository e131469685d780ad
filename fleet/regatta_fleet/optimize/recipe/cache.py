"""Finished steps by the digest of all that they depend on, in a folder of bounded size.

    FOLDER/KEY/result.json + files   one step; whole or not there

Invariants: an entry appears by one rename, synced before; what `find` returns has the digests that it was stored with;
the folder holds at most `limit_bytes`, and the entries used longest ago go first. Several runs may share a folder: who
stores second finds the first one's entry. What a caller gets is a copy, so that nothing is taken from under it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import Field

from regatta_protocol.codec import MAX_INFLATED_BYTES, decode, encode
from regatta_protocol.durable import read_bounded, rename_durably, sync_folder, write_durably
from regatta_protocol.errors import RegattaError
from regatta_protocol.ids import Digest, DigestField, digest_of_file
from regatta_protocol.wire import Wire

__all__ = ["DEFAULT_LIMIT_BYTES", "StepCache", "default_folder"]

DEFAULT_LIMIT_BYTES = 2 * 1024**3
_ABANDONED_S = 86_400.0  # a folder of a run that was killed; no step takes a day
_RESULT = "result.json"
W = TypeVar("W", bound=Wire)


class _Entry(Wire):
    files: dict[str, DigestField] = Field(default_factory=dict)
    result: str  # JSON


def default_folder() -> Path:
    """Return the user's cache folder for finished steps."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "regatta" / "optimize"


class StepCache:
    """Finished steps in a folder."""

    def __init__(self, folder: Path, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes

    def fetch(self, key: Digest, kind: type[W], into: Path) -> W | None:
        """Copy the step's files to the folder `into` and return its result; None when it is not here, or damaged."""
        entry_folder = self._folder / key
        try:
            entry = decode(_Entry, read_bounded(entry_folder / _RESULT, MAX_INFLATED_BYTES), MAX_INFLATED_BYTES)
            result = decode(kind, entry.result.encode(), MAX_INFLATED_BYTES)
            into.mkdir(parents=True, exist_ok=True)
            for name, digest in entry.files.items():
                shutil.copyfile(entry_folder / name, into / name)
                if digest_of_file(into / name) != digest:
                    raise OSError(f"{name} is damaged")
            os.utime(entry_folder)
        except (OSError, RegattaError):
            shutil.rmtree(entry_folder, ignore_errors=True)
            shutil.rmtree(into, ignore_errors=True)
            return None
        return result

    def store(self, key: Digest, make: Callable[[Path], W], into: Path) -> W:
        """Have the step made in the folder `into`, store its files and result, and return the result."""
        into.mkdir(parents=True, exist_ok=True)
        result = make(into)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        building = Path(tempfile.mkdtemp(prefix=".building-", dir=self._folder))
        try:
            files = {}
            for path in sorted(into.iterdir()):
                write_durably(building / path.name, path.read_bytes(), mode=0o644)
                files[path.name] = digest_of_file(path)
            entry = _Entry(files=files, result=encode(result, MAX_INFLATED_BYTES).decode())
            write_durably(building / _RESULT, encode(entry, MAX_INFLATED_BYTES), mode=0o644)
            sync_folder(building)
            try:
                rename_durably(building, self._folder / key)
            except OSError:
                if not (self._folder / key).is_dir():  # else another run stored the same step first
                    raise
        finally:
            shutil.rmtree(building, ignore_errors=True)
        self._bound(keep=key)
        return result

    def _sweep(self) -> None:
        """Remove what runs that were killed left half built."""
        for path in self._folder.glob(".building-*"):
            if time.time() - path.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(path, ignore_errors=True)

    def _bound(self, keep: Digest) -> None:
        entries = []
        for path in self._folder.glob("[!.]*/"):
            with contextlib.suppress(FileNotFoundError):  # another run removed it
                size = sum(file.stat().st_size for file in path.iterdir())
                entries.append((path.stat().st_mtime_ns, path, size))
        total = sum(size for _, _, size in entries)
        for _, path, size in sorted(entries):
            if total <= self._limit_bytes:
                break
            if path.name != keep:
                shutil.rmtree(path, ignore_errors=True)
                total -= size
