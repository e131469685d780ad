"""gRPC beside HTTP, where it is configured: the extra `regatta-edge[grpc]`. Importing this room loads neither grpcio
nor protobuf; `open_grpc` does.

A worker without gRPC pays nothing for it. One with it answers `inference.GRPCInferenceService` on a unix socket beside
its own, and on TCP while it is the one to serve there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from regatta_agent.serving.http import HttpServer
from regatta_agent.serving.spec import GRPC_EXTRA, ServeSpec
from regatta_protocol.errors import Misuse

if TYPE_CHECKING:
    from regatta_agent.serving.grpc.server import GrpcServers

__all__ = ["open_grpc"]

# Read by grpcio when it is loaded. A worker starts runners by vfork and exec, which needs no help of its; and what it
# has to say below errors (a client that left in the middle of its handshake) is no news to an operator.
_ENVIRONMENT = {"GRPC_ENABLE_FORK_SUPPORT": "0", "GRPC_VERBOSITY": "ERROR"}


async def open_grpc(spec: ServeSpec, server: HttpServer, on_invalid: Callable[[], None]) -> GrpcServers | None:
    """Return what answers gRPC, started, or None where the spec asks for none.

    Args:
        spec: of the worker.
        server: what answers HTTP; its limits, its bound on bytes held, and its handler are shared.
        on_invalid: told of a request that does not get as far as the handler, which counts the others.

    Raises:
        Misuse: when the extra is not installed, or nothing can listen where the spec says.
    """
    if spec.grpc_path is None:
        return None
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        from regatta_agent.serving.grpc.server import GrpcServers
    except ImportError as err:
        raise Misuse(f"gRPC is asked for and cannot be loaded ({err}): {GRPC_EXTRA}") from err
    servers = GrpcServers(spec, spec.grpc_path, server, on_invalid)
    await servers.start()
    return servers
