"""Both services speak to systemd by one module."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from regatta_provisioning.notify import Notifier


@pytest.mark.parametrize("abstract", [False, True])
def test_the_notifier_speaks_to_systemd_s_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    """A longer start, READY, WATCHDOG and STOPPING as datagrams; the watchdog's period is read from the environment."""
    address = f"@regatta-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address.replace("@", "\0", 1))
        systemd.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        monkeypatch.setenv("WATCHDOG_USEC", "30000000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        notifier = Notifier.from_environment()
        notifier.starting(300.0)
        notifier.ready()
        notifier.alive("well")
        notifier.stopping()

        said = [systemd.recv(200) for _ in range(4)]
    assert said[0].startswith(b"EXTEND_TIMEOUT_USEC=300000000\n")
    assert said[1:] == [b"READY=1", b"WATCHDOG=1\nSTATUS=well", b"STOPPING=1"]
    assert notifier.watchdog_s == 30.0


def test_without_systemd_nothing_is_said() -> None:
    """A run in a terminal is no error."""
    Notifier(None, None).ready()
    Notifier("/nowhere/at/all", None).ready()
