"""How long clients wait when a placement fails, and whether they lose anything: `./run bench failover`.

Clients ask without a pause while a fault is made. On an accelerator (the C test delegate, in its runner): a crash, an
abort, an inference that fails, a hang, SIGKILL to the runner, 100 times slower. On the processor: SIGKILL to the whole
worker, under the agent's own loop. For each: the first answer after the fault, the longest time without any answer,
when another candidate served (degraded) and the winner again (recovered), and how many requests were lost: 0 is the
goal, and under 1 s without an answer.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import queue
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests")]  # the rigs that the tests use

from accelerator import Accelerator, build_delegate  # noqa: E402
from device_rig import MODEL  # noqa: E402
from load import Load  # noqa: E402
from polling import wait_until  # noqa: E402
from real_rig import RealRig, push  # noqa: E402
from regatta_agent.serving.events import Degraded, Recovered  # noqa: E402
from regatta_agent.serving.spec import Contender, ServeLimits, ServeSpec  # noqa: E402
from regatta_protocol.values import Latency  # noqa: E402
from regatta_runtimes.worker.golden import write_golden  # noqa: E402
from serving_process import ServingProcess  # noqa: E402
from tiny_models import unary_model  # noqa: E402

X = np.array([[-1.0, 2.0, -3.0, 4.0]], np.float32)
RACED = Latency(samples=100, p50_us=200.0, p90_us=300.0, p99_us=400.0)
FAULTS = ("segfault_late", "abort_late", "invoke", "hang_late", "slow")
AFTER_S = 1.0  # of load after the fault is over


@dataclass(frozen=True)
class Row:
    """One fault. Times in milliseconds from the fault; None where the fault has no such event."""

    placement: str
    fault: str
    first_answer_ms: float
    longest_gap_ms: float
    degraded_ms: float | None
    recovered_ms: float | None
    answered: int
    lost: int
    wrong: int


def on_accelerator(folder: Path, library: Path, fault: str, clients: int) -> Row:
    """Return the row of a fault of a runner's vendor code; "killed" is SIGKILL to the runner."""
    accelerator = Accelerator(library, folder / "fault")
    model, golden = folder / "abs.tflite", folder / "golden.npz"
    model.write_bytes(unary_model())
    write_golden({"float32": model}, golden, count=4)
    spec = ServeSpec(
        model="abs",
        version=1,
        candidate_id="litert/float32/test/t1",
        variant_path=model,
        plugin=accelerator.plugin,
        latency=RACED,
        standbys=(Contender(candidate_id="litert/float32/none/t1", variant_path=model, latency=RACED),),
        golden_path=golden,
        socket_path=folder / "abs.sock",
        limits=ServeLimits(retry_base_s=0.5, retry_cap_s=0.5),
    )
    worker = ServingProcess(spec, folder)
    try:
        worker.ready()
        load = Load(spec.socket_path, "abs", X, clients, np.abs(X))
        load.start()
        wait_until(lambda: len(load.answered_at) > 200, 30.0, "requests are answered")
        at = time.monotonic()
        if fault == "killed":
            os.kill(_runner_of(worker.process.pid), signal.SIGKILL)
        else:
            accelerator.breaks(fault)
        degraded_at = _next(worker, Degraded)
        accelerator.heals()
        recovered_at = _next(worker, Recovered)
        wait_until(lambda: load.answered_at[-1] > recovered_at + AFTER_S, 30.0, "the winner answers")
        load.end()
    finally:
        worker.kill()
    return _row("accelerator", fault, load, at, degraded_at, recovered_at)


def on_processor(folder: Path, clients: int) -> Row:
    """Return the row of a worker that is killed while the agent's loop runs."""
    rig = RealRig(folder, race_budget_s=4.0, race_threads=[1], telemetry_period_s=1.0)
    rig.start()
    try:
        push(rig, folder, 1)
        rig.fleet.assign(1, trial_s=0.2)
        if not rig.live(lambda: rig.state(1) == "committed"):
            raise SystemExit(f"the model was not installed: {rig.install(1)}")
        sample = np.zeros((1, 8, 8, 1), np.float32)
        load = Load(rig.config.run_dir / f"{MODEL}.sock", MODEL, sample, clients)
        load.start()
        rig.live(lambda: len(load.answered_at) > 200)
        at = time.monotonic()
        os.kill(rig.worker_pid(), signal.SIGKILL)
        rig.live(lambda: load.answered_at[-1] > at + 1.0 + AFTER_S)
        load.end()
    finally:
        rig.loop.stopping = "the benchmark is over"
        rig.loop.stop()
        rig.processes.close()
    return _row("processor", "worker killed", load, at, None, None)


def _next(worker: ServingProcess, kind: type[Degraded] | type[Recovered]) -> float:
    """Return when the worker says so."""
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        try:
            event = worker.next_event(5.0)
        except queue.Empty:
            continue
        if isinstance(event, kind):
            return time.monotonic()
        if event is None:
            break
    raise SystemExit(f"the worker never said {kind.__name__}: {worker.stderr.decode()[-2000:]}")


def _runner_of(pid: int) -> int:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return next(int(child) for task in tasks for child in (task / "children").read_text().split())


def _row(
    placement: str, fault: str, load: Load, at: float, degraded_at: float | None, recovered_at: float | None
) -> Row:
    def since(time_s: float | None) -> float | None:
        return None if time_s is None else round((time_s - at) * 1000, 1)

    first = min((answer for answer in load.answered_at if answer > at), default=float("inf"))
    return Row(
        placement, fault, round((first - at) * 1000, 1), round(load.longest_gap_s(at) * 1000, 1), since(degraded_at),
        since(recovered_at), len(load.answered_at), len(load.errors), load.wrong,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="./run bench failover", description=__doc__)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print every round as a line of JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases: list[Callable[[Path], Row]] = [lambda path: on_processor(path, options.clients)]
        library = build_delegate(folder)
        if library is None:
            print("gcc is not installed, so there is no accelerator to fail", file=sys.stderr)
        else:
            for fault in (*FAULTS, "killed"):
                cases.append(lambda path, fault=fault: on_accelerator(path, library, fault, options.clients))  # type: ignore[misc]
        lost = 0
        if not options.json:
            print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; medians (worst)")
            print(
                f"{'on':12}{'fault':16}{'first ms':>10}{'gap ms':>18}{'degraded ms':>13}{'recovered ms':>14}{'lost':>6}"
            )
        for number, case in enumerate(cases):
            rows = []
            for round_number in range(options.rounds):
                path = folder / f"{number}-{round_number}"
                path.mkdir()
                rows.append(case(path))
            lost += sum(row.lost + row.wrong for row in rows)
            if options.json:
                for row in rows:
                    print(json.dumps(asdict(row)))
            else:
                _print(rows)
    raise SystemExit(1 if lost else 0)


def _print(rows: list[Row]) -> None:
    def median(values: list[float | None]) -> str:
        known = [value for value in values if value is not None]
        return f"{statistics.median(known):.0f}" if known else "-"

    gaps = [row.longest_gap_ms for row in rows]
    gap = f"{statistics.median(gaps):.0f} ({max(gaps):.0f})"
    first = median([row.first_answer_ms for row in rows])
    degraded, recovered = median([row.degraded_ms for row in rows]), median([row.recovered_ms for row in rows])
    lost = sum(row.lost + row.wrong for row in rows)
    print(_line(rows[0].placement, rows[0].fault, first, gap, degraded, recovered, str(lost)))


def _line(on: str, fault: str, first: str, gap: str, degraded: str, recovered: str, lost: str) -> str:
    return f"{on:12}{fault:16}{first:>10}{gap:>14}{degraded:>13}{recovered:>14}{lost:>6}"


if __name__ == "__main__":
    main()
