"""A bundle on disk: what the optimizer writes, `regatta model push` reads, and the server signs and stores.

    FOLDER/draft.json        a schemas.BundleDraft
    FOLDER/files/DIGEST      every file that the draft names, by its SHA-256
    FOLDER/…                 reports beside them, which are not pushed

Invariants:
- a bundle appears whole: it is built in a folder beside its place, synced, and renamed (one that is replaced is
  renamed away first, so for a moment there is none, but never half of one);
- what `Bundle.open` returns has every file, with the digest and size that the draft promises.

Not here: what goes into one (bare_model.py, and the optimizer).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from regatta_fleet.schemas import BundleDraft
from regatta_protocol.codec import decode, encode
from regatta_protocol.durable import read_bounded, rename_durably, sync_folder, write_durably
from regatta_protocol.errors import BadDigest, Rejected
from regatta_protocol.ids import Digest, digest_of_file
from regatta_protocol.manifest import MAX_FILE_BYTES, MAX_MANIFEST_BYTES, FileRef

__all__ = ["Bundle", "check_place", "file_ref", "write_bundle"]


@dataclass(frozen=True)
class Bundle:
    """A whole bundle whose files were verified when it was opened."""

    folder: Path
    draft: BundleDraft

    @classmethod
    def open(cls, folder: Path) -> Bundle:
        """Return the bundle in the folder.

        Raises:
            Rejected: when it is no bundle, or lacks a file.
            BadDigest: when a file is not what the draft promises.
        """
        path = folder / "draft.json"
        if not path.is_file():
            raise Rejected(f"{folder} is no bundle: it has no draft.json. Make one with 'regatta model optimize'")
        draft = decode(BundleDraft, read_bounded(path, MAX_MANIFEST_BYTES), MAX_MANIFEST_BYTES)
        bundle = cls(folder, draft)
        for ref in bundle.files():
            _verify(bundle.path_of(ref), ref)
        return bundle

    def files(self) -> tuple[FileRef, ...]:
        """Return every file of the bundle, once each."""
        return _files_of(self.draft)

    def path_of(self, ref: FileRef) -> Path:
        """Return where the file lies."""
        return self.folder / "files" / ref.digest


def file_ref(path: Path) -> FileRef:
    """Return the reference of a file by its content.

    Raises:
        OSError: when it cannot be read.
    """
    return FileRef(digest=digest_of_file(path), size_bytes=path.stat().st_size)


def write_bundle(
    folder: Path,
    draft: BundleDraft,
    files: Mapping[Digest, Path],
    *,
    reports: Mapping[str, bytes] | None = None,
    replace: bool = False,
) -> Bundle:
    """Write the bundle to `folder`, whole or not at all, and return it verified.

    Args:
        files: where each file that the draft names lies now; they are copied.
        reports: further files by name, beside the draft.
        replace: put it in place of a bundle that is there already; any other folder is never replaced.

    Raises:
        Rejected: when `folder` is taken, or a file of the draft is not given.
        BadDigest: when a file is not what the draft promises.
        OSError: when it cannot be written; `folder` is then as it was.
    """
    check_place(folder, replace)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _building(folder) as building:
        (building / "files").mkdir()
        for ref in _files_of(draft):
            if ref.digest not in files:
                raise Rejected(f"the bundle's draft names file {ref.digest}, which was not given")
            copy = building / "files" / ref.digest
            shutil.copyfile(files[ref.digest], copy)
            _verify(copy, ref)
            _sync_file(copy)
        for name, content in (reports or {}).items():
            write_durably(building / name, content, mode=0o644)
        write_durably(building / "draft.json", encode(draft, MAX_MANIFEST_BYTES), mode=0o644)
        sync_folder(building / "files")
        sync_folder(building)
        old = building.with_name(f"{building.name}.old")
        if folder.exists():
            folder.replace(old)
        rename_durably(building, folder)
        shutil.rmtree(old, ignore_errors=True)
    return Bundle.open(folder)


def _files_of(draft: BundleDraft) -> tuple[FileRef, ...]:
    refs = [ref for variant in draft.variants for ref in variant.files()]
    refs += [ref for ref in (draft.golden, draft.evaluation, draft.labels) if ref is not None]
    return tuple({ref.digest: ref for ref in refs}.values())


def _verify(path: Path, ref: FileRef) -> None:
    if not path.is_file():
        raise Rejected(f"the bundle lacks file {ref.digest}: copy the whole folder, or make it again")
    size = path.stat().st_size
    if size != ref.size_bytes or size > MAX_FILE_BYTES:
        raise BadDigest(f"{path} has {size} bytes instead of {ref.size_bytes}: make the bundle again")
    found = digest_of_file(path)
    if found != ref.digest:
        raise BadDigest(f"{path} has the digest {found} instead of its name's: make the bundle again")


def check_place(folder: Path, replace: bool) -> None:
    """Refuse a folder that a bundle may not take, before any work is done for it.

    Raises:
        Rejected: when something is there, and it is no bundle that may be replaced.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not replace:
        raise Rejected(f"{folder} exists already: give another folder, or --replace it")
    if not (folder / "draft.json").is_file():
        raise Rejected(f"{folder} holds something that is no bundle, so it is not replaced: give another folder")


@contextmanager
def _building(folder: Path) -> Iterator[Path]:
    """Give a folder beside `folder`, which is gone afterwards unless it was renamed."""
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    building.chmod(0o755)
    try:
        yield building
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
