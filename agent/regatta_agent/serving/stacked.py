"""A stacked request in the worker: many samples in one request, computed one after another, answered together.

For batch jobs: what a request costs beside the inference (two passages of the socket, parsing, wake-ups) is shared by
its samples. A model keeps its own batch size of 1, so that each sample's answer is what it would be alone.
"""

from __future__ import annotations

import time

import numpy as np

from regatta_agent.serving.inference import InferRequest
from regatta_agent.serving.interface import ModelInterface
from regatta_agent.serving.tensors import Array
from regatta_protocol.errors import Rejected
from regatta_protocol.manifest import TensorSpec
from regatta_runtimes.session import Session

__all__ = ["MAX_STACKED", "infer_stacked"]

MAX_STACKED = 1024  # samples; others wait meanwhile


def infer_stacked(interface: ModelInterface, session: Session, request: InferRequest) -> tuple[list[Array], bool, int]:
    """Return each output of all samples, stacked, whether they speak in real values, and the run time in nanoseconds.

    Raises:
        Rejected: when the inputs are no stack of the model's samples, or not of one length.
        Retryable: when the runtime fails.
    """
    specs = (*interface.inputs, *interface.outputs)
    if any(not spec.shape or spec.shape[0] not in (1, -1) for spec in specs):
        raise Rejected("this model has no dimension to stack along: send one sample a request")
    stack = ModelInterface([_open(spec) for spec in interface.inputs], interface.outputs)
    natives, real = stack.to_native(request)
    counts = {len(native) for native in natives}
    count = counts.pop()
    if counts or count > MAX_STACKED:
        raise Rejected(f"the inputs of a stacked request have one length up to {MAX_STACKED}")
    began_ns = time.perf_counter_ns()
    answers = [session.run([native[place : place + 1] for native in natives]) for place in range(count)]
    compute_ns = time.perf_counter_ns() - began_ns
    return [np.concatenate(column) for column in zip(*answers, strict=True)], real, compute_ns


def _open(spec: TensorSpec) -> TensorSpec:
    return spec.model_copy(update={"shape": (-1, *spec.shape[1:])})
