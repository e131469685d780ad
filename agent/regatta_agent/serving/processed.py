"""A processed request in the worker: input prepared, the model run on each sample, its outputs concluded."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from regatta_agent.processing.processor import Prepared, Processor, encode_document
from regatta_agent.serving.inference import InferRequest, NamedTensor, WantedOutput
from regatta_agent.serving.interface import ModelInterface
from regatta_agent.serving.tensors import Array, datatype_of
from regatta_protocol.errors import Rejected
from regatta_protocol.processing import Processing
from regatta_runtimes.worker.session import Session

__all__ = ["MAX_PROCESSED_BYTES", "Processed", "infer_processed", "open_processor"]

logger = logging.getLogger(__name__)

MAX_PROCESSED_BYTES = 32 * 1024 * 1024  # of a picture or sound: 4K UHD has 25 MB of pixels
_RESULT = "result"


@dataclass(frozen=True)
class Processed:
    """The tensors of the answer with how each is wanted, the outputs of the first sample, and where the time went."""

    tensors: list[tuple[NamedTensor, WantedOutput]]
    outputs: list[Array]
    prepare_ns: int
    compute_ns: int
    conclude_ns: int


def open_processor(interface: ModelInterface) -> Processor:
    """Return the processor of a model; one that prepares nothing when the description does not fit the model.

    A version was checked when it was pushed. Should a newer fleet describe what this agent does not understand, its
    own inputs and outputs are served all the same.
    """
    try:
        return Processor(interface.processing, interface.inputs, interface.outputs, interface.labels)
    except Rejected as err:
        logger.warning("event=processing_left_out reason=%s", err)
        return Processor(Processing(), interface.inputs, interface.outputs, interface.labels)


def infer_processed(
    processor: Processor, interface: ModelInterface, session: Session, request: InferRequest
) -> Processed:
    """Return the answer to a processed request.

    Raises:
        Rejected: when the request does not fit the description.
        Retryable: when the runtime fails.
    """
    began_ns = time.perf_counter_ns()
    if processor.takes_raw:
        natives, _ = interface.to_native(request)
        prepared = Prepared((natives,))
    elif len(request.inputs) == 1:
        prepared = processor.prepare(request.inputs[0].array)
    else:
        raise Rejected(f"a processed request has one input, a picture or a sound, and {len(request.inputs)} came")
    prepared_ns = time.perf_counter_ns()
    outputs = [session.run(sample) for sample in prepared.samples]
    computed_ns = time.perf_counter_ns()
    top = next((wish.classes for wish in request.outputs if wish.name == _RESULT), 0)
    outcome = processor.conclude(prepared, outputs, top)
    tensors = _tensors({_RESULT: encode_document(outcome), **outcome.arrays}, request)
    concluded_ns = time.perf_counter_ns()
    return Processed(tensors, outputs[0], prepared_ns - began_ns, computed_ns - prepared_ns, concluded_ns - computed_ns)


def _tensors(arrays: dict[str, Array], request: InferRequest) -> list[tuple[NamedTensor, WantedOutput]]:
    """Return the arrays that the request asks for; all of them when it names none."""
    for wish in request.outputs:
        if wish.name not in arrays:
            text = f"there is no output {wish.name[:120]!r} of a processed request: there are {', '.join(arrays)}"
            raise Rejected(text)
    wishes = request.outputs or tuple(WantedOutput(name, request.binary_default) for name in arrays)
    return [(NamedTensor(wish.name, datatype_of(arrays[wish.name].dtype), arrays[wish.name]), wish) for wish in wishes]
