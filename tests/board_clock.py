"""A clock for one program and its children, set by the test while they run: as a board without a battery has it.

`tests/clocks/board_clock.c` is built and loaded before the program. What the program takes for the time moves at once,
for TLS as well; monotonic clocks, the kernel's timers and the times of files do not.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import time
from pathlib import Path

import pytest

__all__ = ["YEARS_S", "BoardClock"]

YEARS_S = 10 * 365.25 * 86_400.0  # ten of them
_SOURCE = Path(__file__).parent / "clocks" / "board_clock.c"


class BoardClock:
    """The clock; it is right until it is set."""

    def __init__(self, folder: Path) -> None:
        """Build what is needed below `folder`; skips the test where there is no compiler."""
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            pytest.skip("no C compiler is installed, so the clock of a single program cannot be set")
        library = folder / "board_clock.so"
        flags = ["-Wall", "-Wextra", "-Werror", "-O2", "-shared", "-fPIC"]
        subprocess.run([compiler, *flags, "-o", str(library), str(_SOURCE), "-ldl"], check=True, timeout=60)
        self._path = folder / "board_clock"
        self._path.write_bytes(bytes(8))
        self.environment = {"LD_PRELOAD": str(library), "BOARD_CLOCK": str(self._path)}

    def put_ahead(self, seconds: float) -> None:
        """Set the clock so many seconds ahead of the right time; 0 sets it right."""
        with self._path.open("r+b") as file:  # in place: it is mapped
            file.write(struct.pack("=q", int(seconds)))

    def put_at(self, moment_s: float) -> None:
        """Set the clock to so many seconds since 1970."""
        self.put_ahead(moment_s - time.time())
