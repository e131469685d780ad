"""Runs a model file of any precision on samples and returns its real answers. Only in the optimizer's child process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from regatta_runtimes.candidate import Candidate
from regatta_runtimes.worker.session import dequantize, open_session, quantize

__all__ = ["real_answers"]

Floats = npt.NDArray[np.float32]


def real_answers(model: Path, samples: Floats) -> Floats:
    """Return output 0 in real values, float32 [n, …], in LiteRT with XNNPACK on one thread.

    Args:
        samples: real values [n, …] for input 0.

    Raises:
        Rejected: when the runtime refuses the file or a sample.
    """
    session = open_session(Candidate("litert", "model", "xnnpack", 1), model)
    try:
        place = session.inputs[0]
        shape = tuple(max(size, 1) for size in place.shape)
        found: list[Floats] = []
        for sample in samples:
            native = session.run([quantize(sample.reshape(shape), place)])[0]
            found.append(dequantize(native, session.outputs[0])[0].astype(np.float32))
    finally:
        session.close()
    return np.stack(found)
