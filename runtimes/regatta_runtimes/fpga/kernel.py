"""The kernel's files for FPGAs, as few calls as the loader needs, and its errors in our families.

`Kernel` is the seam: FileKernel does it on the files below a root. A write to these files is a call of the kernel that
returns when the FPGA is programmed, and cannot be interrupted; `bounded` waits for it no longer than it is told.
"""

from __future__ import annotations

import errno
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from regatta_protocol.errors import Misuse, RegattaError, Rejected, Retryable
from regatta_runtimes.sysfs import read_text

__all__ = ["FORBIDDEN", "PERMISSION_HELP", "FileKernel", "Kernel", "StillBusy", "bounded", "explained"]

FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_LATER = {errno.EBUSY, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT, errno.ENOMEM, errno.ENOTEMPTY}
_GONE = {errno.ENODEV, errno.ENXIO}
PERMISSION_HELP = (
    "let the agent's user write there: copy fpga.conf, and fpga-device-tree.conf for device-tree overlays, to "
    "/etc/systemd/system/regatta-agent.service.d/, have the udev rules of `regatta-agent install` in place, then "
    "`systemctl daemon-reload && systemctl restart regatta-agent` (docs/fpga.md, Permissions)"
)


class StillBusy(Retryable):
    """A call of the kernel has not returned within its time. It goes on there, so nothing else must be tried."""


class Kernel(Protocol):
    """Files of /sys by their path below the root. The calls raise OSError."""

    def read(self, path: str) -> str | None:
        """Return the file's text without blanks at its ends; None when it is not there, empty or unreadable."""

    def names(self, folder: str) -> tuple[str, ...] | None:
        """Return the names in a folder, sorted; None when there is no such folder."""

    def write(self, path: str, text: str) -> None:
        """Write an attribute, in one call."""

    def make(self, folder: str) -> None:
        """Make a folder; configfs puts an object's attributes into it."""

    def remove(self, folder: str) -> None:
        """Remove a folder; configfs takes the attributes away with it."""


class FileKernel:
    """The files below a root."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, path: str) -> str | None:
        return read_text(self._root / path)

    def names(self, folder: str) -> tuple[str, ...] | None:
        try:
            return tuple(sorted(os.listdir(self._root / folder)))  # noqa: PTH208 - names, not paths
        except OSError:
            return None

    def write(self, path: str, text: str) -> None:
        descriptor = os.open(self._root / path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)

    def make(self, folder: str) -> None:
        (self._root / folder).mkdir()

    def remove(self, folder: str) -> None:
        (self._root / folder).rmdir()


def bounded(call: Callable[[], None], timeout_s: float, what: str) -> None:
    """Do `call`, waiting no longer than `timeout_s`.

    Raises:
        StillBusy: when it has not returned by then.
        OSError: what the call raises.
    """
    done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def run() -> None:
        try:
            call()
        except BaseException as err:  # noqa: BLE001 - handed to the caller, who raises it
            done.put(err)
        else:
            done.put(None)

    threading.Thread(target=run, name="fpga", daemon=True).start()
    try:
        error = done.get(timeout=timeout_s)
    except queue.Empty:
        raise StillBusy(
            f"the kernel has not finished to {what} after {timeout_s:g} s: it is looked at again later; when that "
            "repeats, see `dmesg` and restart the board"
        ) from None
    if error is not None:
        raise error


def explained(err: OSError, what: str) -> RegattaError:
    """Return the failure of a call in our families: what was tried, what the kernel said, what to do."""
    said = f"cannot {what}: {err.strerror or err}"
    if err.errno in FORBIDDEN:
        return Misuse(f"{said}: {PERMISSION_HELP}")
    if err.errno in _LATER:
        return Retryable(f"{said}: another program may be using the FPGA; it is tried again")
    if err.errno in _GONE or (err.errno == errno.ENOENT and err.filename is not None):
        return Retryable(f"{said}: the FPGA manager is gone from /sys, see `dmesg` for its driver")
    if err.errno == errno.ENOENT:
        return Misuse(
            f"{said}: the kernel did not find a file in /lib/firmware: unset firmware_class.path on its command line, "
            "or let it lead there"
        )
    return Rejected(f"{said}: the bitstream or the device-tree overlay is not for this board, see `dmesg`")
