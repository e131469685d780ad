"""A session whose runtime lives in a runner process (runner.py), asked with a limit.

Whatever vendor code does there comes back as `RunnerLost` within the limit, with how the runner ended by name, and the
runner is gone by then. A runner that the kernel cannot kill (a wedged driver) is left behind and not waited for.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence

from regatta_agent.process.bytecode import inherited_flags
from regatta_agent.serving import giving_way
from regatta_agent.serving.frames import MAX_TEXT_BYTES, Channel, Frame, Kind
from regatta_agent.serving.runner import Opened, Opening
from regatta_agent.serving.spec import Contender
from regatta_agent.serving.tensors import Array
from regatta_protocol.errors import Rejected
from regatta_protocol.plain import read_json, to_json
from regatta_protocol.values import TensorSpec
from regatta_runtimes.errors import CreateFailed, InvokeFailed

__all__ = ["GuardedSession", "RunnerLost"]

_RUNNER = "regatta_agent.serving.runner"
_REAP_S = 0.1  # a killed process is gone in a millisecond, one that a driver holds stays
# one thread per library, as in the race's workers: what is measured there is what serves here
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}


class RunnerLost(InvokeFailed):
    """The runner crashed, hung, or answered what is no answer; it is gone."""


class GuardedSession:
    """A Session of another process. Used by one thread at a time."""

    def __init__(self, contender: Contender, memory_bytes: int, patience_s: float) -> None:
        """Start the runner and open the model in it.

        Args:
            contender: what to open.
            memory_bytes: what the runner may use.
            patience_s: how long an answer may take; `patience_s` of this object may be changed later.

        Raises:
            CreateFailed: when the model cannot be opened there.
            RunnerLost: when the runner crashes or hangs over it.
            OSError: when no process can be started.
        """
        self.patience_s = patience_s
        self.compute_ns = 0  # of the last inference, inside the runtime
        self._name = contender.candidate_id
        self._closed = False
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._channel = Channel(ours)
        path = os.pathsep.join(path for path in sys.path if path)
        giving_way.end()
        try:
            self._process = subprocess.Popen(
                [sys.executable, *inherited_flags(), "-m", _RUNNER, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno(),  # standard output carries the worker's events
                pass_fds=(theirs.fileno(),),
                env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": path},
            )
        except OSError:
            self._channel.close()
            raise
        finally:
            theirs.close()
        opening = Opening(
            candidate_id=contender.candidate_id,
            model_path=contender.variant_path,
            plugin=contender.plugin,
            memory_bytes=memory_bytes,
        )
        try:
            frame = self._ask(Kind.OPEN, to_json(opening), doing="opening the model")
            if frame.kind is Kind.FAILED:
                raise CreateFailed(frame.text.decode("utf-8", "replace"))
            self._opened = read_json(Opened, frame.text, MAX_TEXT_BYTES)
        except BaseException:
            self.close()
            raise

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._opened.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._opened.outputs

    @property
    def delegated_nodes(self) -> int:
        return self._opened.delegated_nodes

    @property
    def pid(self) -> int:
        """The runner's process id."""
        return self._process.pid

    def is_alive(self) -> bool:
        """Return whether the runner can be asked."""
        return not self._closed and self._process.poll() is None

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Return one array per output; see Session.

        Raises:
            Rejected: when an input cannot be passed on.
            InvokeFailed: when the runtime fails; RunnerLost when the runner is gone with it.
        """
        frame = self._ask(Kind.RUN, b"", inputs, doing="inferring")
        if frame.kind is Kind.FAILED:
            raise InvokeFailed(frame.text.decode("utf-8", "replace")[:500])
        if frame.kind is not Kind.OUTPUTS or len(frame.arrays) != len(self._opened.outputs) or not frame.text.isdigit():
            raise self._lost(f"answered with {frame.kind.name} and {len(frame.arrays)} tensors while inferring")
        for array, spec in zip(frame.arrays, self._opened.outputs, strict=True):
            if array.dtype.name != spec.dtype:
                raise self._lost(f"answered output {spec.name!r} as {array.dtype} and not {spec.dtype}")
        self.compute_ns = int(frame.text)
        return frame.arrays

    def close(self) -> None:
        """End the runner. May be called twice."""
        self._closed = True
        self._channel.close()
        if self._process.poll() is None:
            self._process.kill()
            self._reap()

    def _ask(self, kind: Kind, text: bytes, arrays: Sequence[Array] = (), *, doing: str) -> Frame:
        try:
            self._channel.send(kind, text, arrays, self.patience_s)
            return self._receive()
        except TimeoutError as err:
            raise self._lost(f"hung: no answer within {self.patience_s:g} s while {doing}") from err
        except (EOFError, OSError) as err:
            raise self._lost(f"{self._how_it_ended()} while {doing}") from err

    def _receive(self) -> Frame:
        try:
            return self._channel.receive(self.patience_s)
        except Rejected as err:
            raise self._lost(f"broke off: {err}") from err

    def _lost(self, how: str) -> RunnerLost:
        self.close()
        return RunnerLost(f"the runner of {self._name} {how}")

    def _how_it_ended(self) -> str:
        status = self._reap()
        if status is None:
            return "closed its socket"
        if status < 0:
            return f"was ended by {signal.Signals(-status).name}"
        return f"ended with exit status {status}"

    def _reap(self) -> int | None:
        try:
            return self._process.wait(_REAP_S)
        except subprocess.TimeoutExpired:
            return None
