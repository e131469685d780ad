"""Overlays on disk: /lib/firmware/regatta/<sha256>.bin and .dtbo, the record of what is loaded, and two locks.

    record.json  what is loaded, or what a change was about when it was cut off (plan.py)
    lock         held while the FPGA is looked at or changed: one owner at a time
    use          held shared by each process that uses what is loaded, as long as it lives

An overlay in use is never taken away. Both locks are flock(2), so that a killed process holds nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from regatta_protocol.codec import decode, encode
from regatta_protocol.durable import read_bounded, write_durably
from regatta_protocol.errors import Misuse, RegattaError, Rejected, Retryable, StorageFull
from regatta_protocol.ids import digest_of_bytes, digest_of_file
from regatta_runtimes.fpga.fdt import bitstream_name
from regatta_runtimes.fpga.kernel import PERMISSION_HELP
from regatta_runtimes.fpga.overlay import MAX_BITSTREAM_BYTES, MAX_TREE_BYTES, OverlayFiles
from regatta_runtimes.fpga.plan import FOLDER, Loaded, OverlayRecord

__all__ = ["FirmwareFolder"]

logger = logging.getLogger(__name__)

_MAX_RECORD_BYTES = 65_536
_LOCK_POLL_S = 0.05


class FirmwareFolder:
    """`lib/firmware/regatta` below a root."""

    def __init__(self, root: Path) -> None:
        self.path = root / "lib/firmware" / FOLDER
        self._record_path = self.path / "record.json"

    def prepare(self) -> None:
        """Make the folder.

        Raises:
            Misuse: when this process may not.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise Misuse(f"cannot make {self.path}: {err.strerror}: {PERMISSION_HELP}") from err
        if not os.access(self.path, os.W_OK):
            raise Misuse(f"{self.path} cannot be written: {PERMISSION_HELP}")

    def install(self, files: OverlayFiles, user: str) -> Loaded:
        """Put the overlay's files where the kernel finds them, for good; what is there already stays.

        Raises:
            Rejected: when a file is missing, empty or too large, or the device tree is damaged or names another file.
            StorageFull: when the disk is full.
            Misuse: when this process may not write there.
        """
        bitstream = _content(Path(files.bitstream), MAX_BITSTREAM_BYTES, f"the bitstream of overlay {files.name}")
        named: str | None = None
        tree: bytes | None = None
        if files.device_tree is not None:
            tree = _content(Path(files.device_tree), MAX_TREE_BYTES, f"the device tree of overlay {files.name}")
            named = bitstream_name(tree)
        overlay = Loaded(
            name=files.name,
            bitstream=digest_of_bytes(bitstream),
            device_tree=None if tree is None else digest_of_bytes(tree),
            flags=files.flags,
            tree_programs=named is not None,
            user=user,
        )
        if named is not None and named != overlay.bitstream_file:
            raise Rejected(
                f"the device tree of {overlay} names the bitstream {named!r} instead of {overlay.bitstream_file!r}: "
                "push it with `regatta model push --device-tree-overlay`, which writes the right name into it"
            )
        self._put(f"{overlay.bitstream}.bin", bitstream)
        if tree is not None:
            self._put(f"{overlay.device_tree}.dtbo", tree)
        return overlay

    def keep_only(self, overlays: Iterable[Loaded | None]) -> None:
        """Delete the files of all other overlays."""
        kept = {f"{one.bitstream}.bin" for one in overlays if one is not None}
        kept |= {f"{one.device_tree}.dtbo" for one in overlays if one is not None}
        for pattern in ("*.bin", "*.dtbo", ".*.tmp"):
            for path in self.path.glob(pattern):
                if path.name not in kept:
                    path.unlink(missing_ok=True)

    def read(self) -> OverlayRecord:
        """Return the record; a damaged one counts as a change that was cut off, so that nothing is trusted."""
        try:
            return decode(OverlayRecord, read_bounded(self._record_path, _MAX_RECORD_BYTES), _MAX_RECORD_BYTES)
        except FileNotFoundError:
            return OverlayRecord()
        except (RegattaError, OSError) as err:
            logger.warning("event=overlay_record_unreadable path=%s error=%s", self._record_path, err)
            return OverlayRecord(changing=True)

    def write(self, record: OverlayRecord) -> None:
        """Keep the record, for good.

        Raises:
            StorageFull: when the disk is full.
            Misuse: when this process may not write there.
        """
        self._write(self._record_path, encode(record, _MAX_RECORD_BYTES))

    @contextlib.contextmanager
    def locked(self, timeout_s: float) -> Iterator[None]:
        """Be the only one that looks at the FPGA or changes it.

        Raises:
            Retryable: when another process is at it for longer than `timeout_s`.
        """
        descriptor = self._open("lock")
        try:
            deadline = time.monotonic() + timeout_s
            while not _flock(descriptor, fcntl.LOCK_EX):
                if time.monotonic() > deadline:
                    raise Retryable(
                        f"another process has been changing the FPGA for {timeout_s:g} s ({self.path}/lock is held): "
                        "it is tried again"
                    )
                time.sleep(_LOCK_POLL_S)
            yield
        finally:
            os.close(descriptor)

    def use(self, *, alone: bool) -> int | None:
        """Return a descriptor that marks what is loaded as in use until it is closed; None when others use it.

        Args:
            alone: be the only user, as a change needs; `share` lets others in again.
        """
        descriptor = self._open("use")
        if _flock(descriptor, fcntl.LOCK_EX if alone else fcntl.LOCK_SH):
            return descriptor
        os.close(descriptor)
        return None

    @staticmethod
    def share(descriptor: int) -> None:
        """Let others use what is loaded too."""
        fcntl.flock(descriptor, fcntl.LOCK_SH)

    def _open(self, name: str) -> int:
        try:
            return os.open(self.path / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as err:
            raise Misuse(f"cannot open {self.path / name}: {err.strerror}: {PERMISSION_HELP}") from err

    def _put(self, name: str, content: bytes) -> None:
        path = self.path / name
        if path.is_file() and path.stat().st_size == len(content) and digest_of_file(path) == path.stem:
            return
        self._write(path, content)

    def _write(self, path: Path, content: bytes) -> None:
        try:
            write_durably(path, content, 0o644)
        except PermissionError as err:
            raise Misuse(f"cannot write {path}: {err.strerror}: {PERMISSION_HELP}") from err
        except StorageFull:
            raise
        except OSError as err:
            raise Retryable(f"cannot write {path}: {err.strerror}: it is tried again") from err


def _flock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _content(path: Path, limit_bytes: int, what: str) -> bytes:
    try:
        content = read_bounded(path, limit_bytes)
    except OSError as err:
        raise Rejected(f"{what} cannot be read from {path}: {err.strerror}: fetch the version again") from err
    if not content:
        raise Rejected(f"{what} is empty ({path}): push the model again with the right file")
    return content
