"""What the agent costs at rest: `./run bench agent [--warm-up S] [--window S] [--served]`.

A fleet server with its broker, one enrolled device, the agent's control process at rest over mutual TLS: proportional
set size (PSS), share of one core, and the time from its start to "online", sampled every 10 s as AWS benchmarks its
device clients (default: 5 min of warm-up, a window of 10 min). With --served it serves the shipped int8 model too, and
the worker is counted apart. Beside them, in the same run: a bare Python, and paho-mqtt alone with a TLS context,
connected nowhere.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from regatta_agent.status import read_status
from regatta_fleet.demo.programs import Programs
from regatta_fleet.examples.digits import MODEL

_SAMPLE_S = 10.0
_DEADLINE_S = 60.0
_PEERS = {
    "bare Python": "import sys; print(flush=True); sys.stdin.read()",
    "paho-mqtt alone": (
        "import ssl, sys, paho.mqtt.client as m; c = m.Client(m.CallbackAPIVersion.VERSION2); "
        "c.tls_set_context(ssl.create_default_context()); print(flush=True); sys.stdin.read()"
    ),
}
_PUBLISHED = "published: Greengrass nucleus 96 MB, nucleus lite 12-16 MB (AWS's own figures)"


def pss_mb(pid: int) -> float:
    """Return the proportional set size of a process in MB of 1024 x 1024 bytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def wait(check: Callable[[], bool], what: str) -> None:
    """Return when `check` holds; end the benchmark when it does not within a minute."""
    stop = time.monotonic() + _DEADLINE_S
    while not check():
        if time.monotonic() > stop:
            sys.exit(f"gave up after {_DEADLINE_S:g} s: {what}")
        time.sleep(0.02)


def agent_of(state: Path) -> psutil.Process:
    """Return the control process that runs on a state folder."""
    found = [
        process
        for process in psutil.Process().children(recursive=True)
        if {"regatta_agent", "run", str(state)} <= set(process.cmdline())
    ]
    return found[0]


def sample(processes: dict[str, psutil.Process], window_s: float) -> dict[str, tuple[float, float]]:
    """Return for each process its mean PSS in MB and its share of one core over the window, in percent."""
    began = time.monotonic()
    busy_s = {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}
    memory: dict[str, list[float]] = {name: [] for name in processes}
    while True:
        for name, process in processes.items():
            memory[name].append(pss_mb(process.pid))
        left_s = began + window_s - time.monotonic()
        if left_s <= 0:
            break
        time.sleep(min(_SAMPLE_S, left_s))
    took_s = time.monotonic() - began
    return {
        name: (
            statistics.mean(memory[name]),
            (sum(process.cpu_times()[:2]) - busy_s[name]) / took_s * 100,
        )
        for name, process in processes.items()
    }


def serve_digits(programs: Programs, home: Path) -> None:
    """Push the shipped model and roll it out to the device."""
    programs.run("regatta_fleet", "model", "push", str(MODEL), "--name", "digits", "--home", str(home))
    programs.run("regatta_fleet", "rollout", "start", "digits:1", "--wait", "--trial", "1s", "--home", str(home))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warm-up", type=float, default=300.0, metavar="S")
    parser.add_argument("--window", type=float, default=600.0, metavar="S")
    parser.add_argument("--served", action="store_true", help="serve the shipped model too")
    arguments = parser.parse_args()
    peers = {
        name: subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for name, code in _PEERS.items()
    }
    with tempfile.TemporaryDirectory() as name, Programs(Path(name)) as programs:
        folder = Path(name)
        home, state, run = folder / "fleet", folder / "state", folder / "run"
        programs.start("server", "regatta_fleet", "up", "--home", str(home))
        wait((home / "server.json").exists, "the server answers")
        token = json.loads(
            programs.run("regatta_fleet", "device", "token", "--device", "idle", "--home", str(home), "--json")
        )["token"]
        folders = ("--state-dir", str(state), "--run-dir", str(run))
        programs.run("regatta_agent", "enroll", token, "--state-dir", str(state))
        began = time.monotonic()
        programs.start("agent", "regatta_agent", "run", *folders)

        def online() -> bool:
            said = read_status(run)
            return said is not None and said.online

        wait(online, "the agent is online")
        ready_s = time.monotonic() - began
        if arguments.served:
            serve_digits(programs, home)
        time.sleep(arguments.warm_up)
        agent = agent_of(state)
        watched = {"regatta-agent": agent} | {
            f"worker {number}": child for number, child in enumerate(agent.children(recursive=True), 1)
        }
        watched |= {name: psutil.Process(peer.pid) for name, peer in peers.items()}
        rows = sample(watched, arguments.window)
    for peer in peers.values():
        peer.kill()
        peer.wait()
    print(f"{platform.machine()}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}")
    print(f"start to online: {ready_s:.2f} s")
    print(f"{'PROCESS':20} {'PSS MB':>8} {'CPU %':>8}")
    for name, (memory_mb, share) in rows.items():
        print(f"{name:20} {memory_mb:8.1f} {share:8.3f}")
    print(_PUBLISHED)


if __name__ == "__main__":
    main()
