"""Samples for tuning and evaluation: an `.npz` of the user's, checked and brought to real values.

Arrays of the file: `x` [n, …], optionally labels `y` [n], and `scale` with `zero_point` when `x` is quantized:
real = (x − zero_point) · scale.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from regatta_protocol.durable import write_durably
from regatta_protocol.errors import Rejected
from regatta_runtimes.worker.samples import read_npz
from regatta_runtimes.worker.session import Array

__all__ = ["Samples", "check_labels", "check_shape", "read_samples", "split_samples", "write_samples"]


@dataclass(frozen=True)
class Samples:
    """Real values float32 [n, …] for input 0, and labels int64 [n] where they are known."""

    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.x)

    def chosen(self, places: npt.NDArray[np.bool_]) -> Samples:
        """Return the samples where `places` [n] holds."""
        return Samples(self.x[places], None if self.y is None else self.y[places])

    def joined(self, other: Samples) -> Samples:
        """Return these and the others after them; labels where both have them."""
        labels = None if self.y is None or other.y is None else np.concatenate([self.y, other.y])
        return Samples(np.concatenate([self.x, other.x]), labels)


def read_samples(path: Path) -> Samples:
    """Return the samples in the `.npz` file.

    Raises:
        Rejected: when it is no such file, is empty, or holds NaN or infinite values; the text names the array.
        TooLarge: when it inflates to over 512 MiB, more than devices read.
    """
    arrays = read_npz(path)
    if "x" not in arrays:
        raise Rejected(f"{path} has no array 'x' (it has {sorted(arrays)}): save it with numpy.savez(path, x=…, y=…)")
    raw = arrays["x"]
    if raw.ndim < 2 or raw.size == 0 or raw.dtype.kind not in "fiu":
        raise Rejected(f"{path}: 'x' is {raw.dtype} of shape {list(raw.shape)}: give numbers of shape [samples, …]")
    if ("scale" in arrays) != ("zero_point" in arrays):
        raise Rejected(f"{path} has only one of 'scale' and 'zero_point': give both or none")
    x = raw.astype(np.float32)
    if "scale" in arrays:
        x = (x - _number(path, arrays, "zero_point")) * _number(path, arrays, "scale")
    if not np.isfinite(x).all():
        first = int(np.argwhere(~np.isfinite(x))[0][0])
        raise Rejected(f"{path}: 'x' holds NaN or infinite values, first in sample {first}: remove these samples")
    return Samples(x, _labels(path, arrays, len(x)))


def write_samples(path: Path, samples: Samples) -> None:
    """Write real values and labels as the manifest describes an evaluation set."""
    content = io.BytesIO()
    arrays = {"x": samples.x} if samples.y is None else {"x": samples.x, "y": samples.y}
    np.savez_compressed(content, **arrays)
    write_durably(path, content.getvalue(), mode=0o644)


def split_samples(samples: Samples) -> tuple[Samples, Samples]:
    """Return the samples in turn: every even one for tuning, every odd one for evaluation.

    Raises:
        Rejected: when there are not two.
    """
    if len(samples) < 2:
        raise Rejected(f"{len(samples)} sample cannot serve both tuning and evaluation: give more, or two files")
    even = np.arange(len(samples)) % 2 == 0
    return samples.chosen(even), samples.chosen(~even)


def check_shape(samples: Samples, shape: Sequence[int], source: str) -> None:
    """Refuse samples that do not fit an input of `shape` [1, …], where -1 fits any size.

    Raises:
        Rejected: naming both shapes.
    """
    found = samples.x.shape[1:]
    wanted = tuple(shape[1:])
    if len(found) != len(wanted) or any(want not in (-1, have) for have, want in zip(found, wanted, strict=True)):
        raise Rejected(
            f"{source}: 'x' has samples of shape {list(found)}, the model's input wants {list(wanted)}: "
            "give samples as the model was trained with"
        )


def check_labels(samples: Samples, classes: int, source: str) -> None:
    """Refuse labels that the model cannot answer.

    Raises:
        Rejected: naming the label.
    """
    if samples.y is not None and len(samples.y) and int(samples.y.max()) >= classes:
        raise Rejected(f"{source}: 'y' holds label {int(samples.y.max())}, the model has classes 0 to {classes - 1}")


def _number(path: Path, arrays: dict[str, Array], name: str) -> np.float32:
    values = arrays[name]
    if values.size != 1 or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise Rejected(f"{path}: '{name}' is {values.dtype} of shape {list(values.shape)}: give one finite number")
    number = np.float32(values.reshape(-1)[0])
    if name == "scale" and not number > 0:
        raise Rejected(f"{path}: 'scale' is {number}: it must be above 0")
    return number


def _labels(path: Path, arrays: dict[str, Array], count: int) -> npt.NDArray[np.int64] | None:
    if "y" not in arrays:
        return None
    y = arrays["y"]
    if y.shape != (count,) or y.dtype.kind not in "iu":
        raise Rejected(f"{path}: 'y' is {y.dtype} of shape {list(y.shape)}: give {count} whole numbers, one a sample")
    if int(y.min()) < 0:
        raise Rejected(f"{path}: 'y' holds label {int(y.min())}: labels count from 0")
    return y.astype(np.int64)
