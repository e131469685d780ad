"""A model swapped under load, again and again: `./run bench swap [MODEL.tflite]`.

Goals: none of 100,000 requests fails, and p99 during swaps is at most 1.5 times the steady one.

Four clients in processes of their own ask through the model's link, together so often a second, while its worker is
replaced every few seconds as the agent does it: the next one starts, the link is renamed, the old one drains. Latency
is from when a request was due, so one that a late answer keeps waiting counts in full. A request is *during* a swap
from the start of the new worker to the end of the old one; of the rest all are *steady*.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path[:0] = [str(Path(__file__).resolve().parent / "serving")]

from models import default_models, sample_of  # noqa: E402
from ways import Asker, regatta  # noqa: E402

CLIENTS = 4
ROUND_S = 25.0


class Swapping:
    """The clients, and the worker that their link leads to."""

    def __init__(self, model: Path, folder: Path, stack: contextlib.ExitStack) -> None:
        self._model = model
        self._folder = folder
        self._stack = stack
        self._link = folder / "m.sock"
        self._number = 0
        self._worker = self._start()
        sample_path = folder / "sample.npy"
        np.save(sample_path, sample_of(model))
        self.askers = [Asker("regatta", str(self._link), model, sample_path) for _ in range(CLIENTS)]
        for asker in self.askers:
            stack.callback(asker.close)
            asker.ready()

    def _start(self) -> contextlib.ExitStack:
        """Start the next worker, and let the link lead to it."""
        self._number += 1
        worker = self._stack.enter_context(contextlib.ExitStack())
        fresh = self._folder / "m.new"
        fresh.symlink_to(worker.enter_context(regatta(self._model, self._folder, self._number))[0])
        fresh.replace(self._link)
        return worker

    def swap(self) -> tuple[float, float, float]:
        """Return when the new worker was started, when the link led to it, and when the old one had ended."""
        began, old = time.monotonic(), self._worker
        self._worker = self._start()
        renamed = time.monotonic()
        old.close()  # its input ends: it drains
        return began, renamed, time.monotonic()


def swap_under_load(model: Path, requests: int, rate: float, pause_s: float) -> dict[str, Any]:
    """Return what clients noticed until so many requests were made."""
    swaps: list[tuple[float, float, float]] = []
    ended: list[float] = []
    took_us: list[float] = []
    failed = 0
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        swapping = Swapping(model, Path(name), stack)
        while len(took_us) + failed < requests:
            round_ends = time.monotonic() + ROUND_S
            for asker in swapping.askers:
                asker.begin(f"log {ROUND_S} {rate / CLIENTS}")
            while time.monotonic() + pause_s < round_ends:
                time.sleep(pause_s)  # the steady time, which the swaps are held against
                swaps.append(swapping.swap())
            for asker in swapping.askers:
                lost, answered = asker.done()
                failed += lost
                ended += [at for at, _ in answered]
                took_us += [us for _, us in answered]
    at, us = np.array(ended), np.array(took_us)
    starting = _within(at, [(began, renamed) for began, renamed, _ in swaps])
    draining = _within(at, [(renamed, drained) for _, renamed, drained in swaps])
    steady_us = _p99(us[~starting & ~draining])
    return {
        "model": model.stem,
        "requests": len(us) + failed,
        "failed": failed,
        "swaps": len(swaps),
        "per_second": rate or None,
        "steady_p50_us": round(float(np.median(us[~starting & ~draining])), 1),
        "steady_p99_us": steady_us,
        "swap_p99_us": _p99(us[starting | draining]),
        "of_it_starting_p99_us": _p99(us[starting]),
        "of_it_draining_p99_us": _p99(us[draining]),
        "swap_over_steady": round(_p99(us[starting | draining]) / steady_us, 2),
        "longest_us": round(float(us.max()), 1),
        "swap_s": round(float(np.median([drained - began for began, _, drained in swaps])), 2),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
    }


def _within(at: npt.NDArray[np.float64], spans: Sequence[tuple[float, float]]) -> npt.NDArray[np.bool_]:
    """Return which of the times lie in one of the spans."""
    inside = np.zeros(len(at), dtype=bool)
    for began, ended in spans:
        inside |= (at >= began) & (at < ended)
    return inside


def _p99(us: npt.NDArray[np.float64]) -> float:
    return round(float(np.percentile(us, 99)), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="with one input [KWS of ../shared/data]")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=1000.0, help="of all clients together; 0: as fast as they can")
    parser.add_argument("--pause", type=float, default=2.0, help="seconds from one swap to the next")
    options = parser.parse_args()
    model = options.model or next(iter(default_models()), None)
    if model is None:
        parser.error("there are no models beside this checkout: name one")
    print(json.dumps(swap_under_load(model, options.requests, options.rate, options.pause)))


if __name__ == "__main__":
    main()
