"""Overhead of the serving socket over the in-process floor: `python benchmarks/bench_serving.py MODEL.tflite`.

Floor: set + invoke + get in this process. Over the socket: regatta_agent.client with binary tensors, validation and
metrics on, against a real worker process. Rounds of both are interleaved; figures are p50 of all rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from regatta_agent.client import Client
from regatta_agent.serving.spec import ServeSpec
from regatta_runtimes.candidate import parse_candidate_id
from regatta_runtimes.samples import random_inputs
from regatta_runtimes.session import open_session, quantize


def _times_us(act: Callable[[], object], count: int) -> list[float]:
    times = []
    for _ in range(count):
        began_ns = time.perf_counter_ns()
        act()
        times.append((time.perf_counter_ns() - began_ns) / 1000)
    return times


def _pss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def measure(model: Path, candidate_id: str, rounds: int, count: int, guarded: bool) -> dict[str, object]:
    """Return the figures of one model."""
    session = open_session(parse_candidate_id(candidate_id), model)
    noise = random_inputs([[spec] for spec in session.inputs], count=1, seed=0)
    sample = [
        quantize(array.reshape([max(size, 1) for size in spec.shape]), spec)
        for array, spec in zip(noise, session.inputs, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.sock"
        spec = ServeSpec(
            model="m",
            version=1,
            candidate_id=candidate_id,
            variant_path=model.resolve(),
            socket_path=path,
            guarded=guarded,
        )
        (Path(folder) / "spec.json").write_text(spec.model_dump_json(exclude_none=True))
        began = time.perf_counter()
        worker = subprocess.Popen(
            [sys.executable, "-m", "regatta_agent.serving", str(Path(folder) / "spec.json")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert worker.stdout is not None
        worker.stdout.readline()
        floor, served = [], []
        with Client(path) as client:
            client.infer("m", sample)
            first_s = time.perf_counter() - began
            for _ in range(rounds):
                floor += _times_us(lambda: session.run(sample), count)
                served += _times_us(lambda: client.infer("m", sample), count)
            pss_mb = sum(_pss_mb(pid) for pid in (worker.pid, *_children(worker.pid)))
        worker.communicate(timeout=30)
    p50_floor, p50_served = statistics.median(floor), statistics.median(served)
    return {
        "model": model.name,
        "candidate": candidate_id,
        "input_bytes": sum(array.nbytes for array in sample),
        "floor_p50_us": round(p50_floor, 1),
        "served_p50_us": round(p50_served, 1),
        "overhead_p50_us": round(p50_served - p50_floor, 1),
        "ratio": round(p50_served / p50_floor, 2),
        "served_p99_us": round(float(np.percentile(served, 99)), 1),
        "first_answer_s": round(first_s, 3),
        "pss_mb": round(pss_mb, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--candidate", default="litert/model/xnnpack/t1")
    parser.add_argument("--guarded", action="store_true", help="run the candidate in a runner, as an accelerator's")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--count", type=int, default=100)
    options = parser.parse_args()
    for model in options.models:
        print(json.dumps(measure(model, options.candidate, options.rounds, options.count, options.guarded)))


if __name__ == "__main__":
    main()
