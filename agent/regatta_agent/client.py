"""A client of a served model: `Client(path or URL)`, then `infer` or `classify`. numpy and the standard library.

    client = Client("/run/regatta-agent/digits.sock")
    outputs = client.infer("digits", image)            # name -> array
    best = client.classify("digits", image, top=3)     # the greatest scores with their labels

It keeps one connection, and survives swaps and deaths: a worker that leaves or dies closes its connection, and the
client connects anew (the socket path is a symlink that points to the new worker by then) and asks again, for up to
`retry_s`. An inference changes nothing, so asking again is safe; feedback is counted once by its id.

A client is for one thread at a time. Floating-point arrays are sent as FP32 real values, which every variant of a
model takes; integer arrays are sent as they are, in the placed file's own type.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from regatta_agent.serving.caller import ADVICE, Answer, Caller, ClosedBeforeAnswer
from regatta_agent.serving.tensors import Array, datatype_of, decode_binary, decode_json, encode_binary
from regatta_protocol.errors import Rejected, Retryable, TooLarge

__all__ = ["Arrays", "Client", "Score", "ServerBusy"]

Arrays = Array | Sequence[Array] | Mapping[str, Array]

_RETRY_FIRST_S, _RETRY_CAP_S = 0.01, 0.1  # connecting to a local socket costs 50 us, a worker's start 300 ms


class ServerBusy(Retryable):
    """The worker's queue is full (429), or it is still loading (503). `after_s` is what it asked to wait."""

    def __init__(self, message: str, after_s: float) -> None:
        super().__init__(message)
        self.after_s = after_s


@dataclass(frozen=True)
class Score:
    """One class of a classification: its index, the model's score for it, and its label (the index when unnamed)."""

    index: int
    score: float
    label: str


class Client:
    """A connection to one served model, made when first needed and again when it was closed."""

    def __init__(self, target: str | Path, *, timeout_s: float = 30.0, retry_s: float = 5.0) -> None:
        """Keep the target: a socket's path, `unix:PATH`, or `http://HOST:PORT`.

        Args:
            target: where the worker listens.
            timeout_s: for connecting, and for each answer as a whole.
            retry_s: how long to try again when a connection is closed before its answer, as in a swap.

        Raises:
            Misuse: when the target is neither a path nor a plain http URL, or the path is too long for a socket.
        """
        self._caller = Caller(str(target), timeout_s)
        self._target = str(target)
        self._retry_s = retry_s
        self._metadata: dict[str, dict[str, Any]] = {}  # by model, of this connection: a swap may change it

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        self._caller.close()
        self._metadata.clear()

    def is_ready(self, model: str) -> bool:
        """Return whether the model can be asked now."""
        return self._ask("GET", f"/v2/models/{model}/ready").status == 200

    def metadata(self, model: str) -> dict[str, Any]:
        """Return the model's metadata, as the protocol gives it.

        Raises:
            Rejected: when the worker serves another model.
            Retryable: when the socket is absent or closed.
        """
        if not self._caller.is_open:
            self._metadata.clear()
        known = self._metadata.get(model)
        if known is None:
            known = self._metadata[model] = _json(_checked(self._ask("GET", f"/v2/models/{model}")))
        return known

    def infer(self, model: str, arrays: Arrays, *, request_id: str | None = None) -> dict[str, Array]:
        """Return every output by its name.

        Args:
            model: the model's name.
            arrays: the inputs: one array, several in the model's order, or by name. Floating-point arrays are real
                values; an array that lacks only the leading 1 of the model's shape is given it.
            request_id: an id to give feedback with later.

        Raises:
            Rejected: when the worker refuses the request; the text is the worker's.
            ServerBusy: when its queue is full.
            Retryable: when the socket is absent or closed, or the model fails.
        """
        return _tensors(self._infer(model, arrays, request_id, {"parameters": {"binary_data_output": True}}))

    def classify(self, model: str, arrays: Arrays, *, top: int = 5, request_id: str | None = None) -> list[Score]:
        """Return the `top` greatest scores of the model's first output, best first.

        Raises:
            Rejected, ServerBusy, Retryable: as infer.
        """
        first = self.metadata(model)["outputs"][0]["name"]
        wish = {"outputs": [{"name": first, "parameters": {"classification": top}}]}
        texts = _tensors(self._infer(model, arrays, request_id, wish))[first]
        return [_score(bytes(text).decode()) for text in texts.ravel()]

    def feedback(
        self, model: str, request_id: str, *, label: str | int | None = None, correct: bool | None = None
    ) -> bool:
        """Tell the right label of an answered request (or whether it was right); return whether it was right.

        Raises:
            Rejected: when the request is not remembered any more, or the label is unknown.
            Retryable: when the socket is absent or closed.
        """
        document = {"id": request_id, **({"correct": correct} if label is None else {"label": label})}
        answer = self._ask("POST", f"/v2/models/{model}/feedback", json.dumps(document).encode())
        return bool(_json(_checked(answer))["correct"])

    def _infer(self, model: str, arrays: Arrays, request_id: str | None, extra: dict[str, Any]) -> Answer:
        document = dict(extra) if request_id is None else {"id": request_id, **extra}
        began, attempt = time.monotonic(), 0
        while True:
            metadata = self.metadata(model)
            if self._caller.is_open or attempt > 0:  # else that worker is leaving: read its successor's metadata
                document["inputs"], tail = _encode(metadata["inputs"], arrays)
                header = json.dumps(document, separators=(",", ":")).encode()
                body = b"".join((header, *tail))
                try:
                    return _checked(self._caller.exchange("POST", f"/v2/models/{model}/infer", body, len(header)))
                except ClosedBeforeAnswer as err:
                    self._pause(began, attempt, err)
            attempt += 1

    def _ask(self, method: str, path: str, body: bytes = b"") -> Answer:
        began, attempt = time.monotonic(), 0
        while True:
            try:
                return self._caller.exchange(method, path, body)
            except ClosedBeforeAnswer as err:
                self._pause(began, attempt, err)
            attempt += 1

    def _pause(self, began: float, attempt: int, err: ClosedBeforeAnswer) -> None:
        """Wait before the next attempt, but not before the second, which finds the new worker; or give up."""
        if time.monotonic() - began > self._retry_s:
            raise Retryable(f"{err}; tried for {self._retry_s:g} s: {ADVICE}") from err
        if attempt > 0:
            limit_s = min(_RETRY_CAP_S, _RETRY_FIRST_S * 2 ** min(attempt, 10))
            time.sleep(random.uniform(0, limit_s))  # noqa: S311 - jitter


def _checked(answer: Answer) -> Answer:
    """Return the answer when it is a success, else raise what its status means."""
    if answer.status == 200:
        return answer
    try:
        text = str(_json(answer)["error"])
    except (Rejected, KeyError):
        text = f"the worker answered with status {answer.status}"
    if answer.status in (429, 503):
        after = answer.headers.get(b"retry-after", b"1")
        raise ServerBusy(text, float(after) if after.isdigit() else 1.0)
    if answer.status == 413:
        raise TooLarge(text)
    if answer.status >= 500:
        raise Retryable(text)
    raise Rejected(text)


def _encode(wanted: Sequence[Mapping[str, Any]], arrays: Arrays) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Return the request's input entries and their binary parts."""
    named: Mapping[str, Array]
    if isinstance(arrays, Mapping):
        named = arrays
    else:
        given = [arrays] if isinstance(arrays, np.ndarray) else list(arrays)
        if len(given) != len(wanted):
            names = ", ".join(str(entry["name"]) for entry in wanted)
            raise Rejected(f"{len(given)} arrays were given and the model takes {len(wanted)}: {names}")
        named = {str(entry["name"]): array for entry, array in zip(wanted, given, strict=True)}
    shapes = {str(entry["name"]): entry["shape"] for entry in wanted}
    entries, tail = [], []
    for name, given_array in named.items():
        array, shape = given_array, shapes.get(name, [])
        if array.ndim + 1 == len(shape) and shape[0] in (1, -1):
            array = array[np.newaxis]
        if array.dtype.kind == "f" and array.dtype != np.float32:
            array = array.astype(np.float32)
        data = encode_binary(array)
        tail.append(data)
        entries.append(
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": datatype_of(array.dtype),
                "parameters": {"binary_data_size": len(data)},
            }
        )
    return entries, tail


def _header_length(answer: Answer) -> int:
    """Return where the binary part begins; the body's length when there is none."""
    text = answer.headers.get(b"inference-header-content-length", b"")
    return int(text) if text.isdigit() else len(answer.body)


def _json(answer: Answer) -> dict[str, Any]:
    try:
        document = json.loads(bytes(answer.body[: _header_length(answer)]))
    except (ValueError, RecursionError) as err:
        raise Rejected("the worker's answer is no JSON") from err
    if not isinstance(document, dict):
        raise Rejected("the worker's answer is no JSON object")
    return document


def _tensors(answer: Answer) -> dict[str, Array]:
    document, rest = _json(answer), answer.body[_header_length(answer) :]
    tensors: dict[str, Array] = {}
    try:
        for output in document["outputs"]:
            size = output.get("parameters", {}).get("binary_data_size")
            if size is None:
                array = decode_json(output["datatype"], output["shape"], output["data"])
            else:
                array, rest = decode_binary(output["datatype"], output["shape"], rest[:size]), rest[size:]
            tensors[output["name"]] = array
    except (KeyError, TypeError, AttributeError) as err:
        raise Rejected(f"the worker's answer is no infer response: {err}") from err
    return tensors


def _score(text: str) -> Score:
    score, index, *label = text.split(":", 2)
    return Score(int(index), float(score), label[0] if label else index)
