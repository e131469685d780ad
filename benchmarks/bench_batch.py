"""Batch mode beside the raw runtime: `./run bench batch [MODEL.tflite ...]`. Goal: at least 95 % of its throughput.

Raw: one inference after another in this process, of the same samples, on one thread. Batch: `regatta-agent batch` of
the same samples (.npy in, .npy out) by a model file, from its first record to the renamed output; the worker's start is
not in it, nor the interpreter's. Rounds of both are interleaved, and the figures are medians of all rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from regatta_agent.batch.job import Job, run_job
from regatta_agent.serving.alone import MODEL_NAME, ModelFile, serve_alone
from regatta_runtimes.candidate import parse_candidate_id
from regatta_runtimes.samples import random_inputs
from regatta_runtimes.session import open_session, quantize

_SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
_MODELS = (
    "mlperf_tiny/kws_ref_model.tflite",
    "mlperf_tiny/pretrainedResnet_quant.tflite",
    "mlperf_tiny/vww_96_int8.tflite",
    "coral/mobilenet_v2_1.0_224_quant.tflite",
)


def measure(model: Path, rounds: int, seconds: float) -> dict[str, object]:
    """Return the figures of one model; each run of a round has as many samples as take the raw runtime `seconds`."""
    session = open_session(parse_candidate_id("litert/given/xnnpack/t1"), model)
    spec = session.inputs[0]
    shape = tuple(max(size, 1) for size in spec.shape)
    kinds = 32
    noise = random_inputs([[spec]], count=kinds, seed=0)[0].reshape((kinds, *shape[1:]))
    samples = np.concatenate([quantize(noise[place : place + 1].reshape(shape), spec) for place in range(kinds)])

    def raw(count: int) -> float:
        began = time.perf_counter()
        for place in range(count):
            at = place % kinds
            session.run([samples[at : at + 1]])
        return count / (time.perf_counter() - began)

    raw(10)
    count = max(kinds, int(raw(50) * seconds) // kinds * kinds)
    rates: dict[str, list[float]] = {"raw": [], "batch": []}
    with tempfile.TemporaryDirectory() as folder, serve_alone(ModelFile(model)) as socket:
        source = Path(folder) / "x.npy"
        np.save(source, np.tile(samples, (count // kinds, *(1,) * (len(shape) - 1))))
        for number in range(rounds):
            rates["raw"].append(raw(count))
            job = Job(str(model), MODEL_NAME, socket, (str(source),), Path(folder) / f"{number}.npy")
            rates["batch"].append(run_job(job).per_second)
    raw_rate, batch_rate = (statistics.median(rates[name]) for name in ("raw", "batch"))
    return {
        "model": model.name,
        "samples": count,
        "input_bytes": samples[:1].nbytes,
        "raw_per_s": round(raw_rate, 1),
        "batch_per_s": round(batch_rate, 1),
        "share_of_raw": round(statistics.median(b / r for b, r in zip(rates["batch"], rates["raw"], strict=True)), 3),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
    }


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
