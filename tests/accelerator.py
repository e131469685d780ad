"""An accelerator for tests that can be made to fail at any moment: the test delegate with a file that says how."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from regatta_protocol.values import Plugin

__all__ = ["Accelerator", "build_delegate"]

_SOURCE = Path(__file__).resolve().parent / "delegates" / "test_delegate.c"


@dataclass(frozen=True)
class Accelerator:
    """A built library and the file that its faults are read from."""

    library: Path
    fault: Path

    @property
    def plugin(self) -> Plugin:
        """What a candidate on it loads."""
        return Plugin(library=str(self.library), options={"fault": str(self.fault)})

    def breaks(self, mode: str) -> None:
        """From now on every inference fails so: segfault_late, abort_late, hang_late, invoke, wrong, slow, leak."""
        fresh = self.fault.with_suffix(".new")
        fresh.write_text(mode)
        fresh.replace(self.fault)

    def heals(self) -> None:
        """Work again."""
        self.fault.unlink(missing_ok=True)


def build_delegate(folder: Path) -> Path | None:
    """Return the test delegate built into `folder`, or None without a compiler.

    Raises:
        RuntimeError: when it does not compile.
    """
    if shutil.which("gcc") is None:
        return None
    library = folder / "libtest_delegate.so"
    command = ["gcc", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-o", str(library), str(_SOURCE), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return library
