"""A Mosquitto that lets anybody in, as a home's own broker may: for what is not the fleet's."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mosquitto import require_mosquitto
from polling import wait_until
from regatta_fleet.broker import find_mosquitto

__all__ = ["broker"]


@contextmanager
def broker(folder: Path) -> Iterator[int]:
    """Run one on a free port of loopback, and yield the port; skips the test where none is installed."""
    require_mosquitto()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = folder / "anonymous.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
    process = subprocess.Popen(
        [str(find_mosquitto()), "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def answers() -> bool:
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(answers, 10.0, "Mosquitto listens")
        yield port
    finally:
        process.terminate()
        process.wait(10)
