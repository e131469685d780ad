"""Batch mode beside the raw runtime: `./run bench batch [MODEL.tflite ...]`. Goal: at least 95 % of its throughput.

Raw is a bare loop in this process, on one thread: each sample is set, invoked and got, with what surrounds a stack done
once, as in the worker. It is measured twice: over samples that lie in memory (and in the processor's caches), which is
the runtime alone, and over the mapped .npy file that the batch job reads, which is the best that a program without a
worker can do. Batch is `regatta-agent batch` of the same records (.npy in, .npy out) by a model file, on one thread
too, from its first record to the renamed output; the worker's start is not in it, nor the interpreter's. Rounds of the
three are interleaved, and the figures are medians of all rounds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from regatta_agent.batch.job import Job, run_job
from regatta_agent.serving.alone import MODEL_NAME, ModelFile, serve_alone
from regatta_runtimes.candidate import parse_candidate_id
from regatta_runtimes.worker.samples import random_inputs
from regatta_runtimes.worker.session import Array, Session, open_session, quantize, run_each

_SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
_MODELS = (
    "mlperf_tiny/kws_ref_model.tflite",
    "mlperf_tiny/pretrainedResnet_quant.tflite",
    "mlperf_tiny/vww_96_int8.tflite",
    "coral/mobilenet_v2_1.0_224_quant.tflite",
)
_KINDS = 32  # samples that differ
_FILE_BYTES = 64 * 1024 * 1024  # of the records' file, which is read again and again: a gigabyte would time the disk


def measure(model: Path, rounds: int, seconds: float) -> dict[str, object]:
    """Return the figures of one model; each run of a round has as many samples as take the raw runtime `seconds`."""
    session = _opened(model)
    samples = _samples(session)
    _rate(session, [samples[:10]])
    wanted = int(_rate(session, [samples] * 2) * seconds)
    each = max(1, min(wanted, _FILE_BYTES // samples[:1].nbytes) // _KINDS)
    times = max(1, round(wanted / (each * _KINDS)))
    rates: dict[str, list[float]] = {"memory": [], "file": [], "batch": []}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "x.npy"
        np.save(source, np.tile(samples, (each, *(1,) * (samples.ndim - 1))))
        os.sync()  # else the disk would be at it while the first rounds are measured
        mapped = np.load(source, mmap_mode="r").view(np.ndarray)
        for number in range(rounds):
            session = _opened(model)  # and a worker of its own: where a model comes to lie moves its speed by some 5 %
            rates["memory"].append(_rate(session, itertools.repeat(samples, each * times)))
            rates["file"].append(_rate(session, itertools.repeat(mapped, times)))
            with serve_alone(ModelFile(model)) as socket:
                job = Job(str(model), MODEL_NAME, socket, (str(source),) * times, Path(folder) / f"{number}.npy")
                rates["batch"].append(run_job(job).per_second)
    return {
        "model": model.name,
        "samples": each * _KINDS * times,
        "input_bytes": samples[:1].nbytes,
        "raw_per_s": round(statistics.median(rates["memory"]), 1),
        "raw_from_file_per_s": round(statistics.median(rates["file"]), 1),
        "batch_per_s": round(statistics.median(rates["batch"]), 1),
        "share_of_raw": _share(rates["batch"], rates["memory"]),
        "share_of_raw_from_file": _share(rates["batch"], rates["file"]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
    }


def _opened(model: Path) -> Session:
    return open_session(parse_candidate_id("litert/given/xnnpack/t1"), model)


def _samples(session: Session) -> Array:
    """Return samples of noise in the model's own dtype, [kinds, …]."""
    spec = session.inputs[0]
    shape = tuple(max(size, 1) for size in spec.shape)
    noise = random_inputs([[spec]], count=_KINDS, seed=0)[0].reshape((_KINDS, *shape[1:]))
    return np.concatenate([quantize(noise[place : place + 1].reshape(shape), spec) for place in range(_KINDS)])


def _rate(session: Session, stacks: Iterable[Array]) -> float:
    """Return the samples a second of a bare loop over stacks of them."""
    began, count = time.perf_counter(), 0
    for stack in stacks:
        for _ in run_each(session, [stack]):
            count += 1
    return count / (time.perf_counter() - began)


def _share(rates: list[float], of: list[float]) -> float:
    """Return the median over the rounds of one rate's share of another's."""
    return round(statistics.median(rate / whole for rate, whole in zip(rates, of, strict=True)), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="*", default=[_SHARED / name for name in _MODELS])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    for model in arguments.models:
        print(json.dumps(measure(model, arguments.rounds, arguments.seconds)))


if __name__ == "__main__":
    main()
