"""Golden samples and evaluation sets: reading the .npz files of manifest.py, within limits and without pickles.

Sample k of an array [n, …] is shaped to the tensor it feeds, whose changeable sizes count as 1.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regatta_protocol.errors import Rejected, TooLarge
from regatta_protocol.values import TensorSpec
from regatta_runtimes.worker.session import Array, quantize

__all__ = [
    "EvaluationSet",
    "GoldenSet",
    "fixed_shape",
    "noise",
    "random_inputs",
    "read_evaluation",
    "read_golden",
    "read_npz",
]

MAX_INFLATED_BYTES = 512 * 1024 * 1024  # the boards' smallest memory is 512 MB; sets are a few MB


@dataclass(frozen=True)
class GoldenSet:
    """`inputs[k][i]`: native input i of sample k. `outputs[j]`: float32 [n, …], or None for an unknown variant."""

    inputs: list[list[Array]]
    outputs: list[Array] | None


@dataclass(frozen=True)
class EvaluationSet:
    """`x`: real values, float32 [n, …]; `y`: int64 [n] labels."""

    x: Array
    y: Array

    def sample(self, index: int, spec: TensorSpec) -> Array:
        """Return native input 0 of one sample."""
        return quantize(self.x[index].reshape(fixed_shape(spec)), spec)


def fixed_shape(spec: TensorSpec) -> tuple[int, ...]:
    """Return the shape with changeable sizes as 1."""
    return tuple(1 if size < 0 else size for size in spec.shape)


def read_npz(path: Path) -> dict[str, Array]:
    """Return the arrays of an .npz file.

    Raises:
        TooLarge: when they are over MAX_INFLATED_BYTES.
        Rejected: when it is no .npz file, is cut off, or holds pickled objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            inflated = sum(entry.file_size for entry in archive.infolist())
            if inflated > MAX_INFLATED_BYTES:
                raise TooLarge(f"{path.name} holds {inflated} bytes of arrays, over the limit of {MAX_INFLATED_BYTES}")
        with np.load(path, allow_pickle=False) as archive_of_arrays:
            return {name: archive_of_arrays[name] for name in archive_of_arrays.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, NotImplementedError) as err:
        raise Rejected(f"{path.name} is no readable .npz file of plain arrays: {err}") from err


def _check_size(array: Array, spec: TensorSpec, what: str, path: Path) -> None:
    """Raise Rejected unless each sample of `array` holds as many values as the tensor."""
    want = int(np.prod(fixed_shape(spec), dtype=np.int64))
    if array.ndim < 1 or array.shape[0] < 1 or array.dtype.kind not in "fiub":
        raise Rejected(
            f"{path.name}: {what} must be an array of numbers [n, …] and is {array.dtype}{list(array.shape)}"
        )
    got = int(np.prod(array.shape[1:], dtype=np.int64))
    if got != want:
        raise Rejected(
            f"{path.name}: a sample of {what} has shape {list(array.shape[1:])} ({got} values), "
            f"but tensor {spec.name!r} has {list(spec.shape)} ({want} values)"
        )


def read_golden(path: Path, variant: str, inputs: Sequence[TensorSpec]) -> GoldenSet:
    """Return the golden samples for a model with these inputs.

    Raises:
        Rejected: when the file is unreadable or its shapes are not the model's.
    """
    arrays = read_npz(path)
    columns: list[Array] = []
    for index, spec in enumerate(inputs):
        column = arrays.get(f"in.{index}")
        if column is None:
            raise Rejected(f"{path.name} lacks in.{index}: the model takes {len(inputs)} inputs")
        _check_size(column, spec, f"in.{index}", path)
        columns.append(column)
    count = min(len(column) for column in columns)
    samples = [
        [quantize(column[k].reshape(fixed_shape(spec)), spec) for column, spec in zip(columns, inputs, strict=True)]
        for k in range(count)
    ]
    outputs: list[Array] = []
    while (output := arrays.get(f"out.{variant}.{len(outputs)}")) is not None:
        if output.ndim < 1 or len(output) < count:
            raise Rejected(f"{path.name}: out.{variant}.{len(outputs)} has fewer samples than in.0 ({count})")
        outputs.append(output)
    return GoldenSet(samples, outputs or None)


def read_evaluation(path: Path, spec: TensorSpec) -> EvaluationSet:
    """Return the evaluation set for a model whose input 0 is `spec`.

    Raises:
        Rejected: when the file is unreadable, or its shapes or labels do not fit.
    """
    arrays = read_npz(path)
    if "x" not in arrays or "y" not in arrays:
        raise Rejected(f"{path.name} must hold x and y and holds {', '.join(sorted(arrays)) or 'nothing'}")
    x, y = arrays["x"], arrays["y"]
    _check_size(x, spec, "x", path)
    if y.shape != (x.shape[0],) or y.dtype.kind not in "iu":
        raise Rejected(
            f"{path.name}: y must be integers [{x.shape[0]}], one per sample of x, and is {y.dtype}{list(y.shape)}"
        )
    return EvaluationSet(x, y)


def real_range(specs: Sequence[TensorSpec]) -> tuple[float, float]:
    """Return the range of real values that one input takes, over the variants that have it.

    A quantized tensor states its range; a float one does not, and [−1, 1] stands for it. Unquantized integers are
    likely indices: [0, 7], small enough for any table; uint8 without a scale is taken for pixels.
    """
    for spec in specs:
        if spec.scale is not None:
            info = np.iinfo(np.dtype(spec.dtype))
            zero_point = spec.zero_point or 0
            return (info.min - zero_point) * spec.scale, (info.max - zero_point) * spec.scale
    kind = np.dtype(specs[0].dtype)
    if kind.kind == "f":
        return -1.0, 1.0
    if kind.kind == "b":
        return 0.0, 1.0
    return (0.0, 255.0) if kind == np.uint8 else (0.0, 7.0)


def random_inputs(specs_of_input: Sequence[Sequence[TensorSpec]], count: int, seed: int) -> list[Array]:
    """Return seeded noise, float32 [count, …] per input, uniform over each input's real range.

    Args:
        specs_of_input: for each input, its spec in every variant.
    """
    generator = np.random.default_rng(seed)
    arrays: list[Array] = []
    for specs in specs_of_input:
        low, high = real_range(specs)
        shape = fixed_shape(specs[0])
        body = shape[1:] if shape and shape[0] == 1 else shape
        values = generator.uniform(low, high, size=(count, *body))
        integral = np.dtype(specs[0].dtype).kind in "iub" and specs[0].scale is None
        arrays.append((np.rint(values) if integral else values).astype(np.float32))
    return arrays


def noise(inputs: Sequence[TensorSpec]) -> list[Array]:
    """Return one seeded native input of the right shape per input of the model."""
    reals = random_inputs([[spec] for spec in inputs], count=1, seed=0)
    return [quantize(real.reshape(fixed_shape(spec)), spec) for real, spec in zip(reals, inputs, strict=True)]
