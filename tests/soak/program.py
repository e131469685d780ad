"""The soak: a fleet at work for as long as you say, with faults, watched for drift.

    ./run soak MINUTES=60 [--seed S] [--folder FOLDER]

A server with its broker, and one device behind a proxy, as processes: a client asks the model all the time, and every
few seconds something happens to them: the broker or the serving worker is killed, the network is cut once or for a
while, or the device is sent to the other version of the model. After each fault the model must answer and the device
be online again within three minutes. Memory, descriptors, threads and disk of agent, worker and server are sampled;
the run fails when one of them surely grows by more than its allowance (trend.py), or when something did not recover.

samples.csv, soak.png (with the extra [plot]) and the programs' logs are left in FOLDER.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import psutil

sys.path[:0] = [str(Path(__file__).parents[1])]  # when called as a program

from fault_proxy import FaultProxy  # noqa: E402
from polling import wait_until  # noqa: E402
from regatta_agent.client import Client  # noqa: E402
from regatta_agent.core.states import IN_PROGRESS  # noqa: E402
from regatta_agent.disk.record import RecordFile  # noqa: E402
from regatta_agent.status import read_status  # noqa: E402
from regatta_fleet.demo.programs import Programs  # noqa: E402
from regatta_fleet.examples.digits import MODEL  # noqa: E402
from regatta_protocol.errors import RegattaError  # noqa: E402
from regatta_provisioning.sealed import SEALED_FILE  # noqa: E402
from soak.sampling import Samples  # noqa: E402

__all__ = ["Soak", "main"]

_DEVICE = "soak-1"
_NAME = "digits"
_CONFIG = "race_threads = [1]\nrace_budget_s = 2\ntelemetry_period_s = 2\nbackoff_base_s = 0.2\nbackoff_cap_s = 5\n"
_SAMPLE_S = 5.0
_RECOVERY_S = 180.0  # after connections that did not last, the agent waits up to 120 s before it tries again
_BETWEEN_S = (4.0, 40.0)  # from a recovery to the next fault; a connection that lasts 30 s forgets earlier failures
_OUTAGE_S = (2.0, 8.0)
_ASK_S = 0.05
_PICTURE = np.zeros((1, 8, 8, 1), np.float32)


class Soak:
    """The programs, and what is done to them."""

    def __init__(self, folder: Path, programs: Programs, chance: random.Random) -> None:
        self.home = folder / "fleet"
        self.state = folder / "device" / "state"
        self.run_dir = folder / "device" / "run"
        self.samples = Samples()
        self.faults: list[tuple[float, str]] = []
        self.asked: Counter[str] = Counter()
        self._programs = programs
        self._chance = chance
        self._folder = folder
        self._version = 1
        self._proxy: FaultProxy | None = None
        self._over = threading.Event()

    def set_up(self) -> None:
        """Start server and device, and let the device serve the first of two versions."""
        self._programs.start("server", "regatta_fleet", "up", "--home", str(self.home))
        wait_until((self.home / "server.json").exists, _RECOVERY_S, "the server answers")
        token = json.loads(self._regatta("device", "token", "--device", _DEVICE))["token"]
        self._programs.run("regatta_agent", "enroll", token, "--state-dir", str(self.state))
        self._put_proxy_between()
        for _ in range(2):
            self._regatta("model", "push", str(MODEL), "--name", _NAME)
        config = self._folder / "agent.toml"
        config.write_text(_CONFIG)
        folders = ("--config", str(config), "--state-dir", str(self.state), "--run-dir", str(self.run_dir))
        os.environ["MALLOC_ARENA_MAX"] = "1"  # as the unit does: or each thread that reads a child may add an arena
        self._programs.start("agent", "regatta_agent", "run", *folders)
        del os.environ["MALLOC_ARENA_MAX"]
        self._roll_out(1)
        self.await_recovery()

    def work(self, minutes: float) -> None:
        """Let it run with faults."""
        threads = [threading.Thread(target=each, daemon=True) for each in (self._ask, self._watch)]
        for thread in threads:
            thread.start()
        stop_s = time.monotonic() + minutes * 60
        acts = (self.kill_broker, self.kill_worker, self.cut, self.outage, self.update)
        while time.monotonic() < stop_s:
            self._over.wait(self._chance.uniform(*_BETWEEN_S))
            act = self._chance.choice(acts)
            self.faults.append((time.monotonic(), act.__name__))
            act()
            self.await_recovery()
            self._programs.check()
        self._over.set()
        for thread in threads:
            thread.join(30)

    def close(self) -> None:
        """End what runs in this process."""
        self._over.set()
        if self._proxy is not None:
            self._proxy.close()

    def kill_broker(self) -> None:
        _kill(self._child_of(self._server(), lambda words: words[0].endswith("mosquitto")))

    def kill_worker(self) -> None:
        _kill(self._worker())

    def cut(self) -> None:
        self._between.cut()

    def outage(self) -> None:
        """No connection lives for some seconds."""
        stop_s = time.monotonic() + self._chance.uniform(*_OUTAGE_S)
        while time.monotonic() < stop_s:
            self._between.cut()
            time.sleep(0.1)

    def update(self) -> None:
        """Send the device to the other version, and wait until it is decided."""
        self._version = 3 - self._version
        self._roll_out(self._version)

    def await_recovery(self) -> None:
        """Return when the device is online, has nothing under way, and serves the version that it shall."""
        wait_until(self._recovered, _RECOVERY_S, f"{_NAME}:{self._version} is served, online", period_s=0.2)

    def _recovered(self) -> bool:
        said = read_status(self.run_dir)
        record = RecordFile(self.state).load()
        serving = record.serving(_NAME)  # type: ignore[arg-type]  # a name
        busy = [install for install in record.all() if install.state in IN_PROGRESS]
        return (
            said is not None and said.online and not busy and serving is not None
            and serving.version == self._version and self._answers()
        )  # fmt: skip

    def _answers(self) -> bool:
        try:
            with Client(self.run_dir / f"{_NAME}.sock", timeout_s=5.0, retry_s=0.0) as client:
                client.infer(_NAME, _PICTURE)
        except RegattaError:
            return False
        return True

    def _ask(self) -> None:
        while not self._over.wait(_ASK_S):
            try:
                with Client(self.run_dir / f"{_NAME}.sock", timeout_s=5.0) as client:
                    while not self._over.wait(_ASK_S):
                        client.infer(_NAME, _PICTURE)
                        self.asked["answered"] += 1
            except RegattaError:
                self.asked["failed"] += 1

    def _watch(self) -> None:
        while not self._over.is_set():
            self.samples.take("agent", self._agent(), (self.state,))
            self.samples.take("worker", self._worker(), ())
            self.samples.take("server", self._server(), (self.home,))
            self._over.wait(_SAMPLE_S)

    def _roll_out(self, version: int) -> None:
        gate = ("--gate", "p99-ratio=1000", "--gate", "success-ratio=0", "--trial", "1s", "--waves", "100%")
        asked = ("rollout", "start", f"{_NAME}:{version}", "--to", _DEVICE, *gate)
        self._regatta(*asked)

    def _regatta(self, *arguments: str) -> str:
        return self._programs.run("regatta_fleet", *arguments, "--home", str(self.home), "--json")

    def _put_proxy_between(self) -> None:
        """Let the device reach the broker through a proxy that can be cut."""
        path = self.state / "identity" / "identity.json"
        identity = json.loads(path.read_text())
        self._proxy = FaultProxy(identity["broker_port"])
        path.write_text(json.dumps({**identity, "broker_port": self._proxy.port}))
        path.with_name(SEALED_FILE).unlink()  # the agent's start makes it anew

    @property
    def _between(self) -> FaultProxy:
        assert self._proxy is not None
        return self._proxy

    def _server(self) -> psutil.Process | None:
        return self._child_of(psutil.Process(), lambda words: "regatta_fleet" in words and "up" in words)

    def _agent(self) -> psutil.Process | None:
        return self._child_of(psutil.Process(), lambda words: "regatta_agent" in words and "run" in words)

    def _worker(self) -> psutil.Process | None:
        return self._child_of(self._agent(), lambda words: "regatta_agent.serving" in words)

    def _child_of(self, parent: psutil.Process | None, fits: Callable[[Sequence[str]], bool]) -> psutil.Process | None:
        try:
            children = parent.children() if parent is not None else []
            return next((child for child in children if (words := child.cmdline()) and fits(words)), None)
        except psutil.Error:
            return None


def _kill(process: psutil.Process | None) -> None:
    if process is not None:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            return


def report(soak: Soak) -> bool:
    """Print the table; return whether nothing drifts."""
    print(f"{'':8} {'FIGURE':12} {'MEDIAN':>9} {'SLOPE/h':>9} {'99 % INTERVAL':>20} {'GROWTH':>8} {'ALLOWED':>8}")
    fine = True
    for (program, figure), trend in sorted(soak.samples.trends().items()):
        if trend is None:
            print(f"{program:8} {figure:12} too few samples to tell")
            continue
        interval = f"[{trend.low_per_h:.2f}, {trend.high_per_h:.2f}]"
        print(
            f"{program:8} {figure:12} {trend.median:9.2f} {trend.slope_per_h:9.2f} {interval:>20} "
            f"{trend.growth:8.2f} {trend.allowed:8.2f} {'DRIFT' if trend.drifts else 'ok'}"
        )
        fine = fine and not trend.drifts
    return fine


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the command line; the minutes may be written as make's variables are."""
    parser = argparse.ArgumentParser(
        prog="./run soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("minutes", type=_minutes, metavar="MINUTES=N", help="how long, or just N")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="of the faults [1]")
    parser.add_argument("--folder", type=Path, default=Path("build/soak"), metavar="FOLDER", help="[build/soak]")
    return parser.parse_args(list(arguments))


def _minutes(text: str) -> float:
    minutes = float(text.removeprefix("MINUTES="))
    if not 0 < minutes <= 100_000:
        raise argparse.ArgumentTypeError(f"{text} is no time to run: give minutes above 0, for example MINUTES=60")
    return minutes


def main(arguments: Sequence[str]) -> int:
    """Run a soak; return the exit status."""
    options = parsed(arguments)
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    folder = options.folder.resolve()
    recovered = True
    with Programs(folder) as programs:
        soak = Soak(folder, programs, random.Random(options.seed))
        try:
            soak.set_up()
            soak.work(options.minutes)
        except (AssertionError, RegattaError) as err:
            print(f"NOT RECOVERED: {err}", file=sys.stderr)
            recovered = False
        finally:
            soak.close()
    soak.samples.write(folder / "samples.csv")
    try:
        from soak.plot import draw
    except ImportError:
        print("no picture: matplotlib is not installed (extra [plot])", file=sys.stderr)
    else:
        draw(soak.samples, soak.faults, folder / "soak.png")
    done = Counter(name for _, name in soak.faults)
    print(f"faults: {', '.join(f'{count} {name}' for name, count in sorted(done.items())) or 'none'}")
    print(f"requests: {soak.asked['answered']} answered, {soak.asked['failed']} failed and asked again")
    fine = report(soak)
    print(f"{options.minutes:g} minutes: {'no drift' if fine and recovered else 'FAILED'}; {folder}/soak.png")
    return 0 if fine and recovered else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
