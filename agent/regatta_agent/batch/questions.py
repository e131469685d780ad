"""Records to requests and answers to results: what can be stacked is asked together, everything else by itself.

How many samples a stack has follows from how long one takes, so that a model that others use is not held for long. A
block of an array is cut into stacks as it lies: its samples are neither copied nor touched one by one.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np

from regatta_agent.asking import ask
from regatta_agent.batch.results import Results
from regatta_agent.client import Client
from regatta_agent.client.messages import ServerBusy, is_sent_whole, parse_score
from regatta_agent.inputs.records import Block, Part, Record, records_of
from regatta_agent.serving.tensors import Array
from regatta_protocol import sketch
from regatta_protocol.errors import Misuse, Rejected, Retryable, TooLarge

__all__ = ["Asker", "Question", "Sizer", "questions"]

_STACK_S = 0.02  # one request's computing: what an online request may wait for behind it
_STACK_BYTES = 2 * 1024 * 1024 - 4096  # the worker takes a body of 2 MiB at least, which describes the tensor too
_MAX_STACK = 1024  # the worker takes no more
_RETRY_FIRST_S, _RETRY_CAP_S = 0.05, 5.0
_NO_ROW = "a file of rows (.npy) is for the model's own inputs: use .jsonl, .csv or .parquet"


@dataclass(frozen=True)
class Question:
    """What one request asks: an item by itself, or a stack of samples, [n, …]; neither where it was `refused`."""

    keys: Sequence[str]
    item: bytes | Array | None = None
    stack: Array | None = None
    refused: str | None = None


class Sizer:
    """How many samples go into a stack. One thread reads, others tell; a late figure does no harm."""

    def __init__(self) -> None:
        self._limit = _MAX_STACK
        self._sample_s: float | None = None

    def size(self, sample_bytes: int) -> int:
        """Return how many samples of so many bytes; 1 until a time is known."""
        if self._sample_s is None:
            return 1
        by_time = int(_STACK_S / max(self._sample_s, 1e-6))
        return max(1, min(by_time, _STACK_BYTES // max(1, sample_bytes), self._limit))

    def answered(self, samples: int, seconds: float) -> None:
        """Tell how long a question took; waiting behind others counts in, so the least is believed."""
        each = seconds / samples
        self._sample_s = each if self._sample_s is None else min(self._sample_s, each)

    def too_large(self, samples: int) -> None:
        """Tell that the worker does not take so many."""
        self._limit = max(1, samples // 2)


def questions(parts: Iterable[Part], sizer: Sizer, metadata: Mapping[str, Any]) -> Iterator[Question]:
    """Yield the questions of all records, in order."""

    def is_cut(part: Part) -> bool:
        return isinstance(part, Block) and not is_sent_whole(part.array[0], metadata)

    for cut, alike in groupby(parts, is_cut):
        if not cut:
            yield from _gathered(records_of(alike), sizer, metadata)
            continue
        for part in alike:
            assert isinstance(part, Block)
            yield from _cut(part, sizer)


def _cut(block: Block, sizer: Sizer) -> Iterator[Question]:
    """Yield the questions of a block of the model's own inputs."""
    at, sample_bytes = 0, block.array[:1].nbytes
    while at < len(block):
        piece = block.part(at, at + sizer.size(sample_bytes))
        yield Question(list(piece.keys), stack=piece.array)
        at += len(piece)


def _gathered(records: Iterable[Record], sizer: Sizer, metadata: Mapping[str, Any]) -> Iterator[Question]:
    """Yield the questions of records that come one by one."""
    keys: list[str] = []
    stack: list[Array] = []
    for record in records:
        try:
            item = record.read()
        except Rejected as err:
            if keys:
                yield Question(keys, stack=np.stack(stack))
                keys, stack = [], []
            yield Question([record.key], refused=str(err))
            continue
        stackable = isinstance(item, np.ndarray) and not is_sent_whole(item, metadata)
        if keys and not (stackable and _alike(item, stack[0])):
            yield Question(keys, stack=np.stack(stack))
            keys, stack = [], []
        if not stackable:
            yield Question([record.key], item=item)
            continue
        assert isinstance(item, np.ndarray)
        keys.append(record.key)
        stack.append(item)
        if len(stack) >= sizer.size(item.nbytes):
            yield Question(keys, stack=np.stack(stack))
            keys, stack = [], []
    if keys:
        yield Question(keys, stack=np.stack(stack))


def _alike(item: bytes | Array, other: Array) -> bool:
    return isinstance(item, np.ndarray) and item.shape == other.shape and item.dtype == other.dtype


class Asker:
    """Asks a model, with patience. Used by one thread at a time."""

    def __init__(self, client: Client, model: str, sizer: Sizer, *, top: int, rows: bool, patience_s: float) -> None:
        """Keep what is asked.

        Args:
            client: of the worker.
            model: the model's name.
            sizer: told how long questions take.
            top: how many classes or objects; 0: as the manifest says.
            rows: results are rows of the first output, in real values.
            patience_s: how long a worker that is away, busy or failing is asked again.
        """
        self._client = client
        self._model = model
        self._sizer = sizer
        self._top = top
        self._rows = rows
        self._patience_s = patience_s
        self.latency_counts: dict[int, int] = {}  # a sketch of the microseconds of each question that was answered

    def answer(self, question: Question) -> list[Results]:
        """Return the results of all its records, in order.

        Raises:
            Retryable: when the patience is over.
        """
        if question.refused is not None:
            return [Results(question.keys, error=question.refused)]
        began, attempt = time.monotonic(), 0
        while True:
            asked = time.perf_counter()
            try:
                results = self._answer(question)
            except Retryable as err:
                if time.monotonic() - began > self._patience_s:
                    raise
                limit_s = min(_RETRY_CAP_S, _RETRY_FIRST_S * 2 ** min(attempt, 10))
                pause_s = random.uniform(0, limit_s)  # noqa: S311 - jitter
                asked_s = err.after_s if isinstance(err, ServerBusy) else 0.0
                time.sleep(min(asked_s + pause_s, self._patience_s))  # jitter on top: all in flight are told the same
                attempt += 1
                continue
            sketch.add(self.latency_counts, (time.perf_counter() - asked) * 1e6)
            return results

    def _answer(self, question: Question) -> list[Results]:
        stack, count = question.stack, len(question.keys)
        if stack is None or (count == 1 and not self._rows):
            item = question.item if stack is None else stack[0]
            assert item is not None
            return [self._alone(question.keys, item)]
        began = time.perf_counter()
        try:
            results = self._stacked(question.keys, stack)
        except TooLarge:
            if count == 1:
                raise
            self._sizer.too_large(count)
            return [one for half in _halves(question, stack) for one in self._answer(half)]
        except Rejected as err:
            if count == 1:
                return [Results(question.keys, error=str(err))]
            return [one for half in _halves(question, stack) for one in self._answer(half)]  # to find the offender
        self._sizer.answered(count, time.perf_counter() - began)
        return [results]

    def _alone(self, keys: Sequence[str], item: bytes | Array) -> Results:
        if self._rows:
            return Results(keys, error=_NO_ROW)
        began = time.perf_counter()
        try:
            document = ask(self._client, self._model, item, top=self._top).document
        except Rejected as err:
            return Results(keys, error=str(err))
        self._sizer.answered(1, time.perf_counter() - began)
        return Results(keys, documents=[document])

    def _stacked(self, keys: Sequence[str], stack: Array) -> Results:
        entry = self._client.metadata(self._model)["outputs"][0]
        classes = not self._rows and _is_row(entry)
        outputs = self._client.infer_stacked(self._model, stack, top=(self._top or 5) if classes else 0)
        first = outputs[entry["name"]]
        if len(first) != len(keys):
            raise Misuse(f"the worker answered {len(first)} of {len(keys)} samples: this is a bug of its agent")
        if self._rows:
            return Results(keys, rows=_real(first, entry))
        if classes:
            return Results(keys, documents=[_classes(row) for row in first])
        return Results(keys, documents=[_outputs(outputs, place) for place in range(len(keys))])


def _halves(question: Question, stack: Array) -> list[Question]:
    middle = len(question.keys) // 2
    return [
        replace(question, keys=question.keys[part], stack=stack[part])
        for part in (slice(None, middle), slice(middle, None))
    ]


def _is_row(output: Mapping[str, Any]) -> bool:
    shape = [int(size) for size in output["shape"]]
    return len(shape) >= 2 and shape[-1] > 1 and all(size in (1, -1) for size in shape[:-1])


def _classes(row: Array) -> dict[str, Any]:
    scores = [parse_score(bytes(text).decode()) for text in row.ravel()]
    classes = [{"index": one.index, "score": one.score, "label": one.label} for one in scores]
    return {"kind": "classification", "classes": classes}


def _outputs(outputs: Mapping[str, Array], place: int) -> dict[str, Any]:
    samples = {name: array[place] for name, array in outputs.items()}
    values = {name: {"shape": list(one.shape), "values": one.ravel().tolist()} for name, one in samples.items()}
    return {"kind": "outputs", "outputs": values}


def _real(array: Array, entry: Mapping[str, Any]) -> Array:
    """Return real values of an output in its native dtype, float32."""
    parameters = entry.get("parameters", {})
    if "scale" not in parameters or array.dtype.kind == "f":
        return array.astype(np.float32)
    shifted = array.astype(np.float64) - parameters["zero_point"]
    return np.asarray(shifted * parameters["scale"], dtype=np.float32)
