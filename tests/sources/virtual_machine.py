"""A virtual machine with a camera: this machine's files, read-only, under a Debian kernel that has one to test with.

The kernel's driver `vivid` is a camera of V4L2 whose picture is eight colour bars; this machine's own kernel mostly
lacks it, and to load it would want root. Nothing of this machine is changed: the guest sees its files over 9p,
read-only, and writes to memory of its own. It is emulated, for KVM is not everywhere, and not everywhere whole.
`./run check-sources` brings QEMU and unpacks the kernel into build/v4l2.
"""

from __future__ import annotations

import gzip
import lzma
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["obstacle", "run_in_guest"]

_ROOT = Path(__file__).resolve().parents[2]
_KERNEL = _ROOT / "build" / "v4l2"
_BUSYBOX, _QEMU = Path("/bin/busybox"), "qemu-system-x86_64"
_WANTED = ("virtio_pci", "9pnet_virtio", "9p", "vivid")
_OPTIONS = {"vivid": "n_devs=1 node_types=1 num_inputs=1 input_types=0"}  # one camera, and nothing else
_DEPENDS = re.compile(rb"\0depends=([^\0]*)")
_EXECUTABLE, _FOLDER, _FILE = 0o100755, 0o040755, 0o100644  # modes of a cpio archive's entries

_INIT = """#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc none /proc
mount -t devtmpfs none /dev
while read -r module options; do insmod /lib/$module $options || echo "guest: no $module"; done < /modules
mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=262144,cache=loose host /host
mount -t proc none /host/proc
mount -t sysfs none /host/sys
mount -t devtmpfs none /host/dev
mount -t tmpfs none /host/run
cp /command /host/run/command
mkdir /host/dev/shm /host/run/tmp
mount -t tmpfs none /host/dev/shm
ip link set lo up
chroot /host /bin/sh /run/command
echo "guest: ended with $?"
poweroff -f
"""


def obstacle() -> str | None:
    """Return why there can be no such machine here, or None."""
    if os.uname().machine != "x86_64":
        return "the machine with a camera is one of x86-64"
    if shutil.which(_QEMU) is None or not _BUSYBOX.exists() or not list(_KERNEL.glob("boot/vmlinuz-*")):
        return "the machine with a camera is not there: ./run check-sources"
    return None


def run_in_guest(command: Sequence[str], scratch: Path, timeout_s: float) -> tuple[int, str]:
    """Return the exit status of a command that ran as root in the machine, in the checkout, and all that it said.

    Args:
        command: with its arguments.
        scratch: a folder for the machine's first files.
        timeout_s: for all, after which TimeoutExpired is raised.
    """
    initial = scratch / "initrd.gz"
    initial.write_bytes(gzip.compress(b"".join(_archive(command)), compresslevel=1))
    kernel = next(_KERNEL.glob("boot/vmlinuz-*"))
    share = "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"
    qemu = [
        _QEMU, "-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "1536", "-no-reboot", "-display", "none",
        "-nic", "none", "-serial", "stdio", "-monitor", "none", "-kernel", str(kernel), "-initrd", str(initial),
        "-append", "console=ttyS0 quiet panic=-1", "-virtfs", share,
    ]  # fmt: skip
    done = subprocess.run(qemu, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=timeout_s, check=True)
    said = done.stdout.decode(errors="replace").replace("\r", "")
    ended = re.search(r"^guest: ended with (\d+)$", said, re.MULTILINE)
    return (int(ended.group(1)) if ended else -1), said


def _archive(command: Sequence[str]) -> Iterator[bytes]:
    """Yield the machine's first file system: a cpio archive (buffer-format.rst of the kernel's documents)."""
    modules = _modules()
    for name in ("bin", "dev", "host", "lib", "proc"):
        yield _entry(name, _FOLDER)
    yield _entry("bin/busybox", _EXECUTABLE, _BUSYBOX.read_bytes())
    yield _entry("init", _EXECUTABLE, _INIT.encode())
    words = f"cd {shlex.quote(str(_ROOT))} && export HOME=/run TMPDIR=/run/tmp && exec {shlex.join(command)}"
    yield _entry("command", _FILE, words.encode())
    lines = (f"{path.name.removesuffix('.xz')} {_OPTIONS.get(_name(path), '')}\n" for path in modules)
    yield _entry("modules", _FILE, "".join(lines).encode())
    for path in modules:
        yield _entry(f"lib/{path.name.removesuffix('.xz')}", _FILE, _content(path))
    yield _entry("TRAILER!!!", 0)


def _entry(name: str, mode: int, content: bytes = b"") -> bytes:
    fields = [0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0]
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return _padded(head) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _modules() -> list[Path]:
    """Return the files of the wanted modules and of those that they depend on, which come first."""
    there = {_name(path): path for path in _KERNEL.glob("lib/modules/**/*.ko*")}
    found: dict[str, Path] = {}

    def add(name: str) -> None:
        path = there.get(name.replace("-", "_"))
        if path is None or _name(path) in found:  # one that is not there is a part of the kernel itself
            return
        depends = _DEPENDS.search(_content(path))
        for other in depends.group(1).decode().split(",") if depends else ():
            add(other)
        found[_name(path)] = path

    for name in _WANTED:
        add(name)
    return list(found.values())


def _name(module: Path) -> str:
    return module.name.partition(".")[0].replace("-", "_")


def _content(module: Path) -> bytes:
    """Return the module, which newer Debian packs."""
    data = module.read_bytes()
    return lzma.decompress(data) if module.suffix == ".xz" else data
