"""The digits: scikit-learn's `load_digits` (1,797 pictures of 8 × 8, Alpaydin & Kaynak 1998), in a fixed split.

Pictures are float32 [n, 8, 8, 1] in 0..1 (scikit-learn's 0..16 over 16), labels int64 [n] in 0..9. The split comes of
numpy's RandomState, whose stream is frozen for good, so every numpy gives the same 1,257 and 540 pictures.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from regatta_protocol.durable import write_durably
from regatta_protocol.errors import Misuse

__all__ = ["Split", "calibration", "evaluation", "load"]

_SPLIT_SEED = 20
_TEST_SAMPLES = 540
_CALIBRATION_SAMPLES = 400


@dataclass(frozen=True)
class Split:
    """Pictures float32 [n, 8, 8, 1] in 0..1 and labels int64 [n]."""

    train_x: npt.NDArray[np.float32]
    train_y: npt.NDArray[np.int64]
    test_x: npt.NDArray[np.float32]
    test_y: npt.NDArray[np.int64]


def load() -> Split:
    """Return the digits, split.

    Raises:
        Misuse: when scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as err:
        raise Misuse("the digits come of scikit-learn, which is missing: pip install 'regatta-edge[optimize]'") from err
    digits = load_digits()
    pictures = (digits.images[..., np.newaxis] / 16.0).astype(np.float32)
    labels = digits.target.astype(np.int64)
    order = np.random.RandomState(_SPLIT_SEED).permutation(len(labels))
    test, train = order[:_TEST_SAMPLES], order[_TEST_SAMPLES:]
    return Split(pictures[train], labels[train], pictures[test], labels[test])


def evaluation(path: Path) -> Path:
    """Write the 540 test digits as an evaluation set (`x`, `y`), and return `path`."""
    split = load()
    return _save(path, split.test_x, split.test_y)


def calibration(path: Path) -> Path:
    """Write 400 of the training digits (`x`, `y`) for calibration and tuning, and return `path`."""
    split = load()
    return _save(path, split.train_x[:_CALIBRATION_SAMPLES], split.train_y[:_CALIBRATION_SAMPLES])


def _save(path: Path, x: npt.NDArray[np.float32], y: npt.NDArray[np.int64]) -> Path:
    content = io.BytesIO()
    np.savez_compressed(content, x=x, y=y)
    write_durably(path, content.getvalue(), mode=0o644)
    return path
