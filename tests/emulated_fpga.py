"""An emulated FPGA: a tree of files like a board's /sys that behaves, and two ways for programs to meet it.

`EmulatedFpga` is the kernel's side: told of a write, mkdir or rmdir, it goes through the FPGA manager's states as
Xilinx's fpga-mgr.c, of-fpga-region.c and configfs.c do, and answers with an errno. `TreeKernel` calls it in this
process; `Shim` lets real programs meet it, by a preloaded library that sends it their system calls.

A bitstream is a text: `for BOARD`, and perhaps `ends in STATE`, the state in which its loading ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from regatta_protocol.errors import Rejected
from regatta_protocol.ids import digest_of_bytes
from regatta_runtimes.fpga.fdt import bitstream_name, with_bitstream_name
from regatta_runtimes.fpga.kernel import FileKernel
from regatta_runtimes.fpga.overlay import OverlayFiles

MANAGER = "sys/class/fpga_manager/fpga0"
TREES = "sys/kernel/config/device-tree/overlays"
OURS = f"{TREES}/regatta"
BOARD = "zynqmp"
_SHIM_SOURCE = Path(__file__).resolve().parent / "fpga" / "kernel_shim.c"
# the errno with which fpga-mgr.c and its drivers end a load in each state
_ERRNO = {
    "firmware request error": errno.ENOENT,
    "write init error": errno.EINVAL,
    "write error": errno.EIO,
    "write complete error": errno.ETIMEDOUT,
}


class EmulatedFpga:
    """The kernel of one board. Faults are set on it by tests."""

    def __init__(self, root: Path, *, firmware_attribute: bool = True, configfs: bool = True) -> None:
        self.root = root
        self.calls: list[tuple[str, str, str]] = []
        self.programmed: list[str] = []  # the bitstreams that came to operate, by their text
        self.answers: dict[str, int] = {}  # path -> errno of the next call on it, once
        self.always: dict[str, int] = {}  # path -> errno of every call on it
        self.tells_refusal = True  # False: as older kernels, whose write of `path` succeeds whatever happens
        self.vanishes = False  # the manager goes away when it is programmed
        self.on_call: Callable[[int], None] = lambda number: None  # told the number of each call, before it is done
        self.hold_back = threading.Event()  # a program call returns when this is set
        self.hold_back.set()
        self._lock = threading.Lock()
        (root / MANAGER).mkdir(parents=True)
        self.put(f"{MANAGER}/name", "Xilinx ZynqMP FPGA Manager")
        self.put(f"{MANAGER}/state", "unknown")
        self.put(f"{MANAGER}/status", "")
        if firmware_attribute:
            self.put(f"{MANAGER}/firmware", "")
            self.put(f"{MANAGER}/flags", "0")
        if configfs:
            (root / TREES).mkdir(parents=True)
        (root / "lib/firmware").mkdir(parents=True)
        self.boot("11111111-boot")

    def boot(self, boot_id: str) -> None:
        """Lose all that a power cut loses."""
        self.put("proc/sys/kernel/random/boot_id", boot_id)
        self.put(f"{MANAGER}/state", "unknown")
        for folder in (self.root / TREES).glob("*"):
            shutil.rmtree(folder)

    def put(self, path: str, text: str) -> None:
        """Set what a file shows."""
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(f"{text}\n")

    def shows(self, path: str) -> str | None:
        """Return what a file shows, or None when it is not there."""
        file = self.root / path
        return file.read_text().strip() if file.is_file() else None

    @property
    def loaded(self) -> str | None:
        """The text of the bitstream that operates, or None."""
        return self.programmed[-1] if self.programmed and self.shows(f"{MANAGER}/state") == "operating" else None

    @property
    def applied(self) -> str | None:
        """The file of our device-tree overlay that is applied, or None."""
        return self.shows(f"{OURS}/path") if self.shows(f"{OURS}/status") == "applied" else None

    def call(self, op: str, path: str, text: str = "") -> int:
        """Do a system call on a file of /sys; return its errno, or 0."""
        with self._lock:
            self.calls.append((op, path, text))
            self.on_call(len(self.calls))
            forced = self.answers.pop(path, self.always.get(path))
            if forced is not None:
                return forced
            if op == "make":
                return self._make(path)
            if op == "remove":
                shutil.rmtree(self.root / path)
                return 0
            if path == f"{MANAGER}/flags":
                self.put(path, f"{int(text, 16):x}")
                return 0
            if path == f"{MANAGER}/firmware":
                return self._program(text)
            return self._apply(path, text)

    def _make(self, path: str) -> int:
        if (self.root / path).exists():
            return errno.EEXIST
        for name, text in (("path", ""), ("status", "unapplied"), ("dtbo", "")):
            self.put(f"{path}/{name}", text)
        return 0

    def _program(self, file: str) -> int:
        state = f"{MANAGER}/state"
        if self.vanishes:
            shutil.rmtree(self.root / MANAGER)
            return errno.ENODEV
        self.put(state, "firmware request")
        image = self.root / "lib/firmware" / file
        text = image.read_text() if image.is_file() else "ends in firmware request error"
        if not text.startswith(f"for {BOARD}") and image.is_file():
            text = "ends in write init error"
        self.put(state, "write")
        self.hold_back.wait(30.0)
        end = text.partition("ends in ")[2].strip() or "operating"
        self.put(state, end)
        if end == "operating":
            self.programmed.append(text)
        return _ERRNO.get(end, 0)

    def _apply(self, path: str, text: str) -> int:
        folder = path.rpartition("/")[0]
        if self.shows(path):
            return errno.EPERM
        blob = (self.root / "lib/firmware" / text).read_bytes()
        try:
            named = bitstream_name(blob)
        except Rejected:
            return self._refused(errno.EINVAL)
        others = [one for one in (self.root / TREES).iterdir() if self.shows(f"{TREES}/{one.name}/status") == "applied"]
        if others:
            return self._refused(errno.EINVAL)  # "Region already has overlay applied."
        if b"corp,unknown" in blob:
            return self._refused(errno.EINVAL)
        if named is not None and (failure := self._program(named)):
            return self._refused(failure)
        self.put(path, text)
        self.put(f"{folder}/status", "applied")
        return 0

    def _refused(self, failure: int) -> int:
        return failure if self.tells_refusal else 0


class TreeKernel(FileKernel):
    """The loader's port, straight to the emulator."""

    def __init__(self, board: EmulatedFpga) -> None:
        super().__init__(board.root)
        self._board = board

    def write(self, path: str, text: str) -> None:
        if not (self._board.root / path).exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        self._do("write", path, text)

    def make(self, folder: str) -> None:
        self._do("make", folder)

    def remove(self, folder: str) -> None:
        self._do("remove", folder)

    def _do(self, op: str, path: str, text: str = "") -> None:
        failure = self._board.call(op, path, text)
        if failure:
            raise OSError(failure, os.strerror(failure))


class Shim:
    """The preloaded library, and the socket at which the emulator answers it."""

    def __init__(self, library: Path, board: EmulatedFpga) -> None:
        self._board = board
        self._path = board.root / "kernel.sock"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(self._path))
        self._listener.listen(8)
        self._thread = threading.Thread(target=self._serve, name="emulated-kernel", daemon=True)
        self._thread.start()
        self.environment: Mapping[str, str] = {
            "LD_PRELOAD": str(library),
            "REGATTA_FPGA_SOCKET": str(self._path),
            "REGATTA_FPGA_SYS": str(board.root / "sys"),
        }

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(ConnectionError):
                op, path, text = connection.recv(8192).decode().split("\0", 2)
                relative = str(Path(path).relative_to(self._board.root))
                connection.send(struct.pack("i", self._board.call(op, relative, text)))

    def close(self) -> None:
        """Answer no more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5.0)


@contextlib.contextmanager
def shim(library: Path, board: EmulatedFpga) -> Iterator[Mapping[str, str]]:
    """Yield the environment in which programs meet the emulator."""
    preloaded = Shim(library, board)
    try:
        yield preloaded.environment
    finally:
        preloaded.close()


def build_shim(folder: Path) -> Path | None:
    """Return the shim's library, built; None without gcc."""
    if shutil.which("gcc") is None:
        return None
    library = folder / "libkernel_shim.so"
    done = subprocess.run(
        ["gcc", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-o", library, _SHIM_SOURCE, "-ldl"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return library


def overlay(
    folder: Path, name: str = "a", *, board: str = BOARD, ends_in: str | None = None, tree: str | None = None,
    compatible: str = "corp,known", flags: int = 0,
) -> OverlayFiles:  # fmt: skip
    """Return an overlay's files, written to the folder.

    Args:
        tree: None for a bitstream alone; "programs" for a device tree that names it; "follows" for one that does not.
    """
    text = f"for {board}\n{name}\n" + (f"ends in {ends_in}\n" if ends_in else "")
    folder.mkdir(parents=True, exist_ok=True)
    bitstream, dtbo = folder / f"{name}.bin", folder / f"{name}.dtbo"
    bitstream.write_text(text)
    if tree is not None:
        blob = device_tree("design.bit.bin" if tree == "programs" else None, compatible)
        dtbo.write_bytes(with_bitstream_name(blob, f"regatta/{digest_of_bytes(text.encode())}.bin"))
    return OverlayFiles(
        name=name,
        bitstream=str(bitstream),
        device_tree=None if tree is None else str(dtbo),
        flags=flags,
        delegate="real",
    )


def device_tree(bitstream: str | None, compatible: str = "corp,known") -> bytes:
    """Return a compiled device-tree overlay of one fragment, as dtc writes it (Devicetree Specification, chapter 5)."""
    strings = b"target-path\0firmware-name\0compatible\0"

    def node(name: str, *inside: bytes) -> bytes:
        text = name.encode() + b"\0"
        return struct.pack(">I", 1) + _padded(text) + b"".join(inside) + struct.pack(">I", 2)

    def prop(name: str, value: str) -> bytes:
        data = value.encode() + b"\0"
        return struct.pack(">III", 3, len(data), strings.index(name.encode() + b"\0")) + _padded(data)

    region = [] if bitstream is None else [prop("firmware-name", bitstream)]
    device = node("device@80000000", prop("compatible", compatible), prop("firmware-name", "device.elf"))
    content = node("__overlay__", *region, device)
    structure = node("", node("fragment@0", prop("target-path", "/fpga-full"), content)) + struct.pack(">I", 9)
    reserved = bytes(16)
    at = 40 + len(reserved)
    total = at + len(structure) + len(strings)
    header = (0xD00DFEED, total, at, at + len(structure), 40, 17, 16, 0, len(strings), len(structure))
    return struct.pack(">10I", *header) + reserved + structure + strings


def _padded(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // 4) * 4, b"\0")
