"""The running server: both HTTP faces in one event loop, beside the controller's thread and the broker's process.

SIGTERM and SIGINT end all of it cleanly: open requests are answered, what is in the inbox is stored, the broker
writes its database. Killed in any other way, the next start ends in the same place: all that counts is in the home.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Iterator

import uvicorn

from regatta_fleet.bootstrap import Face, Running, running
from regatta_fleet.home import ServerInfo
from regatta_fleet.settings import Settings
from regatta_provisioning.notify import Notifier

__all__ = ["run_server"]

logger = logging.getLogger(__name__)

_GOODBYE_S = 3  # open requests get so long
_POLL_S = 0.02
_CONNECTIONS = 256  # at once, each face
_IDLE_S = 15


def run_server(settings: Settings, ready: Callable[[ServerInfo], None]) -> None:
    """Run a fleet's server until SIGTERM or SIGINT. Call it in the main thread.

    Args:
        ready: called once when everything answers and server.json is written.

    Raises:
        Misuse: when the set-up cannot work; the text says what to change.
        StorageFull: when the disk is full at the start.
    """
    notifier = Notifier.from_environment()
    with running(settings) as parts:
        asyncio.run(_serve(parts, ready, notifier))
        notifier.stopping()


class _Server(uvicorn.Server):
    """A uvicorn server that leaves the signals to us: there are two of them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve(parts: Running, ready: Callable[[ServerInfo], None], notifier: Notifier) -> None:
    servers = [_server(parts.operator), _server(parts.device)]
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    tasks = [
        asyncio.create_task(server.serve(sockets=[face.listener]))
        for server, face in zip(servers, (parts.operator, parts.device), strict=True)
    ]
    try:
        while not all(server.started for server in servers):
            if stopping.is_set() or any(task.done() for task in tasks):
                break
            await asyncio.sleep(_POLL_S)
        else:
            parts.home.announce(parts.info)
            ready(parts.info)
            notifier.ready()
            logger.info("event=server_ready url=%s device_url=%s", parts.info.url, parts.info.device_url)
        await _wait(parts, stopping, tasks, notifier)
    finally:
        parts.home.withdraw()
        for server in servers:
            server.should_exit = True
        await asyncio.gather(*tasks)
    logger.info("event=server_stopped")


async def _wait(parts: Running, stopping: asyncio.Event, tasks: list[asyncio.Task[None]], notifier: Notifier) -> None:
    """Return when asked to stop, or when a face ended; meanwhile tell systemd that we live."""
    period_s = min(
        1.0, (notifier.watchdog_s or 2.0) / 2
    )  # twice as often as systemd asks, as sd_watchdog_enabled(3) says
    while not stopping.is_set() and not any(task.done() for task in tasks):
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(stopping.wait(), period_s)
        if parts.alive():
            notifier.alive("serving")


def _server(face: Face) -> _Server:
    return _Server(
        uvicorn.Config(
            face.app,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            limit_concurrency=_CONNECTIONS,
            timeout_keep_alive=_IDLE_S,
            timeout_graceful_shutdown=_GOODBYE_S,
            ssl_keyfile=face.key_path,
            ssl_certfile=face.certificate_path,
        )
    )
