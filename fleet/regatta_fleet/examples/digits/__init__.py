"""The digits model that ships with Regatta: 8 × 8 pictures of handwritten digits, ten classes.

`MODEL` and `LABELS` are files beside this module. `recipe` rebuilds the model, `data` makes evaluation and calibration
sets on demand, `damage` makes a version that is wrong on purpose, to see a gate at work.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["LABELS", "MODEL", "RECORD"]

MODEL = Path(__file__).parent / "digits_float.tflite"
LABELS = Path(__file__).parent / "labels.txt"
RECORD = Path(__file__).parent / "digits.json"
