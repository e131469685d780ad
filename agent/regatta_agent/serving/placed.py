"""The placed candidate: opened, tested on golden samples, and answering infer requests. Only the engine's thread
calls it once it is open.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from regatta_agent.serving.batching import find_batch, groups_of, is_batchable, joined, split
from regatta_agent.serving.failover import Failover, Opened, Switch, open_failover
from regatta_agent.serving.inference import InferRequest, NamedTensor, WantedOutput
from regatta_agent.serving.interface import ModelInterface, body_limit_bytes, image_input
from regatta_agent.serving.processed import MAX_PROCESSED_BYTES, infer_processed, open_processor
from regatta_agent.serving.spec import ServeSpec
from regatta_agent.serving.stacked import STACK_BYTES, Serving, infer_stacked, interface_of_stacks
from regatta_agent.serving.tensors import Array
from regatta_protocol.durable import read_bounded
from regatta_protocol.errors import RegattaError, Rejected
from regatta_protocol.plain import parse_json
from regatta_protocol.processing import Processing, read_described
from regatta_protocol.values import MAX_MANIFEST_BYTES

__all__ = ["Answer", "PlacedModel", "open_placed", "read_labels"]

logger = logging.getLogger(__name__)

MAX_LABELS_BYTES = 4 * 1024 * 1024


class Answer(NamedTuple):
    """The tensors of an answer with how each is wanted, output 0's class, and where the time went.

    `compute_ns` is the runtime's own time, of the whole batch when `batch` rows were computed together; of such, one
    answer is the first.
    """

    tensors: list[tuple[NamedTensor, WantedOutput]]
    predicted: int | None
    compute_ns: int
    batch: int = 1
    first_of_batch: bool = True
    prepare_ns: int = 0
    conclude_ns: int = 0


class _Prepared(NamedTuple):
    """A request that fits the model."""

    place: int  # among those that came together
    natives: list[Array]
    real: bool
    wanted: Sequence[tuple[int, WantedOutput]]
    rows: int  # 1 when the model has no batch dimension
    prepare_ns: int


class PlacedModel:
    """An opened session with its interface."""

    def __init__(self, session: Serving, interface: ModelInterface, most_rows: int = 1) -> None:
        self._session = session
        self.interface = interface
        self._stacks = interface_of_stacks(interface)
        self.processor = open_processor(interface)
        self.most_rows = most_rows  # that are computed together
        self._has_rows = is_batchable(interface.inputs, interface.outputs)

    def body_limit_bytes(self) -> int:
        """Return how long the body of an infer request may be."""
        limit = max(body_limit_bytes(self.interface.inputs), STACK_BYTES)
        return limit if self.processor.takes_raw else max(limit, MAX_PROCESSED_BYTES)

    def infer(self, request: InferRequest) -> Answer:
        """Return the model's answer.

        Raises:
            Rejected: when the request does not fit the model.
            Retryable: when the runtime fails.
        """
        if request.processed:
            return self._processed(request)
        if request.stacked:
            return self._stacked(request)
        return self._alone(self._prepare(0, request))

    def _processed(self, request: InferRequest) -> Answer:
        done = infer_processed(self.processor, self.interface, self._session, request)
        predicted = self.interface.predicted_class(done.outputs)
        return Answer(
            done.tensors, predicted, done.compute_ns, prepare_ns=done.prepare_ns, conclude_ns=done.conclude_ns
        )

    def _stacked(self, request: InferRequest) -> Answer:
        wanted = self.interface.wanted(request)
        outputs, real, compute_ns = infer_stacked(self._stacks, self._session, request, self.most_rows)
        return Answer(self.interface.answer(outputs, wanted, real=real), None, compute_ns)

    def infer_together(self, requests: Sequence[InferRequest]) -> list[Answer | Exception]:
        """Return the model's answer to each request, or why there is none.

        Those that fit together are computed together. When that fails, each is computed alone, by the next best
        candidate if need be, so that one request cannot fail another.
        """
        results: dict[int, Answer | Exception] = {}
        prepared: list[_Prepared] = []
        for index, request in enumerate(requests):
            if request.processed or request.stacked:
                results[index] = _or_error(partial(self.infer, request))
                continue
            try:
                prepared.append(self._prepare(index, request))
            except RegattaError as err:
                results[index] = err
        for group in groups_of([one.natives for one in prepared], self.most_rows):
            results.update(self._together([prepared[index] for index in group]))
        return [results[index] for index in range(len(requests))]

    def _prepare(self, index: int, request: InferRequest) -> _Prepared:
        began_ns = time.perf_counter_ns()
        wanted = self.interface.wanted(request)
        natives, real = self.interface.to_native(request)
        rows = natives[0].shape[0] if self._has_rows else 1
        return _Prepared(index, natives, real, wanted, rows, time.perf_counter_ns() - began_ns)

    def _alone(self, one: _Prepared) -> Answer:
        began_ns = time.perf_counter_ns()
        outputs = self._session.run(one.natives)
        return self._answer(one, outputs, time.perf_counter_ns() - began_ns, one.rows)

    def _together(self, group: Sequence[_Prepared]) -> dict[int, Answer | Exception]:
        rows = [one.rows for one in group]
        if len(group) > 1:
            try:
                began_ns = time.perf_counter_ns()
                outputs = self._session.run_together(joined([one.natives for one in group]), sum(rows))
                compute_ns = time.perf_counter_ns() - began_ns
                parts = split(outputs, rows)
            except Exception as err:  # noqa: BLE001 - plug-in code: a runtime may raise anything
                logger.warning("event=batch_failed rows=%d error=%s", sum(rows), err)
            else:
                return {
                    one.place: self._answer(one, part, compute_ns, sum(rows), first=one is group[0])
                    for one, part in zip(group, parts, strict=True)
                }
        return {one.place: _or_error(partial(self._alone, one)) for one in group}

    def _answer(
        self, one: _Prepared, outputs: Sequence[Array], compute_ns: int, batch: int, *, first: bool = True
    ) -> Answer:
        began_ns = time.perf_counter_ns()
        tensors = self.interface.answer(outputs, one.wanted, real=one.real)
        predicted = self.interface.predicted_class(outputs)
        conclude_ns = time.perf_counter_ns() - began_ns
        return Answer(tensors, predicted, compute_ns, batch, first, one.prepare_ns, conclude_ns)

    def close(self) -> None:
        """Release the runtime."""
        self._session.close()


def _or_error(compute: Callable[[], Answer]) -> Answer | Exception:
    try:
        return compute()
    except Exception as err:  # noqa: BLE001 - plug-in code: a runtime may raise anything; who asked is told, and the log
        return err


def read_labels(path: Path | None) -> tuple[str, ...]:
    """Return the labels of the classes, one a line.

    Raises:
        Rejected: when the file is not UTF-8 text, or too large.
    """
    if path is None:
        return ()
    try:
        return tuple(read_bounded(path, MAX_LABELS_BYTES).decode().splitlines())
    except UnicodeDecodeError as err:
        raise Rejected(f"the labels in {path} are not UTF-8 text") from err


def open_placed(
    spec: ServeSpec, on_switch: Callable[[Switch], None], on_slow: Callable[[], None]
) -> tuple[PlacedModel, Failover, Opened]:
    """Return the model opened as `spec` says.

    Args:
        spec: of the worker.
        on_switch: told when another candidate serves; see Failover.
        on_slow: told when what serves has become slow.

    Raises:
        Rejected: when a file is missing or damaged, or the self-test fails.
        Retryable: when the runtime fails.
    """
    for path in (spec.manifest_path, spec.labels_path, spec.golden_path):
        if path is not None and not path.is_file():
            raise Rejected(f"{path} of {spec.model}:{spec.version} is not there: fetch the version again")
    processing, labels = Processing(), read_labels(spec.labels_path)
    if spec.manifest_path is not None:
        processing = _processing(spec.manifest_path)
    failover, opened = open_failover(spec, on_switch, on_slow)
    if processing.image is None and processing.audio is None:
        processing = replace(processing, image=image_input(failover.inputs))
    interface = ModelInterface(failover.inputs, failover.outputs, labels, processing, spec.non_finite)
    return PlacedModel(failover, interface, _most_rows(spec, failover)), failover, opened


def _processing(path: Path) -> Processing:
    """Return what the manifest, which the agent has checked, describes; what is of a newer fleet is left out.

    Raises:
        Rejected: when the file is no manifest.
    """
    manifest = parse_json(read_bounded(path, MAX_MANIFEST_BYTES))
    if not isinstance(manifest, dict):
        raise Rejected(f"{path} is no manifest: fetch the version again")
    try:
        return read_described(manifest, "the processing is not understood here")
    except Rejected as err:
        logger.warning("event=processing_left_out reason=%s", err)
    with contextlib.suppress(Rejected):
        return read_described({"input": manifest.get("input")}, "the picture is not understood here")
    return Processing()


def _most_rows(spec: ServeSpec, failover: Failover) -> int:
    """Return how many rows are computed together."""
    serving = failover.serving
    if spec.max_batch == 1 or not is_batchable(failover.inputs, failover.outputs):
        return 1
    samples = [arrays for arrays in serving.samples(spec.golden_path) if all(array.shape[0] == 1 for array in arrays)]
    rows = find_batch(serving.run_own, samples, spec.max_batch) if samples else 1
    logger.info("event=batches placement=%s rows=%d", serving.id, rows)
    return rows
