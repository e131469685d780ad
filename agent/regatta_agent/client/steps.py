"""What a client does, step by step, without doing it: each operation yields calls and pauses, and is sent the answers.

So there is one description of metadata, retries over a swap and errors, and two drivers of it: `sync.py` and `aio.py`.
A driver throws ClosedBeforeAnswer into the steps when the connection ended before an answer; every other error is its
caller's.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from regatta_agent.client.messages import (
    Arrays,
    Described,
    Item,
    Part,
    Processed,
    Score,
    checked,
    encode_inputs,
    encode_item,
    header_of,
    is_sent_whole,
    json_of,
    parse_score,
    processed_of,
    tensors_of,
)
from regatta_agent.client.sharing import SharedRegion
from regatta_agent.serving.caller import ADVICE, Answer, Call, ClosedBeforeAnswer
from regatta_agent.serving.tensors import Array
from regatta_protocol.errors import Rejected, Retryable

__all__ = ["Pause", "Steps", "Walk"]

T = TypeVar("T")

_RETRY_FIRST_S, _RETRY_CAP_S = 0.01, 0.1  # connecting to a local socket costs 50 us, a worker's start 300 ms


@dataclass(frozen=True)
class Pause:
    """Wait so long before the next step."""

    seconds: float


Walk = Generator[Call | Pause, Answer | None, T]
_Encode = Callable[[dict[str, Any]], tuple[str, tuple[Described, ...], list[Part]]]
_BINARY = '"parameters":{"binary_data_output":true}'
_STACKED = '"parameters":{"stacked":true,"binary_data_output":true}'
_PROCESSED = '"parameters":{"processed":true,"binary_data_output":true}'


class Steps:
    """The operations over one connection."""

    def __init__(self, is_open: Callable[[], bool], retry_s: float, region: SharedRegion | None = None) -> None:
        """Keep what they share.

        Args:
            is_open: whether the connection of the last exchange is kept.
            retry_s: how long to try again when a connection is closed before its answer.
            region: where the tensors of `infer` go; None: into the requests.
        """
        self._region = region
        self._registered = ""  # the region that this connection's worker knows
        self._is_open = is_open
        self._retry_s = retry_s
        self._metadata: dict[str, dict[str, Any]] = {}  # by model, of this connection: a swap may change it

    def forget(self) -> None:
        """Read metadata anew when it is needed, and register the region."""
        self._metadata.clear()
        self._registered = ""
        if self._region is not None:
            self._region.close()

    def is_ready(self, model: str) -> Walk[bool]:
        """Walk to whether the model can be asked now."""
        answer = yield from self._ask(Call("GET", f"/v2/models/{model}/ready"))
        return answer.status == 200

    def metadata(self, model: str) -> Walk[dict[str, Any]]:
        """Walk to the model's metadata."""
        if not self._is_open():
            self._metadata.clear()
            self._registered = ""
        known = self._metadata.get(model)
        if known is None:
            answer = yield from self._ask(Call("GET", f"/v2/models/{model}"))
            known = self._metadata[model] = json_of(checked(answer))
        return known

    def infer(self, model: str, arrays: Arrays, request_id: str | None) -> Walk[dict[str, Array]]:
        """Walk to every output by its name."""
        region = self._region
        if region is None:
            answer = yield from self._infer(
                model, lambda known: (_BINARY, *encode_inputs(known["inputs"], arrays)), request_id
            )
            return tensors_of(answer)

        def place(known: dict[str, Any]) -> tuple[str, tuple[Described, ...], list[Part]]:
            described, outputs = region.place(*encode_inputs(known["inputs"], arrays), known["outputs"])
            return f"{_BINARY},{_outputs(outputs)}", described, []

        answer = yield from self._infer(model, place, request_id, shared=True)
        return tensors_of(answer, region.read)

    def infer_stacked(self, model: str, arrays: Arrays, top: int) -> Walk[dict[str, Array]]:
        """Walk to every output of many samples, or to the top classes of the first one."""
        metadata = yield from self.metadata(model)
        wish = _STACKED if top <= 0 else f"{_STACKED},{_classes(metadata['outputs'][0]['name'], top)}"
        answer = yield from self._infer(model, lambda known: (wish, *encode_inputs(known["inputs"], arrays)), None)
        return tensors_of(answer)

    def process(self, model: str, item: Item, top: int, request_id: str | None) -> Walk[Processed]:
        """Walk to what the manifest makes of a picture or a sound."""
        wish = _PROCESSED if top <= 0 else f"{_PROCESSED},{_classes('result', top)}"
        entry, data = encode_item(item)
        answer = yield from self._infer(model, lambda known: (wish, (entry,), [data]), request_id)
        return processed_of(answer)

    def classify(self, model: str, item: Item | Arrays, top: int, request_id: str | None) -> Walk[list[Score]]:
        """Walk to the `top` greatest scores, best first."""
        metadata = yield from self.metadata(model)
        if isinstance(item, bytes) or (isinstance(item, np.ndarray) and is_sent_whole(item, metadata)):
            done = yield from self.process(model, item, top, request_id)
            if "classes" not in done.document:
                raise Rejected(f"{model} answers with {done.document.get('kind')} and not with classes: use process")
            return [Score(one["index"], one["score"], one["label"]) for one in done.document["classes"]]
        first = metadata["outputs"][0]["name"]
        wish = _classes(first, top)
        answer = yield from self._infer(model, lambda known: (wish, *encode_inputs(known["inputs"], item)), request_id)
        return [parse_score(bytes(text).decode()) for text in tensors_of(answer)[first].ravel()]

    def feedback(self, model: str, request_id: str, label: str | int | None, correct: bool | None) -> Walk[bool]:
        """Walk to whether the answered request was right."""
        document = {"id": request_id, **({"correct": correct} if label is None else {"label": label})}
        body = json.dumps(document).encode()
        answer = yield from self._ask(Call("POST", f"/v2/models/{model}/feedback", body))
        return bool(json_of(checked(answer))["correct"])

    def _infer(self, model: str, encode: _Encode, request_id: str | None, *, shared: bool = False) -> Walk[Answer]:
        began, attempt = time.monotonic(), 0
        while True:
            metadata = yield from self.metadata(model)
            pause_s = 0.0
            if self._is_open() or attempt > 0:  # else that worker is leaving: read its successor's metadata
                wish, inputs, tail = encode(metadata)
                header = header_of(wish, inputs)
                if request_id is not None:
                    header = b'{"id":%s,%s' % (json.dumps(request_id).encode(), header[1:])
                try:
                    if shared:
                        yield from self._register()
                    answer = yield Call("POST", f"/v2/models/{model}/infer", header, tail, len(header))
                except ClosedBeforeAnswer as err:
                    pause_s = self._pause_s(began, attempt, err)
                else:
                    assert answer is not None
                    return checked(answer)
            if pause_s > 0:
                yield Pause(pause_s)
            attempt += 1

    def _register(self) -> Walk[None]:
        """Make the region known to the worker at the other end of this connection.

        Raises:
            ClosedBeforeAnswer: when the connection ended: the caller begins again.
            Rejected: when the worker offers no shared memory, or may not open the region.
        """
        region = self._region
        assert region is not None
        if self._registered == region.name:
            return
        place = f"/v2/systemsharedmemory/region/{region.name}"
        for old in filter(None, (self._registered, region.name)):
            yield Call("POST", f"/v2/systemsharedmemory/region/{old}/unregister")
        body = json.dumps({"key": f"/{region.name}", "offset": 0, "byte_size": region.size}).encode()
        answer = yield Call("POST", f"{place}/register", body)
        assert answer is not None
        checked(answer)
        if not self._is_open():
            raise ClosedBeforeAnswer("the worker that knows the region is leaving")
        self._registered = region.name

    def _ask(self, call: Call) -> Walk[Answer]:
        began, attempt = time.monotonic(), 0
        while True:
            try:
                answer = yield call
            except ClosedBeforeAnswer as err:
                pause_s = self._pause_s(began, attempt, err)
            else:
                assert answer is not None
                return answer
            if pause_s > 0:
                yield Pause(pause_s)
            attempt += 1

    def _pause_s(self, began: float, attempt: int, err: ClosedBeforeAnswer) -> float:
        """Return the wait before the next attempt, none before the second, which finds the new worker.

        Raises:
            Retryable: when the time for trying is over.
        """
        if time.monotonic() - began > self._retry_s:
            raise Retryable(f"{err}; tried for {self._retry_s:g} s: {ADVICE}") from err
        if attempt == 0:
            return 0.0
        return random.uniform(0, min(_RETRY_CAP_S, _RETRY_FIRST_S * 2 ** min(attempt, 10)))  # noqa: S311 - jitter


def _outputs(wishes: Sequence[Mapping[str, Any]]) -> str:
    return f'"outputs":{json.dumps(wishes, separators=(",", ":"))}'


def _classes(output: str, top: int) -> str:
    """Return the wish for the greatest scores of an output."""
    return _outputs([{"name": output, "parameters": {"classification": top}}])
