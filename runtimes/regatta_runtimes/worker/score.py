"""How far outputs are from the reference, and whether answers are right. numpy, no files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from regatta_runtimes.worker.session import Array

__all__ = ["MAX_SNR_DB", "is_correct", "snr_db"]

MAX_SNR_DB = 120.0  # equal to the last bit is reported as this, for infinity is no JSON number


def snr_db(outputs: Sequence[Array], references: Sequence[Array]) -> float:
    """Return the signal-to-noise ratio in dB, the worst over the outputs.

    Args:
        outputs: real values, one float array [n, …] per output.
        references: the same shapes.

    Per output: 10·log10(Σ (r − mean r)² / Σ (o − r)²). The mean is taken out, so that an output stuck at the
    reference's mean scores 0 dB and not the power of the offset. Not-finite outputs score −MAX_SNR_DB.
    """
    worst = MAX_SNR_DB
    for output, reference in zip(outputs, references, strict=True):
        if not np.isfinite(output).all():
            return -MAX_SNR_DB
        expected = np.asarray(reference, dtype=np.float64)
        noise = float(np.sum((np.asarray(output, dtype=np.float64) - expected) ** 2))
        signal = float(np.sum((expected - expected.mean()) ** 2))
        if noise == 0.0:
            continue
        if signal == 0.0:  # a constant reference: measure against its size instead
            signal = float(np.sum(expected**2)) or 1.0
        worst = min(worst, 10.0 * float(np.log10(signal / noise)))
    return max(worst, -MAX_SNR_DB)


def is_correct(output: Array, label: int) -> bool:
    """Return whether the greatest of the first output's values is at the label's place (top-1)."""
    return int(np.argmax(output.reshape(-1))) == label
