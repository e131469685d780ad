"""Worker processes as their owner sees them: started in milliseconds, asked with a limit, told apart when they end.

Imports no numpy and no runtime. One `Nursery` per runtime holds a forkserver.py child; `Nursery.start` gives a
`WorkerProcess`. When a worker ends, hangs or grows too large, `ask` raises `WorkerEnded` with the outcome by name:
- HUNG          no answer within the time limit (we kill it)
- OUT_OF_MEMORY over its memory limit (we kill it), or the allocator or the kernel gave up
- CRASHED       ended by any other signal, or by an exit
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from types import TracebackType

from regatta_protocol.codec import decode
from regatta_protocol.errors import Rejected, Retryable
from regatta_protocol.measurement import Outcome
from regatta_runtimes.errors import RuntimeMissing
from regatta_runtimes.worker.job import MAX_ANSWER_BYTES, Answer, AnswerLine, Command

__all__ = ["DEFAULT_MEMORY_BYTES", "Nursery", "WorkerEnded", "WorkerProcess"]

DEFAULT_MEMORY_BYTES = 1 << 30
_START_TIMEOUT_S = 30.0  # importing numpy and a runtime takes 0.2 s on a PC, some seconds on a cold SD card
_TICK_S = 0.05  # how often memory is looked at while waiting
_LOG_BYTES = 16_384
_GRACE_S = 2.0
_ALLOCATOR_GAVE_UP = ("bad_alloc", "MemoryError", "Cannot allocate memory", "out of memory", "Out of memory")
# one thread per library, set before numpy loads: the server must be single-threaded to fork
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}


class WorkerEnded(Retryable):
    """A worker is gone; `outcome` says how."""

    def __init__(self, outcome: Outcome, reason: str, peak_rss_bytes: int | None) -> None:
        super().__init__(reason)
        self.outcome = outcome
        self.reason = reason
        self.peak_rss_bytes = peak_rss_bytes


class WorkerProcess:
    """One worker: its process id and our ends of its three pipes."""

    def __init__(self, nursery: Nursery, pid: int, pipes: tuple[int, int, int], memory_bytes: int) -> None:
        self.pid = pid
        self._nursery = nursery
        self._commands, self._answers, self._log = pipes
        self._memory_bytes = memory_bytes
        self._peak_rss_bytes = 0
        self._log_tail = b""
        self._pending = b""
        self._open = True
        self._log_open = True

    def ask(self, command: Command, timeout_s: float) -> Answer:
        """Return the worker's answer.

        Raises:
            WorkerEnded: when it ends, hangs or grows too large instead of answering; it is gone then.
        """
        deadline = time.monotonic() + timeout_s
        with contextlib.suppress(BrokenPipeError):  # its end of the pipe closed: reading tells how it ended
            os.write(self._commands, command.model_dump_json().encode() + b"\n")
        while True:
            ready = self._wait()
            if self._answers in ready:
                data = os.read(self._answers, 65_536)
                if not data:
                    raise self._ended(command.kind)
                self._pending += data
                if b"\n" in self._pending:
                    line, _, self._pending = self._pending.partition(b"\n")
                    return decode(AnswerLine, line, MAX_ANSWER_BYTES).root
                if len(self._pending) > MAX_ANSWER_BYTES:
                    raise self._killed(Outcome.CRASHED, f"answered {command.kind} with over {MAX_ANSWER_BYTES} bytes")
            rss = self.resident_bytes()
            if rss > self._memory_bytes:
                raise self._killed(
                    Outcome.OUT_OF_MEMORY,
                    f"used {rss >> 20} MiB while doing {command.kind}; its limit is {self._memory_bytes >> 20} MiB",
                )
            if time.monotonic() > deadline:
                raise self._killed(Outcome.HUNG, f"gave no answer to {command.kind} within {timeout_s:.1f} s")

    def resident_bytes(self) -> int:
        """Return the worker's resident memory now, 0 when it cannot be read; remembers the greatest."""
        try:
            with open(f"/proc/{self.pid}/statm", "rb") as file:  # noqa: PTH123 - 20 times a second
                rss = int(file.read(256).split()[1]) * os.sysconf("SC_PAGESIZE")
        except (OSError, IndexError, ValueError):
            return 0
        self._peak_rss_bytes = max(self._peak_rss_bytes, rss)
        return rss

    def anonymous_bytes(self) -> int:
        """Return the worker's resident memory that is no file's, 0 when it cannot be read."""
        with contextlib.suppress(OSError, ValueError), open(f"/proc/{self.pid}/status", "rb") as file:  # noqa: PTH123
            for line in file.read(8192).splitlines():
                if line.startswith(b"RssAnon:"):
                    return int(line.split()[1]) * 1024
        return 0

    @property
    def peak_rss_bytes(self) -> int:
        """The greatest resident memory seen so far."""
        with contextlib.suppress(OSError, ValueError), open(f"/proc/{self.pid}/status", "rb") as file:  # noqa: PTH123
            for line in file.read(8192).splitlines():
                if line.startswith(b"VmHWM:"):
                    self._peak_rss_bytes = max(self._peak_rss_bytes, int(line.split()[1]) * 1024)
        return self._peak_rss_bytes

    def close(self) -> None:
        """End the worker, by closing its commands first and by a kill after that. May be called twice."""
        if not self._open:
            return
        self._close_pipe("_commands")
        deadline = time.monotonic() + _GRACE_S
        while time.monotonic() < deadline:
            if self._answers in self._wait() and not os.read(self._answers, 65_536):
                break
        self._finish(kill=True)

    def _wait(self, timeout_s: float = _TICK_S) -> list[int]:
        """Return which of our pipes have something to read, after taking in what the worker printed."""
        watched = [self._answers, self._log] if self._log_open else [self._answers]
        ready, _, _ = select.select(watched, [], [], timeout_s)
        if self._log in ready:
            data = os.read(self._log, 65_536)
            self._log_tail = (self._log_tail + data)[-_LOG_BYTES:]
            self._log_open = bool(data)
        return ready

    def _last_words(self) -> str:
        """Return the last line of the worker's log, to quote."""
        while self._log_open and self._log in self._wait(0):
            pass
        lines = [line.strip() for line in self._log_tail.decode("utf-8", "replace").splitlines() if line.strip()]
        return f"; its last words: {lines[-1][:200]}" if lines else ""

    def _killed(self, outcome: Outcome, reason: str) -> WorkerEnded:
        words = self._last_words()
        self._finish(kill=True)
        return WorkerEnded(outcome, reason + words, self._peak_rss_bytes or None)

    def _ended(self, doing: str) -> WorkerEnded:
        """Return how a worker ended that closed its pipe by itself."""
        words = self._last_words()
        status = self._finish(kill=False)
        log = self._log_tail.decode("utf-8", "replace")
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            how = f"was ended by {signal.Signals(number).name} while doing {doing}"
            memory = number == signal.SIGKILL or any(text in log for text in _ALLOCATOR_GAVE_UP)
            if memory:
                how += f" (memory limit {self._memory_bytes >> 20} MiB)"
        else:
            how = f"ended with exit status {os.waitstatus_to_exitcode(status)} while doing {doing}"
            memory = "MemoryError" in log
        return WorkerEnded(
            Outcome.OUT_OF_MEMORY if memory else Outcome.CRASHED, how + words, self._peak_rss_bytes or None
        )

    def _close_pipe(self, name: str) -> None:
        descriptor = getattr(self, name)
        if descriptor >= 0:
            os.close(descriptor)
            setattr(self, name, -1)

    def _finish(self, *, kill: bool) -> int:
        """Reap the process, killing it first if asked, close the pipes, and return its wait status."""
        if not self._open:
            return 0
        self._open = False
        status = self._nursery.reap(self.pid, kill=kill)
        self._peak_rss_bytes = max(self._peak_rss_bytes, status.peak_rss_bytes)
        for name in ("_commands", "_answers", "_log"):
            self._close_pipe(name)
        return status.wait_status


class _Reaped:
    """How a process ended."""

    def __init__(self, wait_status: int, peak_rss_bytes: int) -> None:
        self.wait_status = wait_status
        self.peak_rss_bytes = peak_rss_bytes


class Nursery:
    """A forkserver for one runtime. Use as a context manager; leaving it ends every worker."""

    def __init__(self, runtime: str, backends: Mapping[str, str] | None = None) -> None:
        self.runtime = runtime
        self.runtime_version = ""
        self._backends = dict(backends or {})
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def __enter__(self) -> Nursery:
        """Start the server.

        Raises:
            RuntimeMissing: when the runtime cannot be imported, crashes or hangs at import.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(_START_TIMEOUT_S)
        # children find the packages where we find them, as multiprocessing's do
        environment = {**os.environ, **_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        arguments = [str(theirs.fileno()), str(os.getpid()), self.runtime, json.dumps(self._backends)]
        self._server = subprocess.Popen(
            [sys.executable, "-m", "regatta_runtimes.worker.forkserver", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            env=environment,
            start_new_session=True,
        )
        theirs.close()
        self._control = ours
        try:
            hello = self._receive()
        except RuntimeMissing:
            self.close()
            raise
        if "missing" in hello:
            self.close()
            raise RuntimeMissing(str(hello["missing"]))
        self.runtime_version = str(hello["version"])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self, memory_bytes: int = DEFAULT_MEMORY_BYTES) -> WorkerProcess:
        """Return a new worker that may use `memory_bytes`.

        Raises:
            RuntimeMissing: when the server is gone.
        """
        if self._control is None:
            raise RuntimeMissing(f"the nursery of {self.runtime} is closed")
        command_read, command_write = os.pipe()
        answer_read, answer_write = os.pipe()
        log_read, log_write = os.pipe()
        message = json.dumps({"ask": "fork", "memory_bytes": memory_bytes}).encode()
        try:
            socket.send_fds(self._control, [message], [command_read, answer_write, log_write])
            pid = int(str(self._receive()["pid"]))
        except (OSError, RuntimeMissing) as err:
            for descriptor in (command_write, answer_read, log_read):
                os.close(descriptor)
            raise RuntimeMissing(f"the forkserver of {self.runtime} is gone: {err}") from err
        finally:
            for descriptor in (command_read, answer_write, log_write):
                os.close(descriptor)
        return WorkerProcess(self, pid, (command_write, answer_read, log_read), memory_bytes)

    def reap(self, pid: int, *, kill: bool) -> _Reaped:
        """Return how one of our workers ended, after killing it if asked."""
        if self._control is None:
            return _Reaped(signal.SIGKILL, 0)
        if kill:
            with contextlib.suppress(ProcessLookupError):  # not yet reaped, so the number is still its own
                os.kill(pid, signal.SIGKILL)
        try:
            self._control.send(json.dumps({"ask": "reap", "pid": pid}).encode())
            answer = self._receive()
        except (OSError, RuntimeMissing):
            return _Reaped(signal.SIGKILL, 0)
        return _Reaped(int(str(answer["status"])), int(str(answer["peak_rss_bytes"])))

    def close(self) -> None:
        """End the server and with it every worker. May be called twice."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._server is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait(_START_TIMEOUT_S)
            self._server = None

    def _receive(self) -> dict[str, object]:
        assert self._control is not None
        try:
            data = self._control.recv(65_536)
        except TimeoutError as err:
            raise RuntimeMissing(
                f"runtime {self.runtime!r} gave no sign of life within {_START_TIMEOUT_S:g} s"
            ) from err
        except OSError as err:
            raise RuntimeMissing(f"the process of runtime {self.runtime!r} broke off: {err}") from err
        if not data:
            code = self._server.wait(_GRACE_S) if self._server is not None else None
            raise RuntimeMissing(f"the process that imports runtime {self.runtime!r} ended with status {code}")
        answer = json.loads(data)
        if not isinstance(answer, dict):
            raise Rejected(f"the forkserver of {self.runtime!r} answered {data[:80]!r}")
        return answer
