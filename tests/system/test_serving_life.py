"""A serving worker from its start to its end: what it checks first, what it cannot serve, and how it leaves."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from regatta_agent.client import Client
from regatta_agent.serving import giving_way
from regatta_protocol import sketch
from regatta_protocol.errors import Misuse, Rejected, Retryable
from regatta_runtimes.worker.golden import write_golden
from serving_process import ServingProcess, post, raw_exchange, serving, status_of, tiny_spec
from tiny_models import write_tiny_model

pytestmark = pytest.mark.system

NOT_IN_A_WORKER = {  # what a worker must not hold that serves an image model on its unix socket, and why it need not
    "_ssl": "TLS is for TCP",
    "_hashlib": "digests are checked before a worker starts",
    "_bz2": "our zip files are not packed with it",
    "_lzma": "our zip files are not packed with it",
    "_pickle": "nobody's pickles are read",
    "numpy.fft._pocketfft": "spectra are for sounds",
    "numpy.ma.core": "no array is masked",
    "numpy.polynomial.polynomial": "no polynomials",
    "numpy.random.mtrand": "golden samples are there",
    "numpy.core._add_newdocs": "docstrings",
    "numpy.testing": "no test code runs on a board",
    "unittest": "no test code runs on a board",
    "ipaddress": "addresses are for TCP",
    "statistics": "there is no power sensor",
    "wave": "sounds only",
    "http.client": "it serves, and asks nobody",
    "email": "package metadata brings it",
    "importlib.metadata": "a runtime's version, for races only",
    "multiprocessing": "threads, and runners by subprocess",
    "pydantic": "what a worker reads is in dataclasses",
    "pydantic_core": "what a worker reads is in dataclasses",
    "typing_extensions": "pydantic brings it",
    "regatta_protocol.wire": "what the agent and the fleet say to each other",
    "regatta_runtimes.worker.job": "what a race is asked",
    "regatta_runtimes.fpga.loader": "few boards have an FPGA",
    "regatta_runtimes.board.delegates": "the processor computes, by the runtime's own kernels",
    "tomllib": "delegate files are read by who needs a delegate",
    "regatta_agent.client": "only while a next version is in its shadow",
    "click": "commands only",
}
IMAGE = np.random.default_rng(5).random((1, 8, 8, 1), dtype=np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s")


# start


def test_golden_samples_are_checked_before_anybody_is_served(folder: Path) -> None:
    """The self-test reports how close the candidate is to the reference, and refuses another model's samples."""
    golden, wrong = folder / "golden.npz", folder / "wrong.npz"
    write_golden({"float32": write_tiny_model(folder / "tiny.tflite")}, golden, count=8)
    write_golden({"float32": write_tiny_model(folder / "other.tflite", seed=1)}, wrong, count=8)

    good = ServingProcess(tiny_spec(folder, version=7, golden_path=golden), folder)
    bad = ServingProcess(tiny_spec(folder, version=6, golden_path=wrong), folder)
    try:
        ready, failed = good.ready(), bad.failed()
        assert bad.process.wait(30) == Rejected.exit_code
    finally:
        good.kill()
        bad.kill()

    assert ready.self_test.passed
    assert (ready.self_test.samples, ready.self_test.passed) == (8, True)
    assert (ready.self_test.snr_db or 0) > 60
    assert (failed.family, "self-test" in failed.reason) == ("rejected", True)


def test_what_a_worker_asks_itself_before_it_is_ready_is_not_counted(folder: Path) -> None:
    """It asks in vain, and clients find no trace of that: the first request of one is the first."""
    told = []
    with serving(tiny_spec(folder, version=9), folder) as worker:
        for _ in range(2):
            text = raw_exchange(worker.spec.socket_path, b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").decode()
            told.append({name: int(count) for name, count in re.findall(r'outcome="(\w+)"} (\d+)', text)})
            with Client(worker.spec.socket_path) as client:
                client.infer("tiny", IMAGE)
        windows = worker.drain()

    assert len(told[0]) > 1
    assert set(told[0].values()) == {0}
    assert told[1] == {**told[0], "success": 1}
    assert sum(window.requests for window in windows) == 2


def test_a_worker_holds_nothing_that_it_does_not_use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaded, tested on golden samples and asked, it has imported none of what is named above."""
    write_golden({"float32": write_tiny_model(folder / "tiny.tflite")}, folder / "some.npz", count=2)
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    with serving(tiny_spec(folder, version=8, golden_path=folder / "some.npz"), folder) as worker:
        with Client(worker.spec.socket_path) as client:
            client.infer("tiny", IMAGE)
        worker.drain()
    lines = [line for line in worker.stderr.decode().splitlines() if line.startswith("import time:")]
    imported = {line.rsplit("|", 1)[1].strip() for line in lines}

    assert {"numpy", "asyncio", "zipfile"} <= imported
    assert [name for name in NOT_IN_A_WORKER if name in imported] == []


@pytest.mark.parametrize(
    ("change", "family", "says"),
    [
        ({"variant_path": Path("/nowhere/m.tflite")}, "rejected", "not there"),
        ({"candidate_id": "litert"}, "rejected", "candidate"),
        ({"candidate_id": "cuda/float32/none/t1"}, "rejected", "cuda"),
        ({"socket_path": Path("/tmp") / ("x" * 120)}, "misuse", "107"),
        ({"socket_path": Path("/nowhere/x.sock")}, "misuse", "cannot listen"),
        ({"tcp": "0.0.0.0:0"}, "misuse", "loopback"),
    ],
)
def test_what_cannot_be_served_says_why(folder: Path, change: dict[str, Any], family: str, says: str) -> None:
    """Each wrong spec ends the worker with a reason and a family."""
    process = ServingProcess(tiny_spec(folder, version=5, **change), folder)
    try:
        failed = process.failed()
        code = process.process.wait(30)
    finally:
        process.kill()

    assert (failed.family, code) == (family, (Misuse if family == "misuse" else Rejected).exit_code)
    assert says in failed.reason


def test_a_file_that_is_no_model_is_rejected(folder: Path) -> None:
    """A truncated model fails its worker with the reason; nothing hangs."""
    broken = folder / "broken.tflite"
    broken.write_bytes(write_tiny_model(folder / "tiny.tflite").read_bytes()[:200])
    process = ServingProcess(tiny_spec(folder, version=4, variant_path=broken), folder)
    try:
        assert process.failed().family == "rejected"
    finally:
        process.kill()


# end


def _load(target: Path, stop: threading.Event, answered: list[int], errors: list[Exception]) -> None:
    count = 0
    try:
        with Client(target) as client:
            while not stop.is_set():
                client.infer("tiny", IMAGE)
                count += 1
    except Exception as err:  # noqa: BLE001 - the test asserts that there is none
        errors.append(err)
    answered.append(count)


def _run_load(target: Path, act: Callable[[], None]) -> tuple[int, list[Exception]]:
    """Run three clients while `act` happens; return how many requests were answered, and what failed."""
    stop, counts = threading.Event(), list[int]()
    errors = list[Exception]()
    threads = [threading.Thread(target=_load, args=(target, stop, counts, errors)) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        act()
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    return sum(counts), errors


def test_a_swap_under_load_is_noticed_by_nobody(tmp_path: Path) -> None:
    """The symlink is pointed to a new worker and the old one drains: every request is answered, by one of the two."""
    link = tmp_path / "tiny.sock"
    workers = [ServingProcess(tiny_spec(tmp_path, version=version, window_s=3600.0), tmp_path) for version in (1, 2)]
    windows = []

    def point_to(version: int) -> None:
        temporary = tmp_path / "next"
        temporary.symlink_to(f"{version}.sock")
        temporary.replace(link)

    def swap() -> None:
        threading.Event().wait(0.3)  # load on the first
        point_to(2)
        windows.extend(workers[0].drain())
        threading.Event().wait(0.3)  # load on the second

    try:
        for process in workers:
            process.ready()
        point_to(1)
        answered, errors = _run_load(link, swap)
        windows.extend(workers[1].drain())
    finally:
        for process in workers:
            process.kill()

    assert errors == []
    counted = {window.version: window.requests for window in windows}
    assert counted[1] > 0
    assert counted[2] > 0
    assert sum(counted.values()) == answered
    assert sum(sketch.total(window.latency_counts) for window in windows) == answered
    stages = sketch.merge_named(window.stage_counts for window in windows)
    assert {sketch.total(counts) for counts in stages.values()} == {answered}
    assert len(stages) == 4
    assert not workers[0].spec.socket_path.exists()


@pytest.mark.parametrize("guarded", [False, True])
def test_a_worker_that_gave_way_competes_when_it_is_ready(folder: Path, guarded: bool) -> None:
    """Every thread of it, and a runner that it has started, which would have inherited giving way."""
    spec = tiny_spec(folder, version=5 + guarded, guarded=guarded)
    process = ServingProcess(spec, folder, options=[giving_way.OPTION])
    try:
        process.ready()
        family = [psutil.Process(process.process.pid)]
        family += family[0].children()
        policies = {os.sched_getscheduler(thread.id) for one in family for thread in one.threads()}
    finally:
        process.kill()
    assert len(family) == 1 + guarded
    assert policies == {os.SCHED_OTHER}


def test_sigterm_drains_and_tells_the_last_window(folder: Path) -> None:
    """SIGTERM is the same as the end of standard input."""
    process = ServingProcess(tiny_spec(folder, version=3, window_s=3600.0), folder)
    try:
        process.ready()
        with Client(process.spec.socket_path) as client:
            client.infer("tiny", IMAGE)
        process.process.send_signal(signal.SIGTERM)
        window = process.next_event()
        assert window is not None
        assert process.process.wait(30) == 0
    finally:
        process.kill()

    assert getattr(window, "requests", None) == 1
    with pytest.raises(Retryable, match="regatta-agent"):
        Client(process.spec.socket_path, retry_s=0.1).infer("tiny", IMAGE)


def test_a_registered_region_outlives_swaps_and_deaths(tmp_path: Path, shared_object: Path) -> None:
    """Told once, every worker of the model knows it: the next, the first one again, and one after a crash."""
    link = tmp_path / "tiny.sock"
    workers = [ServingProcess(tiny_spec(tmp_path, version, shared_memory=True), tmp_path) for version in (1, 2)]
    scores: list[bytes] = []
    try:
        for worker in workers:
            worker.ready()
        body = f'{{"key":"/{shared_object.name}","byte_size":512}}'.encode()
        for leads_to in (1, 2, 1):
            link.unlink(missing_ok=True)
            link.symlink_to(f"{leads_to}.sock")
            if leads_to == 1 and not scores:
                register = post("/v2/systemsharedmemory/region/r/register", body)
                assert status_of(raw_exchange(link, register)) == 200
            scores.append(_infer_in_region(link, shared_object))
        workers[0].kill()
        workers.append(ServingProcess(tiny_spec(tmp_path, 1, shared_memory=True), tmp_path))
        workers[2].ready()
        scores.append(_infer_in_region(link, shared_object))
    finally:
        for worker in workers:
            worker.kill()

    assert len(set(scores)) == 1


@pytest.fixture
def shared_object() -> Iterator[Path]:
    """A POSIX shared-memory object of 512 bytes that holds the image."""
    path = Path(f"/dev/shm/regatta-life-{os.getpid()}")
    path.write_bytes(IMAGE.tobytes() + bytes(256))
    yield path
    path.unlink()


def _infer_in_region(target: Path, shared_object: Path) -> bytes:
    """Return the scores of the image in region r, which go there too; by a fresh connection that registers nothing."""
    with shared_object.open("r+b") as stream:
        stream.seek(256)
        stream.write(bytes(40))
    region = {"shared_memory_region": "r", "shared_memory_byte_size": 256}
    image = {"name": "image", "shape": [1, 8, 8, 1], "datatype": "FP32", "parameters": region}
    wish = {"name": "scores", "parameters": {**region, "shared_memory_offset": 256}}
    answer = raw_exchange(
        target, post("/v2/models/tiny/infer", json.dumps({"inputs": [image], "outputs": [wish]}).encode())
    )
    assert status_of(answer) == 200, answer
    scores = shared_object.read_bytes()[256:296]
    assert scores != bytes(40)
    return scores
