"""A worker asks itself before it says that it is ready: what runs for the first time is slow, and clients do not pay.

The first answer of a new worker takes 1.3 ms, the fourth 0.4, and at a swap all clients come at once (`./run bench
swap`). Asked is what clients ask first, the metadata, and for an inference that is refused for its shape: one that is
computed might be one that the model cannot, and the placement would be blamed. Whatever fails here fails unnoticed.

It asks on a thread, with plain sockets: asyncio's own would load OpenSSL.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from pathlib import Path

__all__ = ["rehearse"]

_TIMES = 3
_LIMIT_S = 0.5  # for all; what takes longer is no rehearsal
_MAX_BYTES = 256 * 1024  # of an answer


async def rehearse(socket_path: Path, model: str) -> None:
    """Ask the worker at `socket_path` a few times, each over a connection of its own."""
    loop, asked = asyncio.get_running_loop(), asyncio.Event()

    def ask() -> None:
        with contextlib.suppress(OSError, ValueError, LookupError):
            for _ in range(_TIMES):
                _ask(str(socket_path), f"/v2/models/{model}")
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(asked.set)

    threading.Thread(target=ask, name="rehearsal", daemon=True).start()
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(asked.wait(), _LIMIT_S)


def _ask(path: str, place: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_LIMIT_S)
        connection.connect(path)
        first = json.loads(_answer(connection, f"GET {place}", b""))["inputs"][0]
        entry = {"name": first["name"], "shape": [0], "datatype": first["datatype"]}
        body = json.dumps({"inputs": [{**entry, "parameters": {"binary_data_size": 0}}]}).encode()
        _answer(connection, f"POST {place}/infer", body)


def _answer(connection: socket.socket, line: str, body: bytes) -> bytes:
    """Return the body of an answer; what is sent is JSON, and binary tensors of no bytes."""
    head = f"{line} HTTP/1.1\r\ncontent-length: {len(body)}\r\ninference-header-content-length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    data, length = b"", _MAX_BYTES
    while len(data) < length:
        piece = connection.recv(_MAX_BYTES)
        if not piece:
            break
        data += piece
        told, end, rest = data.partition(b"\r\n\r\n")
        if end:
            size = int(told.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            if len(rest) >= size:
                return rest[:size]
    raise ValueError("the answer is too long, or was cut")
