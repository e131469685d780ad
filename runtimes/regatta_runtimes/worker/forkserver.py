"""`python -m regatta_runtimes.worker.forkserver`: imports one runtime once, then forks a worker process per request.

A fresh Python with numpy and a runtime costs 150–250 ms on a PC; a fork costs 5. The server itself never opens a
model, so it stays single-threaded (OpenBLAS is told so) and forking is sound. Control messages travel over a unix
SEQPACKET socket, the workers' three pipes as descriptors beside them. It ends when the socket closes, and its workers
die with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import sys
import time
import traceback

from regatta_protocol.errors import RegattaError
from regatta_protocol.parent import die_with_parent
from regatta_runtimes.runtime import runtime_facts
from regatta_runtimes.worker.commands import serve_commands
from regatta_runtimes.worker.session import load_backend

__all__ = ["main"]

_MAX_MESSAGE_BYTES = 65_536
_REAP_S = 1.0
_MAX_FILES = 256
_MAX_FILE_BYTES = 64 * 1024 * 1024  # a worker has nothing to write but small caches and a golden file


def _limit(memory_bytes: int, file_bytes: int) -> None:
    """Set this process's limits: heap, files, and no core dumps."""
    # 1, not 0: below a page no core file is written, and of all values only 1 also stops a core_pattern that is a pipe
    # (fs/coredump.c). RLIMIT_DATA counts private writable memory, stacks of threads included, but not mapped files.
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_MAX_FILES, _MAX_FILES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))


def _work(runtime: str, backends: dict[str, str], memory_bytes: int, pipes: list[int], parent: int) -> None:
    """Be a worker until its commands end; never returns."""
    commands, answers, log = pipes
    status = 1
    try:
        die_with_parent(parent)
        os.dup2(log, 1)
        os.dup2(log, 2)
        in_files = runtime_facts(runtime).memory_in_files
        _limit(memory_bytes, max(memory_bytes, _MAX_FILE_BYTES) if in_files else _MAX_FILE_BYTES)
        serve_commands(runtime, backends, commands, answers)
        status = 0
    except BaseException:  # noqa: BLE001 - the top of a program: log and end
        with contextlib.suppress(OSError):
            os.write(2, traceback.format_exc().encode()[-4096:])
    os._exit(status)


def _reap(pid: int) -> dict[str, int]:
    """Return how a worker ended; one that closed its pipes and yet goes on is killed after a second."""
    deadline = time.monotonic() + _REAP_S
    try:
        while True:
            done, status, usage = os.wait4(pid, os.WNOHANG)
            if done:
                return {"status": status, "peak_rss_bytes": usage.ru_maxrss * 1024}
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.002)
    except ChildProcessError:
        return {"status": 0, "peak_rss_bytes": 0}


def _serve(control: socket.socket, runtime: str, backends: dict[str, str]) -> None:
    """Fork and reap as asked, until the socket closes."""
    while True:
        data, pipes, _flags, _address = socket.recv_fds(control, _MAX_MESSAGE_BYTES, 3)
        if not data:
            return
        message = json.loads(data)
        if message["ask"] == "fork":
            parent = os.getpid()
            child = os.fork()
            if child == 0:
                control.close()
                _work(runtime, backends, int(message["memory_bytes"]), pipes, parent)
            for pipe in pipes:
                os.close(pipe)
            answer = {"pid": child}
        else:
            answer = _reap(int(message["pid"]))
        control.send(json.dumps(answer).encode())


def main(arguments: list[str]) -> int:
    """Serve on the socket whose descriptor is given. Arguments: FD PARENT RUNTIME BACKENDS-AS-JSON."""
    descriptor, parent, runtime, backends = int(arguments[0]), int(arguments[1]), arguments[2], json.loads(arguments[3])
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; our parent decides
    with socket.socket(fileno=descriptor) as control:
        try:
            hello = {"version": load_backend(runtime, backends).version()}
        except RegattaError as err:
            hello = {"missing": str(err)}
        control.send(json.dumps(hello).encode())
        if "version" in hello:
            _serve(control, runtime, backends)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
