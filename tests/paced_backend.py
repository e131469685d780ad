"""A backend for tests whose model file says how long each candidate takes, or how it fails. See RaceSpec.backends.

The file is JSON: `delegate/tN` -> milliseconds of an inference (slept, so that other load hardly matters), "wrong" for
wrong outputs, or "crash". `paced_spec` makes a race of it.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from regatta_runtimes.candidate import Candidate
from regatta_runtimes.race.run import RaceSpec, RaceVariant
from regatta_runtimes.testing import FakeSession, dense
from regatta_runtimes.worker.session import Array, Session

__all__ = ["open_session", "paced_spec", "version"]

Pace = float | str


def version() -> str:
    """Return a version."""
    return "1"


def open_session(candidate: Candidate, model_path: Path) -> Session:
    """Return a session that answers its input, at the candidate's pace."""
    pace = json.loads(model_path.read_text())[f"{candidate.delegate}/t{candidate.threads}"]
    sound = dense(np.eye(4, dtype=np.float32), np.zeros(4, dtype=np.float32))

    def compute(x: Array) -> Array:
        if pace == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if pace == "wrong":
            return -x
        time.sleep(float(pace) / 1000)
        return x

    return FakeSession(sound.inputs[0], sound.outputs[0], compute)


def paced_spec(folder: Path, paces: Mapping[str, Pace], **fields: object) -> RaceSpec:
    """Return a race of a model with these paces, one and two threads, with and without xnnpack."""
    folder.mkdir(parents=True, exist_ok=True)
    model, golden = folder / "m.tflite", folder / "golden.npz"
    model.write_text(json.dumps(dict(paces)))
    x = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    np.savez(golden, **{"in.0": x, "out.v.0": x})
    base = RaceSpec(
        model="m",
        version=1,
        variants=(RaceVariant(name="v", path=str(model)),),
        golden=str(golden),
        threads=(1, 2),
        budget_s=3.0,
        runtimes=(),
        backends={"paced": "paced_backend"},
    )
    return base.model_copy(update=fields)
