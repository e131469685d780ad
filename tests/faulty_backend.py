"""A backend for tests whose variants fail each in its own way. Races name it in RaceSpec.backends."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from regatta_runtimes.candidate import Candidate
from regatta_runtimes.errors import CreateFailed, InvokeFailed
from regatta_runtimes.testing import FakeSession, dense
from regatta_runtimes.worker.session import Array, Session

__all__ = ["open_session", "version"]

_WEIGHTS = np.eye(4, dtype=np.float32)
_BIAS = np.zeros(4, dtype=np.float32)
_eaten: list[Array] = []


def version() -> str:
    """Return a version."""
    return "1"


def _eat(_x: Array) -> Array:
    while True:
        _eaten.append(np.ones(1 << 21))  # 16 MiB, touched


def _hang(_x: Array) -> Array:
    threading.Event().wait()
    raise AssertionError


def _signal(number: signal.Signals) -> Callable[[Array], Array]:
    def compute(x: Array) -> Array:
        os.kill(os.getpid(), number)
        return x

    return compute


def _exit(_x: Array) -> Array:
    os.write(2, b"the vendor gave up\n")
    os._exit(3)


def _refuse(_x: Array) -> Array:
    raise InvokeFailed("the delegate refused")


def _late(fault: Callable[[Array], Array], sound_calls: int) -> Callable[[Array], Array]:
    calls = 0

    def compute(x: Array) -> Array:
        nonlocal calls
        calls += 1
        return x if calls <= sound_calls else fault(x)

    return compute


def open_session(candidate: Candidate, _model_path: Path) -> Session:
    """Return a session that misbehaves as the variant's name says."""
    sound = dense(_WEIGHTS, _BIAS)
    if candidate.variant == "create":
        raise CreateFailed("no interpreter for you")
    faults: dict[str, Callable[[Array], Array]] = {
        "segfault": _signal(signal.SIGSEGV),
        "abort": _signal(signal.SIGABRT),
        "hang": _hang,
        "eat": _eat,
        "exit": _exit,
        "invoke": _refuse,
        "wrong": lambda x: -x,
        "nan": lambda x: x * np.float32("nan"),
        "late": _late(_signal(signal.SIGSEGV), 300),
        "hang1": _late(_hang, 1),
        "hang20": _late(_hang, 20),
    }
    compute = faults.get(candidate.variant)
    return sound if compute is None else FakeSession(sound.inputs[0], sound.outputs[0], compute)
