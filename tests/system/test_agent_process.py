"""`regatta-agent run` as a process, against the real broker: presence, report, a clean stop, and a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from enrolled import enrolled
from mosquitto import Wire, connected, require_mosquitto, running_wire
from polling import wait_until
from regatta_agent.process.compiler import compile_ahead
from regatta_protocol import topics
from regatta_protocol.bus import Message
from regatta_protocol.codec import decode
from regatta_protocol.messages import Presence, Reported

pytestmark = pytest.mark.system

DEVICE = "pi-one"
_PROGRAM = "from regatta_agent.cli import main; main()"
_NOT_AT_REST = {  # what must not lie in the memory of a process that runs for months, and why it is not needed
    "numpy": "tensors are the workers'",
    "ai_edge_litert": "a model is code: only workers load runtimes",
    "tflite_runtime": "a model is code: only workers load runtimes",
    "onnxruntime": "a model is code: only workers load runtimes",
    "openvino": "a model is code: only workers load runtimes",
    "regatta_runtimes.backends": "they belong to the workers",
    "regatta_runtimes.board.probe": "a child looks at the board",
    "cryptography": "signatures are checked by the verifier process",
    "securesystemslib": "signatures are checked by the verifier process",
    "tuf": "signatures are checked by the verifier process",
    "requests": "only enrolment speaks HTTP",
    "http": "only enrolment speaks HTTP",
    "urllib.request": "paho asks for proxies only with PySocks",
    "httptools": "the workers serve, not the daemon",
    "email": "nothing here is mail; HTTP and package metadata bring it",
    "importlib.metadata": "no plug-in may change what the wire accepts",
    "zipfile": "importlib.metadata brings it",
    "pydantic.json_schema": "only the fleet has an HTTP API to describe",
    "pydantic.root_model": "what may be of several kinds is read as the one that it is",
    "click": "the daemon's command line is read without it",
    "psutil": "/proc is read where one figure is needed",
    "tomllib": "there is no settings file to read",
    "asyncio": "one thread and a queue",
    "ctypes": "nothing foreign is called",
    "multiprocessing": "children are started by subprocess",
    "unittest": "no test code runs on a board",
}


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    require_mosquitto()
    (tmp_path / "wire").mkdir()
    with running_wire(tmp_path / "wire") as running:
        yield running


def _start(state: Path, **environment: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-c", _PROGRAM, "run", "--state-dir", str(state), "--run-dir", str(state.parent / "run")]
    with (state.parent / "agent.log").open("ab") as log:
        return subprocess.Popen(argv, stderr=log, env={**os.environ, **environment})


def test_at_rest_it_holds_nothing_that_it_does_not_use(wire: Wire, tmp_path: Path) -> None:
    """Enrolled, connected and idle, the control process has imported none of what is named above."""
    agent = _start(enrolled(wire, tmp_path, DEVICE), PYTHONPROFILEIMPORTTIME="1")
    shown = tmp_path / "run" / "agent.json"
    try:
        wait_until(lambda: shown.exists() and json.loads(shown.read_text())["online"], 30, "agent.json says online")
    finally:
        agent.terminate()
        assert agent.wait(20) == 0
    lines = [line for line in (tmp_path / "agent.log").read_text().splitlines() if line.startswith("import time:")]
    imported = {line.rsplit("|", 1)[1].strip() for line in lines}

    assert {"paho.mqtt.client", "pydantic_core"} <= imported
    assert [name for name in _NOT_AT_REST if name in imported] == []


def test_started_as_its_unit_says_it_runs_lean(wire: Wire, tmp_path: Path) -> None:
    """With what `regatta-agent install` compiles it is the same process, and works; docs/footprint.md has the gain."""
    compile_ahead(tmp_path / "bytecode", limit_s=150.0)
    agent = _start(enrolled(wire, tmp_path, DEVICE), REGATTA_BYTECODE=str(tmp_path / "bytecode"))
    shown = tmp_path / "run" / "agent.json"
    try:
        wait_until(lambda: shown.exists() and json.loads(shown.read_text())["online"], 30, "agent.json says online")
        argv = Path(f"/proc/{agent.pid}/cmdline").read_text().split("\0")
    finally:
        agent.terminate()
        assert agent.wait(20) == 0, (tmp_path / "agent.log").read_text()

    assert "-OO" in argv


def test_it_is_there_reports_and_leaves_as_it_should(wire: Wire, tmp_path: Path) -> None:
    """Up and a report after start; down after SIGTERM with status 0; down by the will after SIGKILL."""
    state = enrolled(wire, tmp_path, DEVICE)
    server = wire.mqtt_config("regatta-server", filters=topics.SERVER_FILTERS)
    with connected(server) as (_, inbox):

        def heard(kind: topics.Up) -> Message:
            deadline = time.monotonic() + 15
            while time.monotonic() < deadline:
                event = inbox.get(timeout=15)
                if isinstance(event, Message) and event.topic == topics.up(DEVICE, kind):  # type: ignore[arg-type]
                    return event
            raise AssertionError((tmp_path / "agent.log").read_text())

        agent = _start(state)
        try:
            assert decode(Presence, heard(topics.Up.STATE).payload).up
            first = decode(Reported, heard(topics.Up.REPORTED).payload)
            assert first.device == DEVICE
            shown = tmp_path / "run" / "agent.json"
            wait_until(lambda: json.loads(shown.read_text())["online"], 15, "agent.json says online")
            agent.send_signal(signal.SIGTERM)
            assert not decode(Presence, heard(topics.Up.STATE).payload).up
            assert agent.wait(timeout=10) == 0

            agent = _start(state)
            assert decode(Presence, heard(topics.Up.STATE).payload).up
            again = decode(Reported, heard(topics.Up.REPORTED).payload)
            assert again.sequence > first.sequence
            agent.kill()
            assert not decode(Presence, heard(topics.Up.STATE).payload).up
        finally:
            agent.kill()
            agent.wait()


def test_an_unreachable_broker_is_named_by_status(wire: Wire, tmp_path: Path) -> None:
    """The agent keeps running, and `status` says why it is not connected; once the broker is back, it connects."""
    state = enrolled(wire, tmp_path, DEVICE)
    wire.broker.stop()
    status = [sys.executable, "-m", "regatta_agent", "status", "--state-dir", str(state)]
    status += ["--run-dir", str(tmp_path / "run")]

    def shown() -> str:
        return subprocess.run(status, capture_output=True, text=True, timeout=30, check=True).stdout

    agent = _start(state)
    try:
        wait_until(lambda: "(cannot connect to" in shown(), 20, "status says why", period_s=0.2)
        assert "refused" in shown().lower()
        assert agent.poll() is None
        wire.broker.start()
        wait_until(lambda: "broker      connected" in shown(), 60, "the agent has connected", period_s=0.2)
    finally:
        agent.terminate()
        assert agent.wait(20) == 0


@pytest.mark.parametrize(
    ("fault", "status", "said"),
    [
        ("(signal.setitimer(signal.ITIMER_REAL, 1.0), threading.Event().wait())", -signal.SIGALRM, "in <lambda>"),
        ("(_ for _ in ()).throw(MemoryError('nothing left'))", 70, "MemoryError: nothing left"),
    ],
    ids=["hangs", "finds no memory"],
)
def test_a_loop_that_cannot_go_on_ends_the_process_and_says_where(
    wire: Wire, tmp_path: Path, fault: str, status: int, said: str
) -> None:
    """With nobody's help (the hung one would have had 90 s); whoever supervises it starts it again."""
    state = enrolled(wire, tmp_path, DEVICE)
    program = f"""
import signal, threading
from regatta_agent import loop
loop.Loop._tend_batch = lambda self: {fault}
{_PROGRAM}"""
    argv = [sys.executable, "-c", program, "run", "--state-dir", str(state), "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)

    assert (done.returncode, said in done.stderr) == (status, True), done.stderr[-2000:]
