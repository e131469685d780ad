"""A stacked request in the worker: many samples in one request, computed in order, answered together.

For batch jobs: what a request costs beside the inference (two passages of the socket, parsing, wake-ups) is shared by
its samples. Where computing several samples at once pays, as the worker has measured, that is done.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from regatta_agent.serving.inference import InferRequest
from regatta_agent.serving.interface import ModelInterface
from regatta_agent.serving.tensors import Array
from regatta_protocol.errors import Rejected
from regatta_protocol.values import TensorSpec
from regatta_runtimes.errors import InvokeFailed
from regatta_runtimes.worker.session import Session

__all__ = ["MAX_STACKED", "STACK_BYTES", "Serving", "infer_stacked", "interface_of_stacks"]

logger = logging.getLogger(__name__)

MAX_STACKED = 1024  # samples; others wait meanwhile
STACK_BYTES = 2 * 1024 * 1024  # a body of so many bytes is taken at least, however small one sample is


class Serving(Session, Protocol):
    """A session that also takes several samples: computed at once, or one after another; see Failover."""

    def run_together(self, inputs: Sequence[Array], rows: int) -> list[Array]: ...

    def run_each(self, stacks: Sequence[Array]) -> list[Array]: ...


def interface_of_stacks(interface: ModelInterface) -> ModelInterface | None:
    """Return what stacks of the model's samples are held against; None when it has no dimension to stack along."""
    specs = (*interface.inputs, *interface.outputs)
    if any(not spec.shape or spec.shape[0] not in (1, -1) for spec in specs):
        return None
    return ModelInterface(
        [_open(spec) for spec in interface.inputs], interface.outputs, non_finite=interface.non_finite
    )


def infer_stacked(
    stacks: ModelInterface | None, session: Serving, request: InferRequest, most_rows: int
) -> tuple[list[Array], bool, int]:
    """Return each output of all samples, stacked, whether they speak in real values, and the run time in nanoseconds.

    Args:
        stacks: interface_of_stacks of the model.
        session: that computes.
        request: a stacked one.
        most_rows: how many samples pay when they are computed together; 1: none do.

    Raises:
        Rejected: when the inputs are no stack of the model's samples, or not of one length.
        Retryable: when the runtime fails.
    """
    if stacks is None:
        raise Rejected("this model has no dimension to stack along: send one sample a request")
    natives, real = stacks.to_native(request)
    counts = {len(native) for native in natives}
    count = counts.pop()
    if counts or count > MAX_STACKED:
        raise Rejected(f"the inputs of a stacked request have one length up to {MAX_STACKED}")
    began_ns = time.perf_counter_ns()
    starts = range(0, count, count if most_rows == 1 else most_rows)
    answers = [_part(session, [native[at : at + starts.step] for native in natives], most_rows) for at in starts]
    outputs = answers[0] if len(answers) == 1 else [np.concatenate(column) for column in zip(*answers, strict=True)]
    return outputs, real, time.perf_counter_ns() - began_ns


def _part(session: Serving, part: list[Array], most_rows: int) -> list[Array]:
    """Return the outputs of some samples: of all together, or of each where that does not pay or fails."""
    rows = len(part[0])
    if 1 < rows <= most_rows:
        try:
            return session.run_together(part, rows)
        except InvokeFailed as err:
            logger.warning("event=batch_failed rows=%d error=%s", rows, err)
    return session.run_each(part)


def _open(spec: TensorSpec) -> TensorSpec:
    return replace(spec, shape=(-1, *spec.shape[1:]))
