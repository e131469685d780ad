"""The servers that `./run bench serving` compares: Regatta's worker, and peers in environments of their own.

A peer is installed from PyPI into build/peers/NAME when it is not there; one that does not install or start is left out
with the reason.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
PEERS = HERE.parents[1] / "build" / "peers"
_PACKAGES = {
    "litserve": ["litserve"],
    # MLServer 1.7 does not start with uvloop 0.23, 0.21 works
    "mlserver": ["mlserver", "uvloop<0.22"],
    "bentoml": ["bentoml"],
}
_INSTALL_S, _START_S = 900, 60


class Unavailable(Exception):
    """A peer cannot take part; the text says why."""


def python_of(way: str) -> str:
    """Return the interpreter of a way's environment, after installing a peer that is absent.

    Raises:
        Unavailable: when it does not install.
    """
    if way not in _PACKAGES:
        return sys.executable
    folder = PEERS / way
    python = folder / "bin" / "python"
    stamp = folder / "installed"
    if not stamp.exists():
        print(f"installing {way} into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True)
        packages = [*_PACKAGES[way], "ai-edge-litert", "numpy"]
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
        if done.returncode != 0:
            raise Unavailable(f"pip install {' '.join(packages)} failed: {done.stderr.strip().splitlines()[-1:]}")
        stamp.touch()
    return str(python)


@contextlib.contextmanager
def served(way: str, model: Path, folder: Path, guarded: bool) -> Iterator[str]:
    """Serve `model` by one of the ways, and give the address to ask at; `guarded`: Regatta's in a runner.

    Raises:
        Unavailable: when it does not start.
    """
    if way == "floor":
        yield ""
        return
    if way == "regatta":
        with regatta(model, folder, guarded=guarded) as (address, _):
            yield address
        return
    if way == "regatta-grpc":
        with regatta(model, folder, guarded=guarded, grpc=True) as (address, _):
            yield f"unix:{Path(address).with_suffix('.grpc')}"
        return
    python, port = python_of(way), _free_port()
    command, where = _command(way, python, model, folder, port)
    log = folder / f"{way}.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "PYTHONPATH": str(HERE), "REGATTA_BENCH_MODEL": str(model)},
        )
    try:
        _await(way, server, where, port, log)
        yield where
    finally:
        workers = psutil.Process(server.pid).children(recursive=True)  # some lead groups of their own
        for process in (server, *workers):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        server.wait()


def _command(way: str, python: str, model: Path, folder: Path, port: int) -> tuple[list[str], str]:
    """Return how a peer is started, and the address to ask at."""
    here = f"127.0.0.1:{port}"
    if way == "litserve":
        return [python, str(HERE / "peer_litserve.py"), str(model), str(port)], here
    if way == "bentoml":
        # Not by the console script's name: it need not be on the path.
        return [
            python,
            "-m",
            "bentoml",
            "serve",
            "peer_bentoml:Model",
            "--port",
            str(port),
            "--host",
            "127.0.0.1",
        ], here
    grpc_port, metrics_port = _free_port(), _free_port()
    settings = {"host": "127.0.0.1", "http_port": port, "grpc_port": grpc_port, "metrics_port": metrics_port}
    (folder / "settings.json").write_text(json.dumps({**settings, "parallel_workers": 0, "debug": False}))
    named = {"name": "m", "implementation": "peer_mlserver.Model", "parameters": {"uri": str(model)}}
    (folder / "model-settings.json").write_text(json.dumps(named))
    return [python, str(Path(python).parent / "mlserver"), "start", str(folder)], f"127.0.0.1:{grpc_port}"


def _await(way: str, server: subprocess.Popen[bytes], where: str, port: int, log: Path) -> None:
    paths = {"litserve": "/health", "bentoml": "/readyz", "mlserver": "/v2/models/m/ready"}
    ends = time.monotonic() + _START_S
    while time.monotonic() < ends and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{paths[way]}", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    text = log.read_text(errors="replace").strip().splitlines()
    raise Unavailable(f"{way} does not answer at {where}: {text[-1] if text else 'it says nothing'}")


@contextlib.contextmanager
def regatta(
    model: Path, folder: Path, version: int = 1, guarded: bool = False, grpc: bool = False
) -> Iterator[tuple[str, int]]:
    """Run a serving worker, with gRPC too if `grpc`, and give the path of its socket and its process id."""
    from regatta_agent.serving import giving_way
    from regatta_agent.serving.spec import ServeSpec
    from regatta_protocol.ids import ModelName
    from regatta_protocol.plain import to_json

    socket_path = folder / f"m-{version}.sock"
    spec = ServeSpec(
        model=ModelName("m"),
        version=version,
        candidate_id="litert/model/xnnpack/t1",
        variant_path=model.resolve(),
        socket_path=socket_path,
        grpc_path=socket_path.with_suffix(".grpc") if grpc else None,
        guarded=guarded,
    )
    path = folder / f"m-{version}.json"
    path.write_bytes(to_json(spec))
    # as the agent starts the next one of a model that is served
    give_way = [] if version == 1 else [giving_way.OPTION]
    worker = subprocess.Popen(
        [sys.executable, "-m", "regatta_agent.serving", str(path), *give_way],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    if give_way:
        giving_way.begin_for(worker.pid)
    assert worker.stdout is not None
    try:
        if b'"ready"' not in worker.stdout.readline():
            raise Unavailable("the worker did not get ready")
        yield str(spec.socket_path), worker.pid
    finally:
        worker.communicate(timeout=30)


class Asker:
    """A client process of one way."""

    def __init__(self, way: str, address: str, model: Path, sample: Path) -> None:
        arguments: Sequence[str] = (way, address, str(model), str(sample))
        self._process = subprocess.Popen(
            [python_of(way), str(HERE / "asker.py"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ready(self) -> None:
        """Wait for its first answer.

        Raises:
            Unavailable: when it got none.
        """
        assert self._process.stdout is not None and self._process.stderr is not None
        if self._process.stdout.readline() != "ready\n":
            raise Unavailable(f"a client got no answer: {self._process.stderr.read().strip().splitlines()[-1:]}")

    def begin(self, command: str) -> None:
        """Give it something to do."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()

    def done(self) -> list[Any]:
        """Return what came of it."""
        assert self._process.stdout is not None
        answer: list[Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
