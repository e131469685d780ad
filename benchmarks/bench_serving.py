"""Local serving beside the in-process floor and beside peers from PyPI: `./run bench serving [MODEL.tflite …]`.

Latency: one client of each way, in rounds that are interleaved; the floor is set + invoke + get in a process alone. All
is started several times, for where a model comes to lie in memory moves its speed by some 5 %, more than many an
overhead: the figures are medians over the starts, each way's held against the floor of the same start.

Throughput: 4 and 16 client processes of each way, at the last start. Then the first answer after a start of the worker,
and its memory.

Each way sends the input's bytes as well as it can: Regatta binary tensors over its unix socket, with validation and
metrics on, and the same tensors over gRPC where the extra is installed, MLServer gRPC with raw contents, BentoML and
LitServe base64 in JSON (they take no bare bytes). Peers are installed into build/peers on first use; one that does not
install or start is left out, with the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parent / "serving")]

from models import default_models, sample_of  # noqa: E402
from ways import Asker, Unavailable, regatta, served  # noqa: E402

from regatta_agent.client import Client  # noqa: E402
from regatta_agent.serving.tensors import Array  # noqa: E402

PEERS = ("litserve", "mlserver", "bentoml")
CLIENTS = (4, 16)


def pss_mb(pid: int) -> float:
    """Return the proportional memory of a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


class Bench:
    """One model's figures; a way that fails is left out from then on, with the reason."""

    def __init__(self, model: Path, ways: Sequence[str], folder: Path, guarded: bool) -> None:
        self.model = model
        self.folder = folder
        self.sample = sample_of(model)
        self.sample_path = folder / "sample.npy"
        np.save(self.sample_path, self.sample)
        self.left_out: dict[str, str] = {}
        self._stack = contextlib.ExitStack()
        self.addresses: dict[str, str] = {}
        for way in ways:
            try:
                place = folder / way
                place.mkdir()
                self.addresses[way] = self._stack.enter_context(served(way, model, place, guarded))
            except (Unavailable, subprocess.TimeoutExpired) as err:
                self.left_out[way] = str(err)

    def close(self) -> None:
        """End every server."""
        self._stack.close()

    def asker(self, way: str) -> Asker:
        """Return a client of the way, which has had an answer."""
        one = Asker(way, self.addresses[way], self.model, self.sample_path)
        try:
            one.ready()
        except Unavailable:
            one.close()
            raise
        return one

    def latency(self, rounds: int, count: int) -> dict[str, list[float]]:
        """Return the microseconds of each way's requests, measured in turns."""
        askers: dict[str, Asker] = {}
        for way in list(self.addresses):
            try:
                askers[way] = self.asker(way)
            except Unavailable as err:
                self.left_out[way] = str(err)
                del self.addresses[way]
        times: dict[str, list[float]] = {way: [] for way in askers}
        for _ in range(rounds):
            for way, asker in askers.items():
                asker.begin(f"times {count}")
                times[way] += asker.done()
        for asker in askers.values():
            asker.close()
        return times

    def throughput(self, way: str, clients: int, seconds: float) -> tuple[float, int]:
        """Return how many requests a second were answered, and how many failed."""
        askers = [self.asker(way) for _ in range(clients)]
        for asker in askers:
            asker.begin(f"count {seconds}")
        done = [asker.done() for asker in askers]
        for asker in askers:
            asker.close()
        return sum(answered for answered, _ in done) / seconds, int(sum(failed for _, failed in done))


def start(model: Path, folder: Path, sample: Array) -> tuple[float, float]:
    """Return how long from a worker's start to the first answer, and its memory then, in seconds and MB."""
    began = time.perf_counter()
    with regatta(model, folder) as (address, pid), Client(address) as client:
        client.infer("m", [sample])
        return time.perf_counter() - began, pss_mb(pid)


def measure(model: Path, options: argparse.Namespace, ways: Sequence[str]) -> dict[str, Any]:
    """Return the figures of one model."""
    floors: list[float] = []
    overheads: dict[str, list[float]] = {}
    p99s: dict[str, list[float]] = {}
    rates: dict[str, dict[str, float]] = {}
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        for number in range(options.starts):
            folder = Path(name) / str(number)
            folder.mkdir()
            bench = Bench(model, [way for way in ways if way not in left_out], folder, options.guarded)
            try:
                times = bench.latency(options.rounds, options.count)
                floors.append(statistics.median(times.pop("floor")))
                for way, found in times.items():
                    overheads.setdefault(way, []).append(statistics.median(found) - floors[-1])
                    p99s.setdefault(way, []).append(float(np.percentile(found, 99)))
                if number == options.starts - 1:
                    rates = {
                        way: {
                            f"per_second_{clients}": round(bench.throughput(way, clients, options.seconds)[0], 1)
                            for clients in options.clients
                        }
                        for way in times
                    }
            finally:
                bench.close()
                left_out |= bench.left_out
        alone = Path(name) / "alone"
        alone.mkdir()
        starts = [start(model, alone, bench.sample) for _ in range(5)]
    return {
        "model": model.stem,
        "input_bytes": bench.sample.nbytes,
        "floor_p50_us": round(statistics.median(floors), 1),
        "left_out": left_out,
        "ways": {
            way: {
                "overhead_p50_us": round(statistics.median(found), 1),
                "of_starts_us": [round(one, 1) for one in found],
                "p99_us": round(statistics.median(p99s[way]), 1),
                **rates.get(way, {}),
            }
            for way, found in overheads.items()
        },
        "first_answer_s": round(statistics.median(seconds for seconds, _ in starts), 3),
        "pss_mb": round(statistics.median(memory for _, memory in starts), 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, help="with one input each [those of ../shared/data]")
    parser.add_argument("--peers", default=",".join(PEERS), help="names, separated by commas; '' for none")
    parser.add_argument(
        "--guarded", action="store_true", help="run Regatta's candidate in a runner, as an accelerator's"
    )
    parser.add_argument("--starts", type=int, default=3, help="of all ways, one after the other")
    parser.add_argument("--rounds", type=int, default=6, help="in each of the starts")
    parser.add_argument("--count", type=int, default=100, help="requests of each way in a round")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement of throughput")
    parser.add_argument("--clients", type=int, nargs="*", default=CLIENTS, help="of the measurements of throughput")
    options = parser.parse_args()
    if options.starts < 1:
        parser.error("--starts: one at least")
    ours = ["regatta"] if find_spec("grpc") is None else ["regatta", "regatta-grpc"]
    models = options.models or default_models()
    if not models:
        parser.error("there are no models beside this checkout: name some")
    for model in models:
        print(json.dumps(measure(model, options, ["floor", *ours, *filter(None, options.peers.split(","))])))


if __name__ == "__main__":
    main()
