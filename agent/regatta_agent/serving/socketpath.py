"""How long the path of a unix socket may be. Imports nothing, so that workers, their parent and clients share it."""

from __future__ import annotations

from pathlib import Path

from regatta_protocol.errors import Misuse

__all__ = ["MAX_SOCKET_PATH_BYTES", "check_socket_path"]

MAX_SOCKET_PATH_BYTES = 107  # sun_path of unix(7) is 108 bytes with its closing zero


def check_socket_path(path: Path) -> None:
    """Do nothing when a socket can be bound at `path`.

    Raises:
        Misuse: when it is longer than unix(7) allows.
    """
    length = len(bytes(path))
    if length > MAX_SOCKET_PATH_BYTES:
        raise Misuse(
            f"the socket path {path} has {length} bytes and a unix socket takes at most {MAX_SOCKET_PATH_BYTES}: "
            "set a shorter run folder with --run-dir or REGATTA_RUN_DIR"
        )
