"""One client of `./run bench serving`, in the environment of what it asks: `asker.py WAY ADDRESS MODEL INPUT.npy`.

Reads lines: `times N` answers with the microseconds of N requests, `count SECONDS` with how many were answered and how
many failed, `log SECONDS RATE` with how many failed and, of the others, when each ended (monotonic seconds) and
its microseconds, asking RATE times a second or, at 0, as often as answers come. Each request is the input's bytes; each
way keeps one connection.
"""

from __future__ import annotations

import base64
import http.client
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

Ask = Callable[[], object]


def _floor(_address: str, model: str, sample: np.ndarray) -> Ask:
    from regatta_runtimes.candidate import parse_candidate_id
    from regatta_runtimes.worker.session import open_session

    session = open_session(parse_candidate_id("litert/model/xnnpack/t1"), Path(model))
    return lambda: session.run([sample])


def _regatta(address: str, _model: str, sample: np.ndarray) -> Ask:
    from regatta_agent.client import Client

    client = Client(address)
    return lambda: client.infer("m", [sample])


def _posting(address: str, path: str, encode: Callable[[], bytes], content_type: str) -> Ask:
    """POST over a kept connection, encoding anew each time, as every client must."""
    host, _, port = address.partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)

    def ask() -> None:
        connection.request("POST", path, encode(), {"Content-Type": content_type})
        answer = connection.getresponse()
        data = answer.read()
        if answer.status != 200:
            raise OSError(f"status {answer.status}: {data[:200]!r}")

    return ask


def _in_base64(address: str, _model: str, sample: np.ndarray) -> Ask:
    def encode() -> bytes:
        return json.dumps({"x": base64.b64encode(sample.tobytes()).decode()}).encode()

    return _posting(address, "/predict", encode, "application/json")


def _regatta_grpc(address: str, _model: str, sample: np.ndarray) -> Ask:
    """Ask Regatta over gRPC with raw contents."""
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    stub = service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(address))
    names = {"int8": "INT8", "uint8": "UINT8", "float32": "FP32"}
    model = stub.ModelMetadata(service_pb2.ModelMetadataRequest(name="m"), timeout=60)
    tensor = service_pb2.ModelInferRequest.InferInputTensor(
        name=model.inputs[0].name, datatype=names[sample.dtype.name], shape=sample.shape
    )
    return lambda: stub.ModelInfer(
        service_pb2.ModelInferRequest(model_name="m", inputs=[tensor], raw_input_contents=[sample.tobytes()]),
        timeout=60,
    )


def _mlserver(address: str, _model: str, sample: np.ndarray) -> Ask:
    """Ask over gRPC with raw contents, the fastest of its ways."""
    import grpc
    from mlserver.grpc import dataplane_pb2, dataplane_pb2_grpc

    stub = dataplane_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(address))
    names = {"int8": "INT8", "uint8": "UINT8", "float32": "FP32"}
    tensor = dataplane_pb2.ModelInferRequest.InferInputTensor(
        name="x", datatype=names[sample.dtype.name], shape=sample.shape
    )
    request = dataplane_pb2.ModelInferRequest(model_name="m", inputs=[tensor], raw_input_contents=[sample.tobytes()])
    return lambda: stub.ModelInfer(request, timeout=60)


WAYS = {
    "floor": _floor,
    "regatta": _regatta,
    "regatta-grpc": _regatta_grpc,
    "litserve": _in_base64,
    "bentoml": _in_base64,
    "mlserver": _mlserver,
}


def _times(ask: Ask, count: int) -> list[float]:
    times = []
    for _ in range(count):
        began_ns = time.perf_counter_ns()
        ask()
        times.append((time.perf_counter_ns() - began_ns) / 1000)
    return times


def _count(ask: Ask, seconds: float) -> list[int]:
    answered = failed = 0
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        try:
            ask()
            answered += 1
        except Exception as err:  # noqa: BLE001 - whatever the client raises is a failed request
            failed += 1
            print(err, file=sys.stderr)
    return [answered, failed]


def _log(ask: Ask, seconds: float, rate: float) -> list[object]:
    """Return how many failed, and of the others when each ended and its microseconds, from when it was due."""
    answered: list[tuple[float, float]] = []
    failed, due = 0, time.monotonic()
    ends = due + seconds
    while (began := time.monotonic()) < ends:
        if rate:
            if began < due:
                time.sleep(due - began)
                began = time.monotonic()
            else:
                began = due  # an answer that came late has kept this one waiting
            due += 1 / rate
        try:
            ask()
        except Exception as err:  # noqa: BLE001 - the same
            failed += 1
            print(err, file=sys.stderr)
            continue
        ended = time.monotonic()
        answered.append((ended, (ended - began) * 1e6))
    return [failed, answered]


def main() -> None:
    way, address, model, path = sys.argv[1:]
    ask = WAYS[way](address, model, np.load(path))
    ask()
    print("ready", flush=True)
    acts = {"times": lambda text: _times(ask, int(text)), "count": lambda text: _count(ask, float(text)),
            "log": lambda text: _log(ask, *map(float, text.split()))}  # fmt: skip
    for line in sys.stdin:
        command, _, value = line.partition(" ")
        print(json.dumps(acts[command](value)), flush=True)


if __name__ == "__main__":
    main()
