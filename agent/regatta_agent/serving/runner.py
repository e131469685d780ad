"""`python -m regatta_agent.serving.runner FD PARENT`: runs one candidate for a serving worker, and nothing else.

Vendor code of an accelerator lives here, so that its crash, hang or leak takes no connection and no request with it:
the worker answers the very request by another candidate (docs/adr/0008). It ends when its socket closes, and is killed
when the worker ends.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from regatta_agent.serving.frames import MAX_TEXT_BYTES, Channel, Kind
from regatta_protocol.errors import RegattaError
from regatta_protocol.parent import die_with_parent
from regatta_protocol.plain import read_json, to_json
from regatta_protocol.values import Plugin, TensorSpec
from regatta_runtimes.candidate import parse_candidate_id
from regatta_runtimes.worker.session import Session, open_session

__all__ = ["Opened", "Opening", "main"]


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What the worker asks for, once."""

    candidate_id: str
    model_path: Path
    plugin: Plugin | None = None
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class Opened:
    """The model is open."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    delegated_nodes: int


def _serve(session: Session, channel: Channel) -> None:
    """Answer until the socket closes."""
    while True:
        inputs = channel.receive().arrays
        began_ns = time.perf_counter_ns()
        try:
            outputs = session.run(inputs)
        except RegattaError as err:
            channel.send(Kind.FAILED, str(err).encode())
            continue
        channel.send(Kind.OUTPUTS, b"%d" % (time.perf_counter_ns() - began_ns), outputs)


def main(arguments: list[str]) -> int:
    """Run the candidate that the worker names on the socket whose descriptor is given."""
    descriptor, parent = int(arguments[0]), int(arguments[1])
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the worker decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the worker drains first, and needs this process to do so
    channel = Channel(socket.socket(fileno=descriptor))
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        opening = read_json(Opening, channel.receive().text, MAX_TEXT_BYTES)
        resource.setrlimit(resource.RLIMIT_DATA, (opening.memory_bytes, opening.memory_bytes))
        try:
            candidate = replace(parse_candidate_id(opening.candidate_id), plugin=opening.plugin)
            session = open_session(candidate, opening.model_path)
        except RegattaError as err:
            channel.send(Kind.FAILED, str(err).encode())
            return err.exit_code
        opened = Opened(inputs=session.inputs, outputs=session.outputs, delegated_nodes=session.delegated_nodes)
        channel.send(Kind.OPENED, to_json(opened))
        _serve(session, channel)
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    # Not sys.exit: a driver's destructors may hang or crash, and nobody waits for them.
    os._exit(code)
