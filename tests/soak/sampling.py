"""What a soak watches of each program: memory, descriptors, threads, and how much lies on its disk."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from soak.trend import Trend, trend_of

__all__ = ["ALLOWED", "Samples", "folder_bytes"]

_MB = 1024.0 * 1024.0
# Growth over the run that is no drift: in the figure's unit, and as a share of it. A descriptor or thread more or less
# is what a fault leaves open for a moment. PSS is shown and not judged: pages of files count by how many other programs
# of the machine map them, and those come and go; a leak is in anonymous memory.
ALLOWED: Mapping[str, tuple[float, float]] = {
    "pss_mb": (math.inf, 0.0),
    "anonymous_mb": (0.75, 0.03),
    "descriptors": (1.5, 0.0),
    "threads": (1.5, 0.0),
    "disk_mb": (1.0, 0.05),
}
_HISTORY = (8.0, 0.1)  # the server's disk: rollouts, events and ids of batches are kept for weeks, by design


@dataclass
class Samples:
    """Figures over time, by program and figure."""

    times_s: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    values: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def take(self, program: str, process: psutil.Process | None, folders: Iterable[Path]) -> None:
        """Sample a program; one that is being started again has no figures now."""
        now_s = time.monotonic()
        folders = tuple(folders)
        found = {"disk_mb": sum(folder_bytes(folder) for folder in folders) / _MB} if folders else {}
        if process is not None:
            try:
                figures = (*_memory_mb(process.pid), float(process.num_fds()), float(process.num_threads()))
            except (psutil.Error, OSError):
                figures = None
            if figures is not None:
                found |= dict(zip(("pss_mb", "anonymous_mb", "descriptors", "threads"), figures, strict=True))
        for figure, value in found.items():
            self.times_s.setdefault((program, figure), []).append(now_s)
            self.values.setdefault((program, figure), []).append(value)

    def trends(self) -> dict[tuple[str, str], Trend | None]:
        """Return the trend of each figure."""
        return {
            key: trend_of(self.times_s[key], values, *(_HISTORY if key == ("server", "disk_mb") else ALLOWED[key[1]]))
            for key, values in self.values.items()
        }

    def write(self, path: Path) -> None:
        """Write all samples as CSV."""
        lines = ["program,figure,monotonic_s,value"]
        for key, values in self.values.items():
            rows = zip(self.times_s[key], values, strict=True)
            lines += [f"{key[0]},{key[1]},{time_s:.1f},{value:.3f}" for time_s, value in rows]
        path.write_text("\n".join(lines) + "\n")


def folder_bytes(folder: Path) -> int:
    """Return what the files below a folder take; files that vanish meanwhile count nothing."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(root) / name).lstat().st_size
            except OSError:
                continue
    return total


def _memory_mb(pid: int) -> tuple[float, float]:
    """Return proportional set size and its anonymous part."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    figures = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}
    return figures["Pss"], figures["Pss_Anon"]
