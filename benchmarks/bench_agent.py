"""What the agent costs at rest: `./run bench agent [--served] [--quick | --warm-up S --window S]`.

A fleet server with its broker, one enrolled device, the agent's control process at rest over mutual TLS, started with
the environment of its unit and with bytecode that is compiled as `regatta-agent install` does: proportional set size
(PSS), share of one core, and the time from its start to ready and to online, sampled every 10 s as AWS benchmarks its
device clients (default: 5 min of warm-up, a window of 10 min; --quick: 10 s and 20 s). With --served it serves the
shipped digits model in int8 too, and the worker is counted apart. Beside them, in the same run: a bare Python, and
paho-mqtt alone with a TLS context, connected nowhere. At the end it tells what fresh processes hold as they import what
the agent and a worker need, step by step, and the least that a worker can be: numpy with LiteRT and an open model.

PSS counts a page that n processes map as 1/n of a page. Of "files", the code of Python and its libraries, more counts
where no other Python runs: "alone" is what PSS is then (RSS), of which all but "anonymous" are pages of files that the
kernel may drop and read again.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil

from regatta_agent.process.bytecode import FOLDER_VARIABLE, flags_for
from regatta_agent.process.compiler import compile_ahead
from regatta_agent.status import read_status
from regatta_fleet.demo.programs import Programs
from regatta_fleet.examples.digits import MODEL
from regatta_fleet.examples.digits.data import calibration

_SAMPLE_S = 10.0
_DEADLINE_S = 60.0
_PEERS = {
    "bare Python": "import sys; print(flush=True); sys.stdin.read()",
    "paho-mqtt alone": (
        "import ssl, sys, paho.mqtt.client as m; c = m.Client(m.CallbackAPIVersion.VERSION2); "
        "c.tls_set_context(ssl.create_default_context()); print(flush=True); sys.stdin.read()"
    ),
}
_OPEN_MODEL = "an open model"
_LEFT_OUT = "what is left out"
_AGENT_STEPS = {
    "its standard library": ("logging", "json", "pathlib", "subprocess", "sqlite3", "queue", "signal", "uuid"),
    "TLS": ("ssl",),
    "pydantic": (_LEFT_OUT, "pydantic.main"),
    "paho-mqtt": ("paho.mqtt.client",),
    "messages and settings": ("regatta_protocol.messages", "regatta_protocol.manifest", "regatta_agent.config"),
    "the agent": ("regatta_agent.bootstrap", "regatta_protocol.mqtt"),
}
_WORKER_STEPS = {
    "its standard library": ("logging", "json", "pathlib", "subprocess", "asyncio", "ctypes", "urllib.parse"),
    "numpy": ("numpy", "numpy.typing"),
    "what it reads": ("regatta_protocol.processing", "regatta_agent.serving.spec", "regatta_agent.serving.events"),
    "the worker": ("regatta_agent.serving.worker",),
    "LiteRT": ("ai_edge_litert.interpreter",),
    "an open model": (_OPEN_MODEL,),
}
_LEAST_STEPS = {
    "numpy": ("numpy",),
    "LiteRT": ("ai_edge_litert.interpreter",),
    "an open model": (_OPEN_MODEL,),
}
_BARE = "from contextlib import nullcontext as beginning"
_AS_AGENT = """
from functools import partial
from regatta_agent.process.daemon import DEFERRED, LEFT_OUT
from regatta_agent.process.unloaded import deferred, leave_out
beginning = partial(deferred, DEFERRED)
"""
_AS_WORKER = "from regatta_agent.serving.imports import keeping_out as beginning"
_GOALS = {"regatta-agent": "at most 25 MB, 0.3 %"}
_PUBLISHED = "published: Greengrass nucleus 96 MB, nucleus lite 12-16 MB (AWS's own figures)"


_UNIT = Path(__file__).parents[1] / "systemd" / "regatta-agent.service"


class Memory(NamedTuple):
    """Of a process, in MB of 1024 x 1024 bytes."""

    pss: float
    anonymous: float
    alone: float


def memory_of(pid: int) -> Memory:
    """Return what a process has in memory now."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    figures = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}
    return Memory(figures["Pss"], figures["Pss_Anon"], figures["Rss"])


def unit_environment() -> dict[str, str]:
    """Return the variables that the service is started with."""
    lines = [line for line in _UNIT.read_text().splitlines() if line.startswith("Environment=")]
    return dict(line.removeprefix("Environment=").split("=", 1) for line in lines)


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


def sample(processes: dict[str, psutil.Process], window_s: float) -> dict[str, tuple[Memory, float]]:
    """Return for each process its mean memory and its share of one core over the window, in percent."""
    began = time.monotonic()
    busy_s = {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}
    samples: dict[str, list[Memory]] = {name: [] for name in processes}
    while True:
        for name, process in processes.items():
            samples[name].append(memory_of(process.pid))
        left_s = began + window_s - time.monotonic()
        if left_s <= 0:
            break
        time.sleep(min(_SAMPLE_S, left_s))
    took_s = time.monotonic() - began
    return {
        name: (
            Memory(*(statistics.mean(figure) for figure in zip(*samples[name], strict=True))),
            (sum(process.cpu_times()[:2]) - busy_s[name]) / took_s * 100,
        )
        for name, process in processes.items()
    }


def composition(prelude: str, steps: dict[str, tuple[str, ...]], flags: tuple[str, ...] = ()) -> str:
    """Return in words what a fresh process has in anonymous memory, in MB, after each of the steps.

    Args:
        prelude: code that makes `beginning`, the context to import in.
        steps: what is told -> the modules that are imported, _LEFT_OUT or _OPEN_MODEL.
        flags: of the interpreter.
    """
    code = f"""
import importlib
def anonymous():
    lines = open('/proc/self/smaps_rollup').read().splitlines()[1:]
    return next(int(line.split()[1]) for line in lines if line.startswith('Pss_Anon')) / 1024
found = [('Python', anonymous())]
{prelude}
with beginning():
    for what, names in {steps!r}.items():
        for name in names:
            if name == {_OPEN_MODEL!r}:
                opened = module.Interpreter(model_path={str(MODEL)!r}, num_threads=1)
                opened.allocate_tensors()
            elif name == {_LEFT_OUT!r}:
                leave_out(LEFT_OUT)
            else:
                module = importlib.import_module(name)
        found.append((what, anonymous()))
print(found)
"""
    environment = {**os.environ, **unit_environment(), "PYDANTIC_DISABLE_PLUGINS": "__all__"}
    argv = [sys.executable, *flags, "-c", code]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    found: list[tuple[str, float]] = ast.literal_eval(done.stdout)
    parts = (f"{what} {mb - before:+.1f}" for (what, mb), (_, before) in zip(found, [("", 0.0), *found], strict=False))
    return f"{', '.join(parts)}; in all {found[-1][1]:.1f}"


def serve_digits(programs: Programs, folder: Path, home: Path) -> None:
    """Quantize the shipped model to int8, push that alone, and roll it out to the device."""
    bundle, model = folder / "bundle", folder / "digits_int8.tflite"
    samples = str(calibration(folder / "calibration.npz"))
    asked = ("optimize", str(MODEL), "--data", samples, "--variants", "int8", "--output", str(bundle))
    programs.run("regatta_fleet", "model", *asked, timeout_s=300.0)
    variants = {one["name"]: one["file"] for one in json.loads((bundle / "draft.json").read_text())["variants"]}
    shutil.copyfile(bundle / "files" / variants["int8"]["digest"], model)
    programs.run("regatta_fleet", "model", "push", str(model), "--name", "digits", "--home", str(home))
    programs.run("regatta_fleet", "rollout", "start", "digits:1", "--wait", "--trial", "1s", "--home", str(home))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warm-up", type=float, default=300.0, metavar="S")
    parser.add_argument("--window", type=float, default=600.0, metavar="S")
    parser.add_argument("--quick", action="store_true", help="10 s of warm-up and a window of 20 s")
    parser.add_argument("--served", action="store_true", help="serve the shipped model too")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.warm_up, arguments.window = 10.0, 20.0
    peers = {
        name: subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for name, code in _PEERS.items()
    }
    with tempfile.TemporaryDirectory() as name, Programs(Path(name)) as programs:
        folder = Path(name)
        lean = flags_for(compile_ahead(folder / "bytecode"))
        home, state, run = folder / "fleet", folder / "state", folder / "run"
        programs.start("server", "regatta_fleet", "up", "--home", str(home))
        wait((home / "server.json").exists, "the server answers")
        token = json.loads(
            programs.run("regatta_fleet", "device", "token", "--device", "idle", "--home", str(home), "--json")
        )["token"]
        folders = ("--state-dir", str(state), "--run-dir", str(run))
        programs.run("regatta_agent", "enroll", token, "--state-dir", str(state))
        before, began = dict(os.environ), time.monotonic()
        os.environ.update(unit_environment(), **{FOLDER_VARIABLE: str(folder / "bytecode")})
        programs.start("agent", "regatta_agent", "run", *folders)
        os.environ.clear()
        os.environ.update(before)
        wait((run / "agent.json").exists, "the agent is ready")
        ready_s = time.monotonic() - began
        spent = agent_of(state).cpu_times()
        ready_cpu_s = spent.user + spent.system + spent.children_user + spent.children_system

        def online() -> bool:
            said = read_status(run)
            return said is not None and said.online

        wait(online, "the agent is online")
        online_s = time.monotonic() - began
        if arguments.served:
            serve_digits(programs, folder, home)
        time.sleep(arguments.warm_up)
        agent = agent_of(state)
        watched = {"regatta-agent": agent} | {
            f"worker {number}": child for number, child in enumerate(agent.children(recursive=True), 1)
        }
        watched |= {name: psutil.Process(peer.pid) for name, peer in peers.items()}
        rows = sample(watched, arguments.window)
        parts = [
            f"the agent: {composition(_AS_AGENT, _AGENT_STEPS, lean)}",
            f"the agent, not lean: {composition(_AS_AGENT, _AGENT_STEPS)}",
            f"a worker: {composition(_AS_WORKER, _WORKER_STEPS, lean)}",
            f"a worker, not lean: {composition(_AS_WORKER, _WORKER_STEPS)}",
            f"numpy and LiteRT alone: {composition(_BARE, _LEAST_STEPS)}",
        ]
    for peer in peers.values():
        peer.kill()
        peer.wait()
    print(f"{platform.machine()}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}")
    print(f"start to ready: {ready_s:.2f} s (goal 1.0), {ready_cpu_s:.2f} s of processor; to online: {online_s:.2f} s")
    print(f"{'PROCESS':20} {'PSS MB':>8} {'anonymous':>10} {'alone':>8} {'CPU %':>8}  GOAL")
    for name, (memory, share) in rows.items():
        goal = _GOALS.get(name, "")
        print(f"{name:20} {memory.pss:8.1f} {memory.anonymous:10.1f} {memory.alone:8.1f} {share:8.3f}  {goal}")
    if arguments.served:
        ours = [memory.pss for name, (memory, _) in rows.items() if name not in _PEERS]
        print(f"{'agent and worker':20} {sum(ours):8.1f} {'':28}  at most 60 MB")
    print(_PUBLISHED)
    print("\nanonymous memory of a fresh process as it imports, MB; the rest of a row above is its work:")
    print("\n".join(parts))


if __name__ == "__main__":
    main()
