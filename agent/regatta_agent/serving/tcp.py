"""TCP sockets that listen: bound here, and kept by the agent for all workers of a model. Imports no asyncio."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping

from regatta_agent.serving.addresses import split_address
from regatta_protocol.errors import Misuse
from regatta_protocol.ids import ModelName

__all__ = ["BACKLOG", "TcpListeners", "bind_tcp"]

logger = logging.getLogger(__name__)

BACKLOG = 128


def bind_tcp(address: str) -> socket.socket:
    """Return a socket that listens on HOST:PORT.

    Raises:
        Misuse: when the address is none or is taken.
    """
    try:
        host, port = split_address(address)
    except ValueError as err:
        raise Misuse(f"tcp: {err}") from err
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as err:
        listener.close()
        raise Misuse(f"cannot listen on {address}: {err.strerror}: free the port or set another") from err
    return listener


class TcpListeners:
    """The listening sockets of the models that have a TCP address; each is handed to every worker of its model."""

    def __init__(self, addresses: Mapping[ModelName, str]) -> None:
        self._addresses = addresses
        self._listeners: dict[str, socket.socket] = {}

    def fd_of(self, model: ModelName) -> int | None:
        """Return the model's listening socket, bound when first asked for; None when it has no address.

        An address that is taken is told in the log and tried again with the model's next worker: the unix socket serves
        meanwhile.
        """
        listener, address = self._listeners.get(model), self._addresses.get(model)
        if listener is None and address is not None:
            try:
                listener = self._listeners[model] = bind_tcp(address)
            except Misuse as err:
                logger.error("event=no_tcp model=%s error=%s", model, err)
        return None if listener is None else listener.fileno()

    def close(self) -> None:
        """Close them all."""
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()
