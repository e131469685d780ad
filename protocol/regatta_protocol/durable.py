"""Files that survive a power cut: written whole beside their place, synced, renamed, and the folder synced.

After `write_durably` returns, a cut leaves the new content; before, the old; never a mix. Anything else that
persists state must come through here. Disk full is told apart, because callers wait for space instead of failing;
`shortage_of` does that for other system calls, and tells want of descriptors, memory and processes apart as well.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from regatta_protocol.errors import Exhausted, Rejected, Retryable, StorageFull, TooLarge

__all__ = [
    "make_folder_durably",
    "put_aside",
    "read_bounded",
    "read_patiently",
    "remove_durably",
    "rename_durably",
    "shortage_of",
    "sync_folder",
    "write_durably",
]

_FULL = {errno.ENOSPC, errno.EDQUOT}
_READS = 3
_PIECE_BYTES = 4095  # with the one more that tells an end, a page
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}


def shortage_of(err: OSError, what: str) -> Retryable | None:
    """Return the error that says what the machine lacks for `what`, or None when that is not why it failed."""
    if err.errno in _FULL:
        return StorageFull(f"no space left for {what}: free some and it goes on")
    if err.errno in _EXHAUSTED:
        return Exhausted(f"no resources left for {what} ({os.strerror(err.errno)}): it goes on when some are free")
    return None


def sync_folder(folder: Path) -> None:
    """Make the folder's entries survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder_durably(path: Path, mode: int = 0o777) -> None:
    """Make the folder and those above it, unless they are there, so that what is synced inside it survives a cut.

    Syncing a file or its folder says nothing of the folder's own name in the one above (POSIX; found by the crash lab).

    Raises:
        OSError: when it cannot be made.
    """
    if path.is_dir():
        return
    make_folder_durably(path.parent, mode)
    path.mkdir(exist_ok=True, mode=mode)
    sync_folder(path.parent)


def write_durably(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Put `data` in place of whatever `path` held.

    Raises:
        StorageFull: when the disk or the quota is full; the old content is untouched.
        OSError: for other failures; the old content is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as err:
        temporary.unlink(missing_ok=True)
        if err.errno in _FULL:
            raise StorageFull(f"no space left to write {path} ({len(data)} bytes): free some and it goes on") from err
        raise


def rename_durably(source: Path, destination: Path) -> None:
    """Move a file or folder, whose content the caller has synced, to its place in one step."""
    source.replace(destination)
    sync_folder(destination.parent)
    if source.parent != destination.parent:
        sync_folder(source.parent)


def put_aside(path: Path) -> Path | None:
    """Rename a file that is damaged to `<name>.damaged`, in place of an earlier one; None when that is not possible."""
    aside = path.with_name(f"{path.name}.damaged")
    try:
        rename_durably(path, aside)
    except OSError:
        return None
    return aside


def remove_durably(path: Path) -> None:
    """Remove the file if it is there, for good."""
    path.unlink(missing_ok=True)
    sync_folder(path.parent)


def read_patiently(path: Path, limit_bytes: int) -> bytes:
    """Return the whole file like `read_bounded`; an error of the disk must come thrice, for one may pass.

    Raises:
        TooLarge, Rejected, OSError: as `read_bounded`.
    """
    for _ in range(_READS - 1):
        try:
            return read_bounded(path, limit_bytes)
        except OSError as err:
            if err.errno != errno.EIO:
                raise
    return read_bounded(path, limit_bytes)


def read_bounded(path: Path, limit_bytes: int) -> bytes:
    """Return the whole file.

    Raises:
        TooLarge: when it is longer than `limit_bytes`.
        Rejected: when it is no regular file.
        OSError: when it cannot be read.
    """
    if path.exists() and not path.is_file():
        raise Rejected(f"{path} is not a file")
    with path.open("rb", buffering=0) as file:
        # Room for what is there, and not for the limit: it is taken before anything is read into it, and malloc, having
        # freed megabytes once, takes the next out of its heap, above all else (mallopt(3), M_MMAP_THRESHOLD).
        room_bytes = os.fstat(file.fileno()).st_size
        data = b""
        while len(data) <= limit_bytes:
            piece = file.read(min(max(room_bytes, _PIECE_BYTES), limit_bytes - len(data)) + 1)
            if not piece:
                break
            data += piece
            room_bytes = 0  # a file of /proc says 0 of itself, and one may grow
    if len(data) > limit_bytes:
        raise TooLarge(f"{path} is longer than the limit of {limit_bytes} bytes")
    return data
