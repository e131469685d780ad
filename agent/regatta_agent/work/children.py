"""Child processes: started with bounded pipes, read by one thread each, ended for sure.

Runtimes, cryptography and TUF live only in children, so that nothing they do can end the agent. A reading thread
only puts events on the inbox. Each child leads a process group of its own; killing it kills what it started. When the
agent itself is killed, a child sees the end of its standard input.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import queue
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO, Protocol

from regatta_agent.events import ChildEnded, ChildLine, Event
from regatta_agent.serving import giving_way
from regatta_protocol.errors import Exhausted
from regatta_protocol.threads import BoundedThread

__all__ = ["MAX_LINE_BYTES", "Child", "Launcher", "ProcessLauncher"]

logger = logging.getLogger(__name__)

MAX_LINE_BYTES = 1024 * 1024  # a verified assignment of 64 models is about 10 KB, a window 125 KB
_MAX_ERRORS_BYTES = 4096
# Malloc finds room for it anywhere in its heap; for 64 KiB above all else only. What was left of that, a line, held
# the place until the next read had its room above it: the heap crept up by 1 MB an hour (docs/footprint.md).
_READ_BYTES = 4096
_OOM_SCORE_ADJ = "500"  # of at most 1000, which would be before whatever else the board runs
_NO_MEMORY_S = 1.0  # before the end of a child is told again, when there was no memory to tell it


class Child(Protocol):
    """A child process that was started."""

    @property
    def pid(self) -> int:
        """The process id."""

    def finish(self) -> None:
        """Ask it to end by closing its standard input. May be called at any time."""

    def kill(self) -> None:
        """End it and all it started, now. May be called at any time."""


class Launcher(Protocol):
    """Starts children; their output comes as events under their name."""

    def launch(
        self,
        name: str,
        argv: Sequence[str],
        stdin: bytes | None,
        pass_fds: Sequence[int] = (),
        gives_way: bool = False,
    ) -> Child:
        """Start a child.

        Args:
            name: unique; it marks the child's events.
            argv: program and arguments.
            stdin: written to it and closed; None keeps its standard input open until `finish`.
            pass_fds: files that it inherits, under the same numbers.
            gives_way: start it behind all else on the processor; it comes back by itself, see serving/giving_way.py.

        Raises:
            OSError: when it cannot be started.
        """

    def close(self) -> None:
        """Kill whatever still runs and end the reading threads."""


class ProcessLauncher:
    """The real launcher."""

    def __init__(self, inbox: queue.Queue[Event]) -> None:
        self._inbox = inbox
        self._closed = threading.Event()
        self._running: dict[str, _Process] = {}

    def launch(
        self,
        name: str,
        argv: Sequence[str],
        stdin: bytes | None,
        pass_fds: Sequence[int] = (),
        gives_way: bool = False,
    ) -> Child:
        popen = subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            close_fds=True,
            pass_fds=pass_fds,
        )
        _let_go_first(popen.pid)
        if gives_way:
            giving_way.begin_for(popen.pid)
        child = _Process(name, popen, self._inbox, self._closed)
        self._running = {key: other for key, other in self._running.items() if other.running()}
        try:
            child.begin(stdin)
        except Exhausted as err:
            child.abandon()
            raise OSError(errno.EAGAIN, str(err)) from err
        self._running[name] = child
        return child

    def close(self) -> None:
        self._closed.set()
        for child in self._running.values():
            child.kill()
        for child in self._running.values():
            child.join()
        self._running.clear()


def _let_go_first(pid: int) -> None:
    """Have the kernel, when memory runs out, end this child and never the agent, whose value it has inherited.

    Raising it needs no right (proc_pid_oom_score_adj(5)). Without /proc the kernel goes by size; workers are larger.
    """
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(_OOM_SCORE_ADJ)


class _Process:
    def __init__(
        self, name: str, popen: subprocess.Popen[bytes], inbox: queue.Queue[Event], closed: threading.Event
    ) -> None:
        self._name = name
        self._popen = popen
        self._inbox = inbox
        self._closed = closed
        self._thread = BoundedThread(self._read, name)

    @property
    def pid(self) -> int:
        return self._popen.pid

    def begin(self, stdin: bytes | None) -> None:
        if stdin is not None:
            # A child reads its whole input before it writes more than a pipe holds, so this cannot block for ever: a
            # child that does not read is killed at its deadline, which breaks the pipe.
            BoundedThread(partial(self._write, stdin), self._name).start()
        self._thread.start()

    def abandon(self) -> None:
        """Kill a child that nobody can listen to, so that nothing of it is left."""
        self.kill()
        self._popen.wait()
        for pipe in (self._popen.stdin, self._popen.stdout, self._popen.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError, ValueError):
                    pipe.close()

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stdin.close()

    def kill(self) -> None:
        if self._popen.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._popen.pid, signal.SIGKILL)

    def running(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> None:
        self._thread.join(5.0)

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._popen.stdin is not None
        return self._popen.stdin

    def _write(self, data: bytes) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stdin.write(data)
        self.finish()

    def _read(self) -> None:
        try:
            errors = self._read_to_end()
        except Exception as err:  # a child that is not listened to any more must still come to its end
            self.kill()
            errors = b"it could not be listened to"
            with contextlib.suppress(MemoryError):
                errors = f"it could not be listened to: {err!r}".encode()
                logger.exception("event=child_unheard child=%s", self._name)
        while True:
            try:
                self._tell_end(errors)
                return
            except MemoryError:  # whoever waits for this end would wait for ever
                time.sleep(_NO_MEMORY_S)

    def _tell_end(self, errors: bytes) -> None:
        """Put the end of the child, the last that is heard of it."""
        status = self._popen.wait()
        for pipe in (self._popen.stdout, self._popen.stderr):
            if pipe is not None:
                pipe.close()
        self.finish()
        self._put(ChildEnded(self._name, status, errors.decode(errors="replace")))

    def _read_to_end(self) -> bytes:
        """Put the lines of standard output; return the end of standard error."""
        stdout, stderr = self._popen.stdout, self._popen.stderr
        assert stdout is not None and stderr is not None
        line, errors = b"", b""
        with selectors.PollSelector() as selector:  # epoll would need a descriptor of its own, and there may be none
            for pipe in (stdout, stderr):
                selector.register(pipe, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select():
                    data = os.read(key.fd, _READ_BYTES)
                    if not data:
                        selector.unregister(key.fileobj)
                    elif key.fileobj is stderr:
                        errors = (errors + data)[-_MAX_ERRORS_BYTES:]
                    else:
                        line = self._split(line + data)
                    del data  # or it would be held until the next read has got its room
        if line:
            self._put(ChildLine(self._name, line))
        return errors

    def _split(self, data: bytes) -> bytes:
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._put(ChildLine(self._name, line))
        if len(rest) > MAX_LINE_BYTES:
            logger.error("event=child_killed child=%s reason=line_over_%d_bytes", self._name, MAX_LINE_BYTES)
            self.kill()
            return b""
        return rest

    def _put(self, event: Event) -> None:
        """Wait for room in the inbox; the pipe fills meanwhile, which slows the child down and loses nothing."""
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._inbox.put(event, timeout=0.5)
                return
