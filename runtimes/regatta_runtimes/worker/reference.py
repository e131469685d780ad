"""The reference kernels: makes golden outputs with them, and holds a session's outputs against golden ones.

Only gross wrongness is called wrong here; what a candidate loses in the task is judged on the evaluation set. Sound
backends differ more than one would think, for int8 kernels round differently: see SOUND_SNR_DB.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from regatta_protocol.durable import write_durably
from regatta_protocol.errors import Rejected
from regatta_protocol.values import TensorSpec
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.errors import CreateFailed, InvokeFailed, RuntimeMissing
from regatta_runtimes.runtime import format_of, runtime_for
from regatta_runtimes.worker.samples import GoldenSet, fixed_shape, random_inputs, read_npz
from regatta_runtimes.worker.score import snr_db
from regatta_runtimes.worker.session import Array, Session, dequantize, open_session, quantize

if TYPE_CHECKING:  # what a race is asked for is nothing to a worker, which compares too
    from regatta_runtimes.worker.job import Reference

__all__ = ["SOUND_SNR_DB", "Comparison", "compare", "write_reference"]

# Between equally sound kernels of one model, outputs differ by up to this much. Measured on the ten CPU models of
# MLPerf Tiny and Coral (MobileNet v1 and v2 uint8), LiteRT 2.3 and tflite-runtime 2.14, XNNPACK on and off, one and two
# threads, on noise, zeros, a ramp and real samples, against LiteRT's reference kernels: the worst were 4.4 dB
# (MobileNetV2 uint8 on zeros), 9.0 dB (the same on a ramp) and 12.7 dB (ResNet8 int8); float models 103 dB or more.
# Unrelated outputs score about −3 dB and outputs stuck at one value 0 dB or less, so 1 dB lies between the two.
SOUND_SNR_DB = 1.0
_MIN_COMPARED = 2


@dataclass(frozen=True)
class Comparison:
    """How a session's outputs compare with the golden ones."""

    samples: int
    snr_db: float
    sound: bool
    detail: str


def compare(session: Session, golden: GoldenSet, budget_s: float) -> Comparison:
    """Return how the session's outputs compare, on at least two samples and as many as fit the budget.

    Raises:
        Rejected: when the golden outputs are not of the session's shapes, or there are none.
        InvokeFailed: when the runtime fails.
    """
    references = golden.outputs
    if references is None or len(references) != len(session.outputs):
        raise Rejected(
            f"the golden samples hold {len(references or ())} outputs and the model has {len(session.outputs)}"
        )
    deadline = time.perf_counter() + budget_s
    rows: list[list[Array]] = []
    for inputs in golden.inputs:
        outputs = session.run(inputs)
        rows.append([dequantize(output, spec) for output, spec in zip(outputs, session.outputs, strict=True)])
        if len(rows) >= _MIN_COMPARED and time.perf_counter() > deadline:
            break
    count = len(rows)
    got = [np.stack([row[j].reshape(-1) for row in rows]) for j in range(len(references))]
    want = [reference[:count].reshape(count, -1) for reference in references]
    for index, (output, reference) in enumerate(zip(got, want, strict=True)):
        if output.shape != reference.shape:
            raise Rejected(
                f"golden output {index} has {reference.shape[1]} values a sample and the model gives {output.shape[1]}"
            )
    ratio = snr_db(got, want)
    sound = ratio >= SOUND_SNR_DB
    detail = f"{ratio:.1f} dB against the reference kernels on {count} golden samples"
    return Comparison(count, ratio, sound, detail if sound else f"{detail}, below {SOUND_SNR_DB:g} dB")


def write_reference(runtime: str, command: Reference, backends: Mapping[str, str]) -> tuple[int, tuple[str, ...]]:
    """Write the golden file; return how many samples it holds and which variants no reference kernel can compute.

    Raises:
        Rejected: when samples do not fit the model, the variants differ in inputs, or none can be computed.
    """
    sessions: dict[str, Session] = {}
    skipped: list[str] = []
    reasons: list[str] = []
    for name, path in command.variants.items():
        try:
            fitting = runtime_for(format_of(Path(path)), runtime)
            sessions[name] = open_session(Candidate(fitting, name, "ref", 1), Path(path), backends)
        except (CreateFailed, RuntimeMissing) as err:
            skipped.append(name)
            reasons.append(str(err))
    if not sessions:
        raise Rejected(f"no variant can be computed by the reference kernels: {'; '.join(reasons)}")
    inputs = _inputs(command, [session.inputs for session in sessions.values()])
    count = _compute_count(command, sessions, inputs)
    arrays: dict[str, Array] = {f"in.{i}": array[:count] for i, array in enumerate(inputs)}
    for name, session in sessions.items():
        for j, column in enumerate(_outputs(session, inputs, count)):
            arrays[f"out.{name}.{j}"] = column
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_durably(Path(command.output), buffer.getvalue(), 0o644)
    return count, tuple(skipped)


def _inputs(command: Reference, specs: list[tuple[TensorSpec, ...]]) -> list[Array]:
    """Return real inputs, [n, …] float32 per input of the model: the user's samples, or seeded noise."""
    first = specs[0]
    for other in specs[1:]:
        if [fixed_shape(spec) for spec in other] != [fixed_shape(spec) for spec in first]:
            raise Rejected(
                "the variants differ in their inputs: "
                f"{[list(spec.shape) for spec in first]} and {[list(spec.shape) for spec in other]}"
            )
    if command.samples is None:
        columns = [list(column) for column in zip(*specs, strict=True)]
        return random_inputs(columns, command.count, command.seed)
    path = Path(command.samples)
    arrays = read_npz(path)
    if "x" not in arrays:
        raise Rejected(f"{path.name} holds no array x: samples are real values [n, …] for input 0")
    if len(first) != 1:
        raise Rejected(f"the model takes {len(first)} inputs and {path.name} holds samples for one")
    x = arrays["x"]
    want = int(np.prod(fixed_shape(first[0]), dtype=np.int64))
    if x.ndim < 1 or len(x) < 1 or int(np.prod(x.shape[1:], dtype=np.int64)) != want:
        raise Rejected(
            f"{path.name}: x is {list(x.shape)} and a sample of {first[0].name!r} has {list(first[0].shape)}"
        )
    chosen = np.random.default_rng(command.seed).permutation(len(x))[: command.count]
    return [np.ascontiguousarray(x[np.sort(chosen)], dtype=np.float32)]


def _compute_count(command: Reference, sessions: Mapping[str, Session], inputs: list[Array]) -> int:
    """Return how many samples fit the time budget over all variants, at least _MIN_COMPARED (or all there are)."""
    begun = time.perf_counter()
    for session in sessions.values():
        _row(session, inputs, 0)
    each_s = max(time.perf_counter() - begun, 1e-9)
    return min(len(inputs[0]), max(_MIN_COMPARED, int(command.budget_s / each_s)))


def _row(session: Session, inputs: list[Array], index: int) -> list[Array]:
    """Return the real outputs, flat, for one sample."""
    natives = [
        quantize(column[index].reshape(fixed_shape(spec)), spec)
        for column, spec in zip(inputs, session.inputs, strict=True)
    ]
    try:
        outputs = session.run(natives)
    except InvokeFailed as err:
        raise Rejected(f"the reference kernels failed on sample {index}: {err}") from err
    return [dequantize(output, spec) for output, spec in zip(outputs, session.outputs, strict=True)]


def _outputs(session: Session, inputs: list[Array], count: int) -> list[Array]:
    """Return float32 [count, …] per output; a leading size of 1 is the sample's own batch and is left out."""
    rows = [_row(session, inputs, index) for index in range(count)]
    columns = [np.stack([row[j] for row in rows]) for j in range(len(rows[0]))]
    return [column[:, 0] if column.ndim > 1 and column.shape[1] == 1 else column for column in columns]
