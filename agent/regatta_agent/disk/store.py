"""The model files on disk: blobs by digest, manifests by version, race reports; and what may be deleted.

    blobs/<sha256>                          complete, verified files; never written in place
    partial/<sha256>, partial/<sha256>.bits downloads under way
    models/<name>/<version>/manifest.json   as received, digest verified
    races/<name>-<version>.json             the last race of a version

A file appears under `blobs/` only by a rename, after its digest was verified and its content synced.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from regatta_agent.core.facts import StoredVersion
from regatta_agent.disk.digests import Digests
from regatta_protocol.codec import decode, encode
from regatta_protocol.durable import (
    make_folder_durably,
    read_bounded,
    read_patiently,
    shortage_of,
    write_durably,
)
from regatta_protocol.errors import BadDigest, RegattaError, Rejected
from regatta_protocol.ids import Digest, ModelRef, digest_of_bytes, parse_model_ref
from regatta_protocol.manifest import MAX_MANIFEST_BYTES, FileRef, Manifest
from regatta_protocol.measurement import RaceReport

__all__ = ["MAX_COLLECTED", "MAX_RACE_BYTES", "Collected", "Store"]

logger = logging.getLogger(__name__)

MAX_RACE_BYTES = 1024 * 1024
MAX_COLLECTED = 16  # files at once: deleting one of a gigabyte takes an SD card up to a second


class Collected(NamedTuple):
    """What a collection came to."""

    freed_bytes: int
    whole: bool  # False: there is more to delete


class Store:
    """The files of one agent."""

    def __init__(self, state_dir: Path, boot: bytes | None = None) -> None:
        """
        Args:
            state_dir: the agent's.
            boot: which run of the kernel this is (partial.kernel_boot); None: unknown.
        """
        self._state_dir = state_dir
        self.boot = boot
        self.blobs = state_dir / "blobs"
        self.partial = state_dir / "partial"
        self._models = state_dir / "models"
        self._races = state_dir / "races"
        self.digests = Digests()
        self._folders = (self.blobs, self.partial, self._models, self._races)

    def make_folders(self) -> None:
        """Make the folders that are not there.

        Raises:
            OSError: when one cannot be made.
        """
        for folder in self._folders:
            make_folder_durably(folder, mode=0o700)

    def prepare(self) -> None:
        """Make the folders and clear what a cut left half-written.

        Folders that the disk has no room for are made by the first download: the agent starts, and tells of the disk.

        Raises:
            OSError: when a folder is not there and cannot be made for another reason.
        """
        try:
            self.make_folders()
        except OSError as err:
            if shortage_of(err, "the folders of models") is None:
                raise
            logger.warning("event=folders_not_made error=%s", err)
        leftovers = list(self._state_dir.rglob(".*.tmp"))  # each bears the id of the process that wrote it
        # Cut after a download had moved to its place: its bits, or its old name that came back with a power cut.
        leftovers += [path for path in _entries(self.partial) if self._is_done_with(path.name.removesuffix(".bits"))]
        try:
            for leftover in leftovers:
                leftover.unlink(missing_ok=True)
        except OSError as err:
            logger.warning("event=leftovers_kept error=%s", err)

    def blob_path(self, digest: Digest) -> Path:
        return self.blobs / digest

    def manifest_path(self, ref: ModelRef) -> Path:
        return self._models / ref.name / str(ref.version) / "manifest.json"

    def manifest(self, ref: ModelRef) -> Manifest | None:
        """Return the stored manifest, or None when there is none that can be read.

        Raises:
            Exhausted: when it cannot be opened for want of descriptors or memory: that says nothing about the file.
        """
        data = self._manifest_bytes(ref)
        try:
            return decode(Manifest, data, MAX_MANIFEST_BYTES) if data is not None else None
        except RegattaError as err:
            logger.error("event=manifest_unreadable version=%s error=%s", ref, err)
            return None

    def put_manifest(self, ref: ModelRef, data: bytes, digest: Digest) -> Manifest:
        """Store a manifest as received, after checking that it is the promised one.

        Raises:
            BadDigest: when the bytes are not those with `digest`.
            Rejected: when it is no manifest of `ref`.
            StorageFull: when there is no space for it.
        """
        if digest_of_bytes(data) != digest:
            raise BadDigest(f"the manifest of {ref} has digest {digest_of_bytes(data)} instead of {digest}")
        manifest = decode(Manifest, data, MAX_MANIFEST_BYTES)
        if manifest.ref != ref:
            raise Rejected(f"the manifest signed for {ref} is of {manifest.ref}: push the version again")
        path = self.manifest_path(ref)
        make_folder_durably(path.parent, mode=0o700)
        write_durably(path, data)
        return manifest

    def look(self, ref: ModelRef) -> StoredVersion | None:
        """Return what is here of a version; None without its manifest.

        Raises:
            Exhausted: as `manifest`.
        """
        manifest, data = self.manifest(ref), self._manifest_bytes(ref)
        if manifest is None or data is None:
            return None
        missing = self.missing(manifest)
        return StoredVersion(
            size_bytes=sum(file.size_bytes for file in manifest.files()),
            manifest_digest=digest_of_bytes(data),
            missing=len(missing),
            missing_bytes=sum(max(0, file.size_bytes - self._kept_bytes(file.digest)) for file in missing),
        )

    def missing(self, manifest: Manifest) -> list[FileRef]:
        """Return the files of the bundle that are not here whole."""
        return [file for file in manifest.files() if not self.has(file)]

    def has(self, file: FileRef) -> bool:
        """Return whether the blob is here with its length; its digest was verified before it came here."""
        try:
            return self.blob_path(file.digest).stat().st_size == file.size_bytes
        except OSError:
            return False

    def free_bytes(self) -> int:
        """Return the space that this process may still use."""
        try:
            facts = os.statvfs(self.blobs)
        except FileNotFoundError:  # the disk had no room for it
            facts = os.statvfs(self._state_dir)
        return facts.f_bavail * facts.f_frsize

    def save_race(self, ref: ModelRef, report: RaceReport) -> None:
        """Keep the report for `regatta-agent why`.

        Raises:
            StorageFull: when there is no space for it.
        """
        write_durably(self.race_path(ref), encode(report, MAX_RACE_BYTES))

    def race(self, ref: ModelRef) -> RaceReport | None:
        """Return the last race of the version, or None."""
        try:
            return decode(RaceReport, read_bounded(self.race_path(ref), MAX_RACE_BYTES), MAX_RACE_BYTES)
        except FileNotFoundError:
            return None
        except (RegattaError, OSError) as err:
            logger.error("event=race_unreadable version=%s error=%s", ref, err)
            return None

    def collect(self, keep: Iterable[ModelRef], keep_digests: Iterable[Digest] = ()) -> Collected:
        """Delete versions not in `keep` and blobs that no kept version needs, at most MAX_COLLECTED of each at once.

        Args:
            keep: versions whose manifest and files stay.
            keep_digests: more blobs and unfinished downloads that stay, such as manifests on their way.

        Raises:
            OSError: when something cannot be deleted; what comes after it is left.
            Exhausted: as `manifest`.
        """
        kept = set(keep)
        digests = set(keep_digests)
        unknown = False  # whether some kept version's files are not known
        for ref in kept:
            manifest = self.manifest(ref)
            digests |= {file.digest for file in manifest.files()} if manifest is not None else set()
            unknown |= manifest is None and self.manifest_path(ref).exists()
        unwanted = [ref for ref in self._stored_versions() if ref not in kept]
        freed = sum(self._remove_version(ref) for ref in unwanted[:MAX_COLLECTED])
        whole = len(unwanted) <= MAX_COLLECTED
        if unknown:
            logger.error("event=blobs_not_collected reason=a_manifest_cannot_be_read")
            return Collected(freed, whole)
        leftovers = [path for path in _entries(self.blobs) if path.name not in digests]
        for path in _entries(self.partial):
            digest = path.name.removesuffix(".bits")
            if digest not in digests or self._is_done_with(digest):
                leftovers.append(path)
        for path in leftovers[:MAX_COLLECTED]:
            freed += path.stat().st_size
            path.unlink()
        return Collected(freed, whole and len(leftovers) <= MAX_COLLECTED)

    def _manifest_bytes(self, ref: ModelRef) -> bytes | None:
        try:
            return read_patiently(self.manifest_path(ref), MAX_MANIFEST_BYTES)
        except FileNotFoundError:
            return None
        except (RegattaError, OSError) as err:
            shortage = shortage_of(err, f"the manifest of {ref}") if isinstance(err, OSError) else None
            if shortage is not None:
                raise shortage from err
            logger.error("event=manifest_unreadable version=%s error=%s", ref, err)
            return None

    def _stored_versions(self) -> Iterator[ModelRef]:
        for folder in sorted(self._models.glob("*/*")):
            try:
                yield parse_model_ref(f"{folder.parent.name}:{folder.name}")
            except Rejected:
                logger.warning("event=unknown_folder path=%s", folder)

    def _remove_version(self, ref: ModelRef) -> int:
        path = self.manifest_path(ref)
        freed = path.stat().st_size if path.exists() else 0
        path.unlink(missing_ok=True)
        path.parent.rmdir()
        return freed

    def race_path(self, ref: ModelRef) -> Path:
        """Return where the last race of the version lies, or would."""
        return self._races / f"{ref.name}-{ref.version}.json"

    def _is_done_with(self, digest: str) -> bool:
        """Return whether nothing of an unfinished download is of use any more."""
        return self.blob_path(Digest(digest)).exists() or not (self.partial / digest).exists()

    def _kept_bytes(self, digest: Digest) -> int:
        try:
            return (self.partial / digest).stat().st_blocks * 512
        except OSError:
            return 0


def _entries(folder: Path) -> list[Path]:
    """Return what is in the folder; nothing when it is not there."""
    return list(folder.iterdir()) if folder.is_dir() else []
