"""Shared libraries and Vulkan drivers under a board's root: where they lie and which version they say they are.

A library is never loaded here: its version is what the name says that its links lead to, and its size. The size is
there because libedgetpu.so.1.0 has kept its name through all releases, and most vendors' delegates carry no version.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from regatta_runtimes.sysfs import entries, read_text

__all__ = ["ICD_FOLDERS", "api_version", "find_library", "library_version", "vulkan_drivers"]

# where a bare name is looked for, under the board's root: Debian's, Yocto's, Tegra's, Android's and a vendor's own
LIBRARY_FOLDERS = (
    "usr/lib",
    "usr/lib/*-linux-gnu*",
    "usr/lib/*-linux-gnu*/tegra",
    "usr/lib64",
    "usr/local/lib",
    "lib",
    "lib/*-linux-gnu*",
    "lib64",
    "system/lib64",
    "vendor/lib64",
)
ICD_FOLDERS = ("usr/share/vulkan/icd.d", "usr/local/share/vulkan/icd.d", "etc/vulkan/icd.d")
_SOFTWARE = ("lvp", "swiftshader")  # drivers that compute on the CPU; runtimes refuse them (runtimes.md)
_ARCHITECTURES = r"[._](x86_64|i686|aarch64|armv7l|armhf|arm)$"


def find_library(text: str, root: Path) -> Path | None:
    """Return where a library lies under the root: a path as it stands, a bare name in the usual folders."""
    if "/" in text:
        path = root / text.lstrip("/")
        return path if os.path.isfile(path) else None  # noqa: PTH113 - Path.is_file raises PermissionError
    for pattern in LIBRARY_FOLDERS:
        for folder in entries(root, pattern):
            if os.path.isfile(folder / text):  # noqa: PTH113
                return folder / text
    return None


def library_version(path: Path) -> str:
    """Return the version in the name that the library's links lead to, where there is one, and its size."""
    try:
        size = f"{path.stat().st_size} bytes"
    except OSError:
        return "unreadable"
    match = re.search(r"\.so\.(\d+(?:\.\d+)*)$", os.path.realpath(path))
    return f"{match[1]}, {size}" if match else size


def vulkan_drivers(root: Path) -> dict[str, str]:
    """Return the Vulkan drivers of GPUs by name, with their API version, as their manifests say; no software ones."""
    found: dict[str, str] = {}
    for folder in ICD_FOLDERS:
        for path in entries(root / folder, "*.json"):
            name = re.sub(r"_icd$", "", re.sub(_ARCHITECTURES, "", path.stem))
            if not name.startswith(_SOFTWARE):
                found.setdefault(name[:60], api_version(read_text(path)))
    return found


def api_version(manifest: str | None) -> str:
    """Return the API version of a driver manifest (Vulkan-Loader, LoaderDriverInterface.md)."""
    try:
        version = json.loads(manifest or "")["ICD"]["api_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return "unknown"
    return version[:40] if isinstance(version, str) else "unknown"
