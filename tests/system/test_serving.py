"""The serving worker as its clients meet it: the protocol's contract, bad input, the client and the command."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from polling import wait_until
from regatta_agent.cli.infer import infer
from regatta_agent.client import Client, ServerBusy
from regatta_agent.serving.caller import Call, Caller, parse_target
from regatta_agent.serving.events import Failed
from regatta_agent.serving.spec import ServeLimits, ServeSpec
from regatta_protocol.errors import Misuse, Rejected, Retryable
from regatta_protocol.ids import ModelName
from serving_process import ServingProcess, post, raw_exchange, receive_answer, serving, status_of, tiny_spec
from shared_data import shared_file

pytestmark = pytest.mark.system

IMAGE = np.random.default_rng(5).random((1, 8, 8, 1), dtype=np.float32)
INFER = "/v2/models/tiny/infer"
LIMITS = ServeLimits(
    header_bytes=4096, body_bytes=131_072, header_timeout_s=1.0, body_timeout_s=1.0, connections=8, drain_quiet_s=0.1
)


_spec = partial(tiny_spec, limits=LIMITS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s")


@pytest.fixture(scope="module")
def worker(folder: Path) -> Iterator[ServingProcess]:
    labels = folder / "labels.txt"
    labels.write_text("".join(f"digit {i}\n" for i in range(10)))
    with serving(_spec(folder, labels_path=labels, tcp="127.0.0.1:0"), folder) as process:
        yield process


@pytest.fixture
def client(worker: ServingProcess) -> Iterator[Client]:
    with Client(worker.spec.socket_path) as one:
        yield one


def _get(worker: ServingProcess, path: str) -> tuple[int, dict[str, Any]]:
    answer = raw_exchange(worker.spec.socket_path, f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    return status_of(answer), json.loads(answer.partition(b"\r\n\r\n")[2])


def _json_request(**more: Any) -> dict[str, Any]:
    entry = {"name": "image", "shape": [1, 8, 8, 1], "datatype": "FP32", "data": IMAGE.ravel().tolist()}
    return {"inputs": [{**entry, **more}]}


# the protocol


def test_health_and_metadata(worker: ServingProcess) -> None:
    """Every endpoint of the protocol answers, with and without the version."""
    assert _get(worker, "/v2/health/live") == (200, {"live": True})
    assert _get(worker, "/v2/health/ready") == (200, {"ready": True})
    assert _get(worker, "/v2")[1]["name"] == "regatta"
    assert _get(worker, "/v2/models/tiny/versions/1/ready") == (200, {"name": "tiny", "ready": True})
    status, metadata = _get(worker, "/v2/models/tiny")
    assert (status, metadata["versions"]) == (200, ["1"])
    assert metadata["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [1, 8, 8, 1]}]
    assert metadata["parameters"]["placement"] == "litert/float32/xnnpack/t1"


def test_json_and_binary_answers_agree(worker: ServingProcess, client: Client) -> None:
    """The same request gives the same numbers in JSON and in binary, and the id comes back."""
    body = json.dumps({"id": "r-1", **_json_request()}).encode()
    answer = raw_exchange(worker.spec.socket_path, post("/v2/models/tiny/versions/1/infer", body))
    document = json.loads(answer.partition(b"\r\n\r\n")[2])

    scores = client.infer("tiny", IMAGE)["scores"]

    assert (document["id"], document["model_name"], document["model_version"]) == ("r-1", "tiny", "1")
    np.testing.assert_allclose(np.reshape(document["outputs"][0]["data"], (1, 10)), scores, rtol=1e-6)
    assert float(scores.sum()) == pytest.approx(1.0, abs=1e-5)


def test_the_raw_form_answers_in_binary(worker: ServingProcess) -> None:
    """Inference-Header-Content-Length 0: the body is the tensor."""
    caller = Caller(parse_target(str(worker.spec.socket_path)), 10.0)

    answer = caller.exchange(Call("POST", INFER, IMAGE.tobytes(), header_length=0))
    caller.close()

    assert (answer.status, len(answer.body) - int(answer.headers[b"inference-header-content-length"])) == (200, 40)


def test_classes_feedback_and_metrics(worker: ServingProcess, client: Client) -> None:
    """Labels are named, feedback is judged against the answer, and all of it is counted."""
    best = client.classify("tiny", IMAGE, top=2, request_id="known")

    assert best[0].label == f"digit {best[0].index}"
    assert best[0].score >= best[1].score
    assert client.feedback("tiny", "known", label=best[0].label)
    assert client.feedback("tiny", "known", label=best[1].index)  # counted once already
    with pytest.raises(Rejected, match="remembered"):
        client.feedback("tiny", "unknown", correct=True)
    with pytest.raises(Rejected, match="none of this model"):
        client.feedback("tiny", "known", label="zebra")
    metrics = raw_exchange(worker.spec.socket_path, b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").decode()
    assert 'outcome="success"' in metrics
    assert metrics.endswith("# EOF\n")


def test_a_web_page_cannot_change_the_accuracy(worker: ServingProcess, client: Client) -> None:
    """Feedback with an Origin, which every browser adds to a post, is refused and judges nothing."""
    client.infer("tiny", IMAGE, request_id="seen")
    forged = post("/v2/models/tiny/feedback", b'{"id":"seen","correct":false}', Origin="http://example.org")

    answer = raw_exchange(worker.spec.socket_path, forged)

    assert status_of(answer) == 403
    assert client.feedback("tiny", "seen", correct=True)  # not judged before


def test_tcp_on_loopback_answers_too(folder: Path) -> None:
    """With `tcp` the worker listens there as well and tells the address."""
    process = ServingProcess(_spec(folder, version=9, tcp="127.0.0.1:0"), folder)
    try:
        address = process.ready().tcp
        with Client(f"http://{address}") as client:
            assert client.infer("tiny", IMAGE)["scores"].shape == (1, 10)
    finally:
        process.kill()


# bad input


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"\x00\x01nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", 404),
        (b"GET /v2/models/other HTTP/1.1\r\nhost: x\r\n\r\n", 404),
        (b"GET /v2/models/tiny/versions/2 HTTP/1.1\r\nhost: x\r\n\r\n", 404),
        (b"GET " + INFER.encode() + b" HTTP/1.1\r\nhost: x\r\n\r\n", 405),
        (b"DELETE /v2 HTTP/1.1\r\nhost: x\r\n\r\n", 405),
        (b"GET /v2 HTTP/1.1\r\nhost: x\r\nx-long: " + b"a" * 8000 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 8000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 431),
        (post(INFER, b""), 400),
        (post(INFER, b"{"), 400),
        (post(INFER, b"[" * 50_000), 400),
        (post(INFER, json.dumps(_json_request(name="nobody")).encode()), 400),
        (post(INFER, json.dumps(_json_request(shape=[1, 8, 8])).encode()), 400),
        (post(INFER, json.dumps(_json_request(datatype="INT8")).encode()), 400),
        (post(INFER, json.dumps(_json_request(data=[1.0])).encode()), 400),
        (post(INFER, json.dumps(_json_request(data=["a"] * 64)).encode()), 400),
        (post(INFER, json.dumps(_json_request(data=[float("nan")] * 64)).encode()), 400),
        (post(INFER, json.dumps(_json_request(parameters={"binary_data_size": 256}, data=None)).encode()), 400),
        (post(INFER, IMAGE.tobytes()[:-1], Inference_Header_Content_Length=0), 400),
        (post(INFER, np.full(64, np.nan, np.float32).tobytes(), Inference_Header_Content_Length=0), 400),
        (post(INFER, b"{}", Inference_Header_Content_Length=99), 400),
        (post(INFER, b"{}", Content_Encoding="gzip"), 415),
        (post(INFER, b"{}", Origin="http://example.org"), 403),
        (b"POST " + INFER.encode() + b" HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999\r\n\r\n", 413),
        (b"POST " + INFER.encode() + b" HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n", 400),
        (post("/v2/models/tiny/feedback", b"{}"), 400),
        (post("/v2/models/tiny/versions/1/feedback", b"{}", Origin="null"), 403),
        (post("/v2/models/tiny/feedback", b'{"id":"a","label":1,"correct":true}'), 400),
    ],
)
def test_bad_requests_get_their_status(worker: ServingProcess, request_bytes: bytes, status: int) -> None:
    """Each kind of bad request is answered with its status and an error text, and the worker goes on."""
    answer = raw_exchange(worker.spec.socket_path, request_bytes)

    assert status_of(answer) == status, answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert _get(worker, "/v2/health/ready")[0] == 200


def test_an_upgrade_is_ignored(worker: ServingProcess) -> None:
    """Nothing here speaks another protocol: the request is answered and the connection closed."""
    head = b"GET /v2 HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"

    answer = raw_exchange(worker.spec.socket_path, head)

    assert (status_of(answer), b"connection: close" in answer) == (200, True)


def test_an_oversize_chunked_body_is_refused_on_the_way(worker: ServingProcess) -> None:
    """Without a Content-Length the body is counted as it comes."""
    head = f"POST {INFER} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode()

    answer = raw_exchange(worker.spec.socket_path, head + (b"10000\r\n" + b" " * 65_536 + b"\r\n") * 8)

    assert status_of(answer) == 413


@pytest.mark.parametrize(
    "start",
    [b"GET /v2 HTTP/1.1\r\nhost", b"POST " + INFER.encode() + b" HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n12"],
)
def test_a_slow_client_is_told_and_closed(worker: ServingProcess, start: bytes) -> None:
    """A request that does not come to its end is answered 408."""
    assert status_of(raw_exchange(worker.spec.socket_path, start)) == 408


def test_a_client_that_dies_in_the_middle_harms_nobody(worker: ServingProcess, client: Client) -> None:
    """Half a body and a reset, or a request whose answer nobody reads, leave the worker serving."""
    request = post(INFER, IMAGE.tobytes(), Inference_Header_Content_Length=0)
    for data in (request[: len(request) // 2], request):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dying:
            dying.connect(str(worker.spec.socket_path))
            dying.sendall(data)
            dying.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    assert client.infer("tiny", IMAGE)["scores"].shape == (1, 10)


def test_pipelined_requests_are_answered_in_order(worker: ServingProcess) -> None:
    """Requests sent at once come back in order; far too many at once are refused."""
    one = b"GET /v2/models/tiny/ready HTTP/1.1\r\nhost: x\r\n\r\n"
    infer_request = post(INFER, IMAGE.tobytes(), Inference_Header_Content_Length=0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(10)
        connection.connect(str(worker.spec.socket_path))
        connection.sendall(infer_request + one + b"GET /v2/nothing HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        data = b""
        while piece := connection.recv(65_536):
            data += piece

    statuses = [int(part[:3]) for part in data.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [200, 200, 404]
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(10)
        connection.connect(str(worker.spec.socket_path))
        connection.sendall(one * 40)
        data = b""
        while piece := connection.recv(65_536):
            data += piece
    assert int(data.split(b"HTTP/1.1 ")[-1][:3]) == 400


def test_more_connections_than_allowed_are_refused_then_idle_ones_make_room(worker: ServingProcess) -> None:
    """Over the limit: 503 while all are fresh; later the longest idle one is closed for a newcomer."""
    idle = []
    try:
        for _ in range(8):
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(10)
            connection.connect(str(worker.spec.socket_path))
            connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n")
            receive_answer(connection)
            idle.append(connection)

        assert _get(worker, "/v2/health/live")[0] == 503
        assert any(_get(worker, "/v2/health/live")[0] == 200 for _ in _polls())
        assert idle[0].recv(1) == b""
    finally:
        for connection in idle:
            connection.close()


def test_a_crowd_of_idle_connections_is_bounded_and_leaves_nothing(folder: Path) -> None:
    """Beyond the number set each newcomer is told so; those inside are answered; afterwards no descriptor is left.

    The crowd has clients of every bad kind: silent, slow, dead in the middle, too large, cut off, with a region that
    shrinks.
    """
    shm = Path(f"/dev/shm/regatta-crowd-{os.getpid()}")
    shm.write_bytes(bytes(256))
    limits = replace(LIMITS, connections=100, idle_timeout_s=60.0)
    with serving(_spec(folder, version=10, limits=limits, shared_memory=True), folder) as process, ExitStack() as stack:
        stack.callback(shm.unlink)
        client = stack.enter_context(Client(process.spec.socket_path))
        client.infer("tiny", IMAGE)
        register = f'{{"key":"/{shm.name}","byte_size":256}}'.encode()
        raw_exchange(process.spec.socket_path, post("/v2/systemsharedmemory/region/r/register", register))
        descriptors = Path(f"/proc/{process.process.pid}/fd")
        before = _open_files(descriptors)

        _ask_badly(process.spec.socket_path, shm)
        crowd = [stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) for _ in range(400)]
        for connection in crowd:
            connection.connect(str(process.spec.socket_path))
        wait_until(lambda: len(_told(crowd)) >= 300, 10, "all but a hundred were refused, or gave way when long idle")
        answers = [receive_answer(connection) for connection in _told(crowd)]
        assert client.infer("tiny", IMAGE)["scores"].shape == (1, 10)
        for connection in crowd:
            connection.close()

        assert {status_of(answer) for answer in answers if answer} == {503}
        assert all(b"too many connections" in answer for answer in answers if answer)
        wait_until(lambda: len(_open_files(descriptors)) <= len(before), 10, f"no more are open than {before}")


def _open_files(descriptors: Path) -> list[str]:
    """Return what a process has open."""
    found = []
    for one in descriptors.iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed between the two looks
            found.append(str(one.readlink()))
    return found


def _ask_badly(path: Path, shm: Path) -> None:
    request = post("/v2/models/tiny/infer", IMAGE.tobytes(), Inference_Header_Content_Length=0)
    for data in (request[:20], request[:-1], request, b"\x00" * 100):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dying:
            dying.connect(str(path))
            dying.sendall(data)
    assert status_of(raw_exchange(path, post(INFER, IMAGE.tobytes()[:-1], Inference_Header_Content_Length=0))) == 400
    head = b"POST " + INFER.encode() + b" HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999\r\n\r\n"
    assert status_of(raw_exchange(path, head)) == 413
    os.truncate(shm, 100)
    region = {"shared_memory_region": "r", "shared_memory_byte_size": 256}
    shared = _json_request(parameters=region)
    del shared["inputs"][0]["data"]
    answer = raw_exchange(path, post(INFER, json.dumps(shared).encode()))
    assert (status_of(answer), b"100 bytes now" in answer) == (400, True)


def _told(connections: list[socket.socket]) -> list[socket.socket]:
    """Return those on which the worker has sent something, or which it has closed."""
    poll = select.poll()
    for connection in connections:
        poll.register(connection, select.POLLIN)
    ready = {number for number, _ in poll.poll(0)}
    return [connection for connection in connections if connection.fileno() in ready]


def _polls(seconds: float = 10.0) -> Iterator[None]:
    """Give turns, 50 ms apart, until the time is up."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.05)):
        yield
        pause.wait(0.05)


def test_a_full_queue_answers_429(folder: Path) -> None:
    """With room for one request, some of many at once are told to come back later; none is lost."""
    limits = replace(LIMITS, queue_length=1, connections=64)
    with serving(_spec(folder, version=8, limits=limits), folder) as process:
        request = post(INFER, IMAGE.tobytes(), Inference_Header_Content_Length=0)
        connections = []
        for _ in range(40):
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(10)
            connection.connect(str(process.spec.socket_path))
            connections.append(connection)
        for connection in connections:
            connection.sendall(request)
        answers = [receive_answer(connection) for connection in connections]
        for connection in connections:
            connection.close()

    statuses = {status_of(answer) for answer in answers}
    assert statuses <= {200, 429}
    assert 200 in statuses
    assert all(b"retry-after: 1" in answer for answer in answers if status_of(answer) == 429)


_FAULTY = (  # a worker that knows one more runtime
    "import os, sys; from regatta_runtimes.worker import session; session.BACKENDS['faulty'] = 'faulty_backend';"
    "from regatta_agent.serving.worker import main; os._exit(main(sys.argv[1:], 0))"
)


@pytest.mark.parametrize("variant", ["hang1", "hang20"])
def test_an_inference_that_hangs_ends_the_worker(folder: Path, variant: str) -> None:
    """On the inference thread (the first request) and on the loop's (after brief ones) alike."""
    limits = replace(LIMITS, hang_s=0.5)
    spec = _spec(folder, version=5, candidate_id=f"faulty/{variant}/none/t1", limits=limits)
    process = ServingProcess(spec, folder, ("-c", _FAULTY))
    try:
        process.ready()
        with Client(spec.socket_path, retry_s=0.0) as client, pytest.raises(Retryable):
            for _ in range(21):
                client.infer("tiny", np.zeros((1, 4), np.float32))
        event = process.next_event()
        assert process.process.wait(30) == Retryable.exit_code
    finally:
        process.kill()

    assert isinstance(event, Failed)
    assert (event.family, "has not ended after 0.5 s" in event.reason) == ("retryable", True)
    assert not spec.socket_path.exists()


# the client and the command


def test_the_client_says_what_is_wrong(worker: ServingProcess, client: Client, tmp_path: Path) -> None:
    """Absent sockets, long paths, other models and arrays that do not fit each have their words."""
    with pytest.raises(Retryable, match="is not there"):
        Client(tmp_path / "no.sock").is_ready("tiny")
    with pytest.raises(Misuse, match="REGATTA_RUN_DIR"):
        Client("/tmp/" + "x" * 120)
    with pytest.raises(Misuse, match="target"):
        Client("ftp://127.0.0.1:1")
    with pytest.raises(Rejected, match="not served here"):
        client.metadata("other")
    with pytest.raises(Rejected, match="shape"):
        client.infer("tiny", np.zeros((3, 3), dtype=np.float32))
    with pytest.raises(Rejected, match="takes 1"):
        client.infer("tiny", [IMAGE, IMAGE])
    assert client.is_ready("tiny")
    assert issubclass(ServerBusy, Retryable)


def test_infer_reads_csv_and_npy(worker: ServingProcess, folder: Path) -> None:
    """The command infers each sample of a table or an array, and names the best classes."""
    run_dir = folder / "run"
    run_dir.mkdir(exist_ok=True)
    (run_dir / "tiny.sock").symlink_to(worker.spec.socket_path)
    table, array = folder / "two.csv", folder / "one.npy"
    np.savetxt(table, np.repeat(IMAGE.reshape(1, 64), 2, axis=0), delimiter=",")
    np.save(array, IMAGE[0])

    result = CliRunner().invoke(infer, ["tiny", str(table), str(array), "--run-dir", str(run_dir), "--json"])
    missing = CliRunner().invoke(infer, ["absent", str(table), "--run-dir", str(run_dir)])

    answers = [json.loads(line) for line in result.output.splitlines()]
    assert [Path(answer["file"]).name for answer in answers] == ["two.csv[0]", "two.csv[1]", "one.npy"]
    assert len({answer["classes"][0]["label"] for answer in answers}) == 1
    assert isinstance(missing.exception, Retryable)
    assert "served in" in str(missing.exception)


def test_infer_takes_a_label_for_each_sample(worker: ServingProcess, folder: Path) -> None:
    """--labels tells the worker the truth of each sample, and refuses a file of another length."""
    run_dir = folder / "labelled"
    run_dir.mkdir()
    (run_dir / "tiny.sock").symlink_to(worker.spec.socket_path)
    array, truth = folder / "three.npy", folder / "truth.txt"
    np.save(array, np.repeat(IMAGE, 3, axis=0))
    arguments = ["tiny", str(array), "--run-dir", str(run_dir), "--json", "--labels", str(truth)]

    truth.write_text("0\n1\n2\n")
    told = CliRunner().invoke(infer, arguments)
    truth.write_text("0\n1\n2\n3\n")
    too_long = CliRunner().invoke(infer, arguments)
    truth.write_text("0\n")
    too_short = CliRunner().invoke(infer, arguments)

    verdicts = [json.loads(line)["correct"] for line in told.output.splitlines()]
    assert (len(verdicts), verdicts.count(True)) == (3, verdicts.count(True)) and verdicts.count(True) <= 1
    assert isinstance(too_long.exception, Rejected) and "4 lines" in str(too_long.exception)
    assert isinstance(too_short.exception, Rejected) and "1 lines" in str(too_short.exception)


def test_a_picture_of_a_cat_is_a_cat(tmp_path: Path) -> None:
    """MobileNet v2, uint8, sees an Egyptian cat in cat.bmp."""
    pytest.importorskip("PIL", reason="pictures need the images extra")
    spec = ServeSpec(
        model=ModelName("mobilenet"),
        version=1,
        candidate_id="litert/uint8/xnnpack/t1",
        variant_path=shared_file("coral/mobilenet_v2_1.0_224_quant.tflite"),
        labels_path=shared_file("coral/imagenet_labels.txt"),
        socket_path=tmp_path / "mobilenet.sock",
    )
    cat = str(shared_file("coral/cat.bmp"))
    with serving(spec, tmp_path):
        result = CliRunner().invoke(
            infer, ["mobilenet", cat, "--top", "1", "--label", "Egyptian cat", "--run-dir", str(tmp_path)]
        )

    assert result.exit_code == 0, result.output
    assert "Egyptian cat" in result.output.splitlines()[1]
    assert "correct" in result.output
