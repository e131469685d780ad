"""A backend for tests whose inferences end only while a gate is open: the file `<model file>.open` is there."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from regatta_runtimes.candidate import Candidate
from regatta_runtimes.testing import FakeSession, dense
from regatta_runtimes.worker.session import Array, Session

__all__ = ["GATED_WORKER", "gate_of", "open_session", "version"]

# The program of a serving worker that knows this backend, as candidate gated/VARIANT/none/t1.
GATED_WORKER = (
    "-c",
    "import os, sys; from regatta_runtimes.worker import session; session.BACKENDS['gated'] = 'gated_backend';"
    "from regatta_agent.serving.worker import main; os._exit(main(sys.argv[1:], 0))",
)

_LONGEST_S = 30.0
_LOOK_S = 0.002


def gate_of(model_path: Path) -> Path:
    """Return the file that opens the gate."""
    return model_path.with_name(model_path.name + ".open")


def version() -> str:
    """Return a version."""
    return "1"


def open_session(_candidate: Candidate, model_path: Path) -> Session:
    """Return a session that answers its input."""
    sound, gate = dense(np.eye(4, dtype=np.float32), np.zeros(4, dtype=np.float32)), gate_of(model_path)

    def compute(x: Array) -> Array:
        deadline = time.monotonic() + _LONGEST_S
        while not gate.exists() and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
        return x

    return FakeSession(sound.inputs[0], sound.outputs[0], compute)
