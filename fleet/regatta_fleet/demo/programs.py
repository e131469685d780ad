"""The programs that the demo runs: the same ones that a user starts, as processes of their own.

Each that keeps running writes to a log file of its name; all are ended, by their own process ids, when the demo leaves.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from regatta_protocol.errors import Retryable

__all__ = ["Programs"]

_STOP_TIMEOUT_S = 15.0
_LOG_TAIL_LINES = 12


class Programs:
    """A set of running programs; leaving the context ends them, the last one first."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []

    def __enter__(self) -> Programs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _name, process in reversed(self._running):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(_STOP_TIMEOUT_S)

    def start(self, name: str, module: str, *arguments: str) -> None:
        """Start `python -m module arguments` and leave it running."""
        with (self._logs / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches the demo alone, which then ends them in order
            )
        self._running.append((name, process))

    def check(self) -> None:
        """Look whether all still run.

        Raises:
            Retryable: when one has ended, with the last lines of its log.
        """
        for name, process in self._running:
            if process.poll() is not None:
                log = self._logs / f"{name}.log"
                lines = log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
                raise Retryable(f"{name} ended by itself with status {process.returncode}: " + " | ".join(lines))

    def run(self, module: str, *arguments: str, timeout_s: float = 60.0) -> str:
        """Run `python -m module arguments` to its end; returns its standard output.

        Raises:
            Retryable: when it fails or takes too long, with what it said.
        """
        words = f"{module} {arguments[0] if arguments else ''}".strip()
        try:
            done = subprocess.run(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as err:
            raise Retryable(f"{words} did not end within {timeout_s:g} s") from err
        if done.returncode != 0:
            raise Retryable(f"{words} ended with status {done.returncode}: {done.stderr.strip()[-2000:]}")
        return done.stdout
