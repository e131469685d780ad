"""Runs a small program for its output: a limit on time, on bytes, and no shell. Keeps nothing between runs."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence

from regatta_runtimes.errors import SensorFault

__all__ = ["output_of"]

_MAX_BYTES = 65_536
_QUOTE = 120


def output_of(program: Sequence[str], timeout_s: float) -> str:
    """Return what the program wrote to standard output.

    Raises:
        SensorFault: when it cannot be started, fails, says too much, or takes too long; it is killed then, with what
            it started.
    """
    name = program[0]
    try:
        child = subprocess.Popen(
            program, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
    except OSError as err:
        raise SensorFault(f"{name} cannot be started: {err.strerror}") from err
    with child:
        try:
            said, complained = _gather(child, name, timeout_s)
            status = child.wait(timeout_s)
        except subprocess.TimeoutExpired as err:
            raise SensorFault(f"{name} closed its output and was not done after {timeout_s:g} s") from err
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
    if status != 0:
        words = complained.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise SensorFault(f"{name} ended with status {status}" + (f": {words[0][:_QUOTE]}" if words else ""))
    return said.decode("utf-8", "replace")


def _gather(child: subprocess.Popen[bytes], name: str, timeout_s: float) -> tuple[bytes, bytes]:
    """Return what the child writes to its two pipes until it closes them."""
    deadline_s = time.monotonic() + timeout_s
    assert child.stdout is not None and child.stderr is not None
    texts = {child.stdout.fileno(): b"", child.stderr.fileno(): b""}
    with selectors.DefaultSelector() as selector:
        for descriptor in texts:
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map():
            left_s = deadline_s - time.monotonic()
            ready = selector.select(left_s) if left_s > 0 else []
            if not ready:
                raise SensorFault(f"{name} was not done after {timeout_s:g} s")
            for key, _ in ready:
                data = os.read(key.fd, _MAX_BYTES)
                texts[key.fd] += data
                if not data:
                    selector.unregister(key.fd)
                if len(texts[key.fd]) > _MAX_BYTES:
                    raise SensorFault(f"{name} wrote over {_MAX_BYTES} bytes where a figure was due")
    return texts[child.stdout.fileno()], texts[child.stderr.fileno()]
